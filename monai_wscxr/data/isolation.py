"""Decoding in worker processes with limits on memory and time, so that a file on which a decoder crashes costs itself alone.

`predict`, `inferring`, `bank add` and the label server read every file in such a process. Training decodes in its own threads,
which is faster, but no file that has not been decoded in a worker before: all but PNG, JPEG and BMP, whose decoders are built
for hostile input, are tried there first.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from monai_wscxr.data.radiograph.base import GATES, MEMORY_LIMIT, RadiographError, find_radiograph_error
from monai_wscxr.data.radiograph.formats import sniff_format
from monai_wscxr.data.radiograph.read import read_radiograph
from monai_wscxr.system.threads import single_threaded
from monai_wscxr.system.workers import WorkerLostError, WorkerPool

Item = dict[str, Any]

SECONDS = 10.0
"""Time limit for reading a file, in seconds; one second more per MiB."""
PRELOAD = ("monai_wscxr.data.preprocessing",)
"""Modules that workers import."""

_SECONDS_PER_MEBIBYTE = 1.0
_SAFE = ("png", "jpeg", "bmp")

_crashed: dict[str, RadiographError] = {}  # by digest of the file, in this process
_decoded: set[str] = set()
_lock = threading.Lock()


def time_limit(file: str | os.PathLike[str], seconds: float = SECONDS) -> float:
    """Return the time limit for reading a file, in seconds: `seconds`, and one second more per MiB."""
    try:
        return seconds + os.path.getsize(file) / 2**20 * _SECONDS_PER_MEBIBYTE
    except (OSError, ValueError):
        return seconds


def lost_error(lost: WorkerLostError, limit: float, advice: str = "Export it again.") -> RadiographError:
    """Return the reason why a file cannot be used whose worker died or reached its time limit.

    Args:
        lost: the error of the task.
        limit: time limit that it had, in seconds.
        advice: what to do about a file that takes too long.
    """
    if lost.too_slow:
        return RadiographError("too_slow", f"reading it took longer than {limit:.0f} s. {advice}")
    return RadiographError("crashed", "a decoding library crashed on it. Export or copy it again.")


class Isolation:
    """Worker processes that are started when they are first needed.

    Args:
        function: called in a worker with the path of a file; picklable, as is its result.
        workers: number of processes, at least 1.
    """

    def __init__(self, function: Callable[[str], Any], workers: int = 2) -> None:
        self.function, self.workers = function, workers
        self._pool: WorkerPool | None = None
        self._starting = threading.Lock()

    def __call__(self, file: str) -> Any:
        """Call the function for a file; safe from several threads.

        Raises:
            RadiographError: "crashed" or "too_slow"; or what the function raises.
        """
        with self._starting:
            if self._pool is None:
                self._pool = WorkerPool(self.workers, single_threaded, (), SECONDS, MEMORY_LIMIT, PRELOAD)
        limit = time_limit(file)
        try:
            return self._pool.submit(self.function, file, seconds=limit).result()
        except WorkerLostError as lost:
            raise lost_error(lost, limit) from None

    def __enter__(self) -> Isolation:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.close()


def decode(file: str) -> None:
    """Decode a file for nothing, in a worker."""
    read_radiograph(file, allow=GATES)


def load_item(transform: Callable[[Item], Item], item: Item) -> Item | RadiographError:
    """Load a datalist item, which keeps the path of its image as `file`; or return the error of a file that cannot be used."""
    try:
        return transform({**item, "file": str(item["image"])})
    except Exception as error:
        found = find_radiograph_error(error)
        if found is None:
            raise
        return found


_transform: Callable[[Item], Item] | None = None  # of a worker


def prepare_loading(transform: Callable[[Item], Item]) -> None:
    """Initialise a worker for `load_there`."""
    global _transform
    _transform = transform
    single_threaded()  # importing the class of the transform may have imported torch


def load_there(item: Item) -> Item | RadiographError:
    """Load an item in a worker; tensors travel as arrays, since torch would send each of them as an open file."""
    assert _transform is not None
    loaded = load_item(_transform, item)
    if isinstance(loaded, RadiographError):
        return loaded
    return {key: np.asarray(value) if hasattr(value, "numpy") else value for key, value in loaded.items()}


def may_crash(file: str) -> bool:
    """Tell by its content whether a decoder of a file may crash the process."""
    try:
        return sniff_format(file) not in _SAFE
    except (RadiographError, OSError, EOFError, zlib.error):
        return False  # is not decoded at all


def note(digest: str, error: RadiographError | None = None) -> None:
    """Keep in mind that the file with this digest has been decoded without a crash, or why it must not be decoded here."""
    with _lock:
        if error is None:
            _decoded.add(digest)
        else:
            _crashed[digest] = error


def crash_of(digest: str, file: str, isolation: Isolation) -> RadiographError | None:
    """Return why a file must not be decoded in this process, or None; it is tried in a worker unless that is known.

    Args:
        digest: digest of the file.
        file: its path.
        isolation: workers that decode.
    """
    with _lock:
        if digest in _crashed:
            return _crashed[digest]
        if digest in _decoded:
            return None
    if not may_crash(file):
        return None
    try:
        isolation(file)
    except RadiographError as error:
        if error.code in ("crashed", "too_slow"):
            note(digest, error)
            return error
    note(digest)
    return None
