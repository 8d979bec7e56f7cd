"""Opening files that other programs or people may have put there: regular files only, without ever waiting.

Opening a named pipe waits for a writer, and opening a device can do anything. A folder that is searched for files by name
may contain either.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_descriptor(path: str | Path) -> int:
    """Open a regular file for reading, following links, and return its descriptor.

    Raises:
        OSError: when the file cannot be opened, or is a pipe, socket, device or folder.
    """
    _require_regular(path, os.stat(path).st_mode)
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        _require_regular(path, os.fstat(descriptor).st_mode)  # it may have been replaced since
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file for reading, see `open_descriptor`."""
    return os.fdopen(open_descriptor(path), "rb")


def read_regular(path: str | Path, limit: int) -> bytes:
    """Return the content of a regular file of at most `limit` bytes.

    Raises:
        OSError: when the file cannot be read, is not a regular file, or is larger.
    """
    with open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit:,} bytes", str(path))
    return content


def _require_regular(path: str | Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
