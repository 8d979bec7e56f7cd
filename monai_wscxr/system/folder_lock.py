"""Locks that let one process at a time write to an output folder."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import time
import weakref
from pathlib import Path
from typing import IO

from monai_wscxr.errors import InputError
from monai_wscxr.system.atomic import full_disk, is_disk_full, on_disk

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

NAME = ".lock"
_held: weakref.WeakValueDictionary[Path, FolderLock] = weakref.WeakValueDictionary()
_files: weakref.WeakSet[FolderLock] = weakref.WeakSet()


class FolderLock:
    """A lock on a folder, held while this object exists and its process runs; create it with `lock_folder`.

    The lock is `flock` on the file `.lock`. The kernel releases it when the process ends, in whichever way, so a killed run
    leaves no lock behind. On NFS, Linux uses a lock of the server, which holds between machines as well, unless the mount
    options include `nolock` or `local_lock=flock`. A file system without locks causes a warning.

    Args:
        folder: existing folder.

    Raises:
        InputError: when another process holds the lock; the message names the process and its host.
        DiskFullError: when there is no room for the file of the lock.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        owner = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": _now()}).encode()
        try:
            # without a buffer, which would be written once more when the file is closed; stays open, and locked
            self._file: IO[bytes] = open(self.path, "a+b", buffering=0)  # noqa: SIM115
            weakref.finalize(self, self._file.close)
            try:
                self._lock()
                self._file.truncate(0)
                self._file.write(owner)
            except BaseException:
                self._file.close()
                raise
        except OSError as error:
            if is_disk_full(error):
                raise full_disk(folder, on_disk(len(owner)), str(self.path)) from error
            raise
        _files.add(self)

    def _lock(self) -> None:
        if fcntl is None:
            logger.warning(
                "this platform has no file locks: two runs in %s at the same time would not be noticed",
                self.path.parent,
            )
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another run is writing to {self.path.parent} ({self._owner()}); wait for it or stop it, or choose another "
                "--output_dir"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            logger.warning(
                "the file system of %s has no locks (%s): two runs there at the same time would not be noticed",
                self.path.parent,
                error.strerror,
            )

    def _owner(self) -> str:
        self._file.seek(0)
        try:
            owner = json.loads(self._file.read())
            return f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
        except (ValueError, KeyError, TypeError):
            return "a process that has just started"

    def release(self) -> None:
        """Release the lock before this object ends."""
        self._file.close()

    def forget(self) -> None:
        """Close the file in a forked child, so that the lock belongs to the parent alone."""
        self._file.close()


def lock_folder(folder: Path) -> FolderLock:
    """Return the lock of a folder: the one that this process already holds, or a new one.

    Raises:
        InputError: when another process holds it.
    """
    key = folder.resolve()
    lock = _held.get(key)
    if lock is None:
        lock = _held[key] = FolderLock(folder)
    return lock


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


def _after_fork() -> None:
    for lock in list(_files):
        lock.forget()
    _files.clear()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
