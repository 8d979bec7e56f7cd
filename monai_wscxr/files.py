"""Files that a reader sees whole or not at all: written under a temporary name beside the old one, synced, renamed."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[Path]:
    """A temporary file beside `path` to write to; it takes that name when all went well and vanishes otherwise.

    Without `durable` nothing waits for the disk: after a power failure the file may be missing or too short.
    """
    # opened by name rather than through tempfile, whose files only their owner may read
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        yield temporary
        if durable:
            sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes_atomic(path: str | os.PathLike[str], data: bytes, durable: bool = True) -> Path:
    """Write a file so that a reader sees the old one or the new one, never a part.

    Args:
        path: the file; its folder must exist.
        data: the whole content.
        durable: wait until it is on the disk, see `replacing`.

    Returns:
        The path written.
    """
    path = Path(path)
    with replacing(path, durable) as temporary:
        temporary.write_bytes(data)
    return path


def write_text_atomic(path: str | os.PathLike[str], text: str) -> Path:
    """The same for text, as UTF-8 with the line ends it has."""
    return write_bytes_atomic(path, text.encode("utf-8"))


def sync(path: Path) -> None:
    """Wait until what was written to a file is on the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
