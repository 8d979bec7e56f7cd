"""Image ids that tell nothing to anyone who does not have the key of the work folder."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import uuid
from pathlib import Path

from monai_wscxr.errors import InputError
from monai_wscxr.system.atomic import sync

SECRET = "secret"
_BYTES = 32


class IdKey:
    """The key of a work folder, from which image ids are made.

    An id is a keyed hash (HMAC-SHA-256, 64 bits of it) of what it stands for, a path or a UID. So ids stay the same over
    restarts, and no one can tell from an id, or from the answer to a guessed one, whether a certain file exists.

    Args:
        folder: work folder; its file `secret`, readable to its owner only, holds the key and is created if missing.

    Raises:
        InputError: when the file is not as it was written.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / SECRET
        if not path.exists():
            _create(path)
        self._key = path.read_bytes() if path.is_file() else b""
        if len(self._key) != _BYTES:
            raise InputError(
                f"{path} is damaged: it must hold {_BYTES} bytes. Restore it from a copy, or delete it to get new image ids"
            )

    def id(self, name: bytes) -> str:
        """Return the id of a path or UID, 16 hexadecimal digits."""
        return hmac.new(self._key, name, "sha256").hexdigest()[:16]


def unkeyed_id(name: bytes) -> str:
    """Return the id that work folders without a key gave a path or UID."""
    return hashlib.blake2b(name, digest_size=8).hexdigest()


def _create(path: Path) -> None:
    """Write a new key; one that another process has written meanwhile stays."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
