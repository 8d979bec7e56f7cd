"""Atomic writing: after a kill or a power cut, a file is the old one or the new one, never a part of it.

A file is written under a temporary name in its folder, synced and renamed, then the folder is synced. A killed process may
leave the temporary file (`.NAME.*.partial`), which is never read and which `remove_partials` removes.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from monai_wscxr.errors import InputError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_HEADROOM = 16 << 20  # bytes left free on the disk
_BLOCK = 4096  # bytes that disks allocate at once
_AGAIN = "make room and give the same command again"


class DiskFullError(InputError, OSError):
    """A file could not be written for lack of space; what was there before is intact."""


class DamagedError(InputError):
    """A file is not as it was written: it was truncated or changed."""


def is_disk_full(error: OSError) -> bool:
    """Tell whether writing failed for lack of space: the disk, a quota or the limit of file sizes."""
    return isinstance(error, DiskFullError) or error.errno in _FULL


def bytes_text(count: float) -> str:
    """Format a number of bytes in kB, MB or GB, rounded up."""
    if count < 1e6:
        return f"{math.ceil(max(count, 0) / 1e3)} kB"
    if count < 1e9:
        return f"{math.ceil(count / 1e5) / 10:.1f} MB"
    return f"{math.ceil(count / 1e8) / 10:.1f} GB"


def on_disk(size: float) -> int:
    """Return the number of bytes that a file of `size` bytes takes on a disk."""
    return math.ceil(size / _BLOCK) * _BLOCK


def missing_text(folder: Path, needed: int, free: int | None = None) -> str:
    """Say how much room is missing on a disk that turned out to be full: needed, free and missing bytes.

    Args:
        folder: folder on that disk; need not exist.
        needed: number of bytes that were to be written.
        free: number of free bytes; None asks the system.
    """
    place = _existing(folder)
    if _no_more_files(place):
        return "the disk can hold no more files, however many bytes are free: room for at least 1 file is missing"
    free = shutil.disk_usage(place).free if free is None else free
    missing = max(on_disk(needed) - free, _BLOCK)  # something did not fit, however much is free
    return f"{bytes_text(needed)} are needed, {bytes_text(free)} are free: {bytes_text(missing)} are missing"


def full_disk(folder: Path, needed: int, what: str, then: str = _AGAIN) -> DiskFullError:
    """Return the error for results that did not fit on a disk; its sentence says how much is missing.

    Args:
        folder: folder on that disk; need not exist.
        needed: number of bytes that all that is left to write takes.
        what: noun for the results.
        then: what to do.
    """
    text = missing_text(folder, needed)
    return DiskFullError(f"{what} could not be written because the disk of {folder} is full ({text}); {then}")


def as_disk_full(error: BaseException | None) -> DiskFullError | None:
    """Return the first error about a full disk on a chain of causes as one that names the missing bytes, or None."""
    while error is not None:
        if isinstance(error, DiskFullError):
            return error
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else None
            if path is not None:
                return full_disk(path.parent, _BLOCK, str(path))
            return DiskFullError(
                f"a file could not be written ({error.strerror}): at least {bytes_text(_BLOCK)} are missing; {_AGAIN}"
            )
        error = error.__cause__ or error.__context__
    return None


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
            f"{what} needs {bytes_text(needed)} in {folder}, only {bytes_text(free)} are free: {bytes_text(missing)} are "
            f"missing, as a reserve must stay free; {_AGAIN}"
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
    # the temporary file is about to vanish, and what cannot be told is at least a block more
    free, needed = shutil.disk_usage(path.parent).free + written, written + _BLOCK if size is None else size
    if error.errno == errno.EFBIG:
        missing = max(needed - written, 1)
        text = f"files may not be larger than {bytes_text(written)} here (ulimit -f): {bytes_text(missing)} are missing"
    elif error.errno == errno.EDQUOT:
        missing = max(needed - written, 1)
        text = f"the disk quota is used up: {bytes_text(missing)} are missing"
    else:
        text = missing_text(path.parent, needed, free)
    least = "at least " if size is None else ""
    full = DiskFullError(
        f"{path} could not be written ({error.strerror}): {least}{text}; what was there before is intact, {_AGAIN}"
    )
    full.errno = error.errno
    return full


def _existing(folder: Path) -> Path:
    """Return the folder, or the closest one above it that exists."""
    folder = folder.absolute()
    return next((place for place in (folder, *folder.parents) if place.exists()), folder)


def _no_more_files(folder: Path) -> bool:
    """Tell whether a disk has used up its inodes."""
    if not hasattr(os, "statvfs"):  # Windows
        return False
    status = os.statvfs(folder)
    return status.f_files > 0 and status.f_favail == 0
