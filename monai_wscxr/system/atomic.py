"""Atomic writing: after a kill or a power cut, a file is the old one or the new one, never a part of it.

A file is written under a temporary name in its folder, synced and renamed, then the folder is synced. A killed process may
leave the temporary file (`.NAME.*.partial`), which is never read and which `remove_partials` removes. Sealed files end with a
checksum, which also detects damage by a disk or a copy.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import math
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from monai_wscxr.errors import InputError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SEAL = b"wscxr-b2"  # followed by the BLAKE2b digest, 32 bytes, of everything before the seal
_HEADROOM = 16 << 20  # bytes left free on the disk


class DiskFullError(InputError, OSError):
    """A file could not be written for lack of space; what was there before is intact."""


class DamagedError(InputError):
    """A file is not as it was written: it was truncated or changed."""


def is_disk_full(error: OSError) -> bool:
    """Tell whether writing failed for lack of space: the disk, a quota or the limit of file sizes."""
    return isinstance(error, DiskFullError) or error.errno in _FULL


def bytes_text(count: float) -> str:
    """Format a number of bytes in kB or MB, rounded up."""
    if count < 1e6:
        return f"{math.ceil(max(count, 0) / 1e3)} kB"
    return f"{math.ceil(count / 1e5) / 10:.1f} MB"


@contextlib.contextmanager
def replacing(path: Path, size: int | None = None, durable: bool = True) -> Iterator[Path]:
    """Provide a temporary file beside `path` that replaces it on success and is removed on an error.

    Args:
        path: final path.
        size: number of bytes that will be written, if known; the message about a full disk then names the missing bytes.
        durable: wait until the file is on the disk. Otherwise a power cut may leave it missing or truncated.

    Yields:
        Path of the temporary file.

    Raises:
        DiskFullError: when the disk, the quota or the limit of file sizes does not suffice; `path` is unchanged.
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
    """Write a file atomically and return its path, see `replacing`."""
    with replacing(path, len(content), durable) as temporary:
        temporary.write_bytes(content)
    return path


def write_text_atomic(path: Path, text: str) -> Path:
    """Write text (UTF-8) atomically and return the path of the file, see `replacing`."""
    return write_bytes_atomic(path, text.encode("utf-8"))


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write files that belong together: all are on the disk before they are renamed, in the given order."""
    with contextlib.ExitStack() as stack:
        # the stack renames the last file first
        for path, content in reversed(list(files.items())):
            temporary = stack.enter_context(replacing(path, len(content)))
            temporary.write_bytes(content)
            sync(temporary)


def torch_bytes(value: Any) -> bytes:
    """Return the bytes that `torch.save` would write."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def save_sealed(path: Path, value: Any) -> None:
    """Save a value like `torch.save`, but atomically and with a checksum at the end, which `torch.load` ignores."""
    content = torch_bytes(value)
    write_bytes_atomic(path, content + _SEAL + hashlib.blake2b(content, digest_size=32).digest())


def load_sealed(path: Path) -> Any:
    """Load a file of `save_sealed`, which may hold tensors and plain values only; tensors come to the CPU.

    Raises:
        DamagedError: when the file cannot be read or differs from what was written.
    """
    try:
        whole = path.read_bytes()
    except OSError as error:
        raise DamagedError(f"{path} cannot be read ({error.strerror})") from error
    content, seal = whole[: -len(_SEAL) - 32], whole[-len(_SEAL) - 32 :]
    if seal != _SEAL + hashlib.blake2b(content, digest_size=32).digest():
        raise DamagedError(f"{path} is damaged: the checksum does not match its {len(whole)} bytes")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def require_space(folder: Path, needed: int, what: str) -> None:
    """Check before long work that the disk can hold its results.

    Args:
        folder: existing folder on that disk.
        needed: number of bytes.
        what: noun for the results, in the message.

    Raises:
        DiskFullError: when it cannot; the message names the needed, free and missing bytes.
    """
    free = shutil.disk_usage(folder).free
    if needed + _HEADROOM > free:
        missing = needed + _HEADROOM - free
        raise DiskFullError(
            f"{what} needs {needed / 1e6:.1f} MB in {folder}, only {free / 1e6:.1f} MB are free: {missing / 1e6:.1f} MB are "
            "missing, as a reserve must stay free. Make room and run the same command again"
        )


def remove_partials(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder; no other process may be writing there."""
    for path in folder.glob(".*.partial"):
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _disk_full(path: Path, temporary: Path, size: int | None, error: OSError) -> DiskFullError:
    """Create the error that names the missing bytes, from that of the system."""
    written = temporary.stat().st_size if temporary.exists() else 0
    free = shutil.disk_usage(path.parent).free + written  # the temporary file is about to vanish
    if error.errno == errno.EFBIG:
        reason = f"files may not be larger than {written / 1e6:.1f} MB here (ulimit -f)"
    elif error.errno == errno.EDQUOT:
        reason = "the disk quota is used up"
    else:
        reason = f"{_megabytes(free)} are free"
    if size is None:
        needed = f"more than {_megabytes(written)}"
    else:
        missing = max(size - (written if error.errno == errno.EFBIG else free), 1)
        needed = f"{_megabytes(size)}; {_megabytes(missing)} are missing"
    full = DiskFullError(
        f"{path} could not be written ({error.strerror}): {reason}, it needs {needed}. What was there before is intact. "
        "Make room and run the same command again"
    )
    full.errno = error.errno
    return full


def _megabytes(count: int) -> str:
    """Format a number of bytes in MB; a small number has three decimals and is rounded up."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{math.ceil(count / 1e3) / 1e3:.3f} MB"
