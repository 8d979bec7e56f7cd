"""Files that are there whole or not at all, whatever happens to the process that writes them.

A file is written under a temporary name in its folder, synced, renamed, and the folder is synced: after a kill or a power
cut there is the old file or the new one. A kill may leave the temporary file (`.NAME.*.partial`), which nobody reads and
`remove_partials` removes. Sealed files carry a checksum at their end: damage by other causes (a disk, a copy) is noticed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from monai_wscxr.errors import InputError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SEAL = b"wscxr-b2"  # then the 32 bytes of a BLAKE2b digest of everything before
_HEADROOM = 16 << 20  # bytes left free on the disk


class DiskFullError(InputError, OSError):
    """A file could not be written for lack of space; what was there before is intact."""


class DamagedError(InputError):
    """A file is not what was written: cut short, or changed."""


@contextlib.contextmanager
def replacing(path: Path, size: int | None = None, durable: bool = True) -> Iterator[Path]:
    """A temporary file beside `path` to write to; it takes that name when all went well and vanishes otherwise.

    Args:
        path: final name.
        size: bytes that will be written, where that is known: a full disk is then told in numbers.
        durable: wait until it is on the disk; without, a power cut may leave the file missing or too short.

    Raises:
        DiskFullError: when the disk, the quota or the limit of a file's size does not suffice; `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        try:
            yield temporary
            if durable:
                sync(temporary)
            os.replace(temporary, path)
            if durable:
                sync(path.parent)
        except OSError as error:
            if error.errno in _FULL and not isinstance(error, DiskFullError):
                raise _disk_full(path, temporary, size, error) from error
            raise
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes_atomic(path: Path, content: bytes, durable: bool = True) -> Path:
    """Write a file so that a reader sees the old one or the new one, never a part; returns `path`. See `replacing`."""
    with replacing(path, len(content), durable) as temporary:
        temporary.write_bytes(content)
    return path


def write_text_atomic(path: Path, text: str) -> Path:
    """The same for text (UTF-8)."""
    return write_bytes_atomic(path, text.encode("utf-8"))


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write files that belong together: all are on the disk before the first takes its name, in the order given."""
    with contextlib.ExitStack() as stack:
        # the last one entered is renamed first
        for path, content in reversed(list(files.items())):
            temporary = stack.enter_context(replacing(path, len(content)))
            temporary.write_bytes(content)
            sync(temporary)


def torch_bytes(value: Any) -> bytes:
    """What `torch.save` would write."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def save_sealed(path: Path, value: Any) -> None:
    """`torch.save`, atomically and with a checksum at the end; `torch.load` reads such a file too."""
    content = torch_bytes(value)
    write_bytes_atomic(path, content + _SEAL + hashlib.blake2b(content, digest_size=32).digest())


def load_sealed(path: Path) -> Any:
    """Read a file of `save_sealed`: tensors and plain values only, on the CPU.

    Raises:
        DamagedError: when a bit differs from what was written.
    """
    try:
        whole = path.read_bytes()
    except OSError as error:
        raise DamagedError(f"{path} cannot be read ({error.strerror})") from error
    content, seal = whole[: -len(_SEAL) - 32], whole[-len(_SEAL) - 32 :]
    if seal != _SEAL + hashlib.blake2b(content, digest_size=32).digest():
        raise DamagedError(f"{path} is damaged: its checksum is not that of its {len(whole)} bytes")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def require_space(folder: Path, needed: int, what: str) -> None:
    """Refuse before long work starts when the disk cannot hold its results.

    Raises:
        DiskFullError: with the bytes needed, free and missing.
    """
    free = shutil.disk_usage(folder).free
    if needed + _HEADROOM > free:
        missing = needed + _HEADROOM - free
        raise DiskFullError(
            f"{what} needs {needed / 1e6:.1f} MB in {folder}, only {free / 1e6:.1f} MB are free: {missing / 1e6:.1f} MB are "
            "missing (some room must stay). Make room and give the same command again"
        )


def remove_partials(folder: Path) -> None:
    """Remove what killed processes left half written in a folder; for the one process that may write there."""
    for path in folder.glob(".*.partial"):
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _disk_full(path: Path, temporary: Path, size: int | None, error: OSError) -> DiskFullError:
    written = temporary.stat().st_size if temporary.exists() else 0
    free = shutil.disk_usage(path.parent).free + written  # the temporary file is about to vanish
    if error.errno == errno.EFBIG:
        reason = f"files may not become larger than {written / 1e6:.1f} MB here (ulimit -f)"
    elif error.errno == errno.EDQUOT:
        reason = "the disk quota is used up"
    else:
        reason = f"{free / 1e6:.1f} MB are free"
    if size is None:
        needed = f"more than {written / 1e6:.1f} MB"
    else:
        missing = max(size - (written if error.errno == errno.EFBIG else free), 1)
        needed = f"{size / 1e6:.1f} MB; {missing / 1e6:.1f} MB are missing"
    full = DiskFullError(
        f"{path} could not be written ({error.strerror}): {reason}, it needs {needed}. Whatever was there before is intact. "
        "Make room and give the same command again"
    )
    full.errno = error.errno
    return full
