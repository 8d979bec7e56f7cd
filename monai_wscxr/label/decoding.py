"""Decoding of images in worker processes with limits on memory and time, as `predict` does it.

The server itself decodes nothing. So an image on which a decoder crashes, or for which it needs minutes, costs that image
alone, and requests are answered meanwhile. Uploads have a worker of their own and cannot hold up the archive.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from monai_wscxr.data.isolation import SECONDS, lost_error, time_limit
from monai_wscxr.data.preprocessing import Preprocessing, RadiographLoader
from monai_wscxr.data.radiograph.base import MEMORY_LIMIT, find_radiograph_error
from monai_wscxr.data.radiograph.read import read_radiograph
from monai_wscxr.label.archive.studies import Refused
from monai_wscxr.system.threads import single_threaded
from monai_wscxr.system.workers import WorkerLostError, WorkerPool

T = TypeVar("T")

LARGEST_QUEUE = 16
"""Requests that may wait for a worker; more are refused, so that threads are left for requests that need none."""
PRELOAD = ("monai_wscxr.label.decoding", "monai_wscxr.label.results")
"""Modules that workers import."""

_load: Callable[[Any], Any] | None = None


class Decoders:
    """Worker processes that read images: some for the archive, one for uploads. They start when they are first needed.

    Args:
        preprocessing: steps from file to network input.
        allow: names of the reader's gates that are switched off.
    """

    def __init__(self, preprocessing: Preprocessing, allow: Collection[str] = ()) -> None:
        def pool(workers: int) -> WorkerPool:
            return WorkerPool(workers, _prepare, (preprocessing, sorted(allow)), SECONDS, MEMORY_LIMIT, PRELOAD)

        self._archive, self._uploads = pool(min(2, os.cpu_count() or 1)), pool(1)
        self._places = threading.BoundedSemaphore(LARGEST_QUEUE)

    def start(self) -> None:
        """Start all processes now and wait for them, so that no request has to.

        Raises:
            InputError: when one could not start.
        """
        pools = [self._archive] * self._archive.workers + [self._uploads]
        for ready in [pool.submit(_is_ready) for pool in pools]:
            ready.result()

    def close(self) -> None:
        """End all processes."""
        self._archive.close()
        self._uploads.close()

    def transform(self, item: dict[str, Any]) -> dict[str, Any]:
        """Load an item of the archive for the network: replace its path under `image` by the network input, float32 [3, S, S].

        Raises:
            RadiographError: when the file cannot be used.
        """
        file = str(item["image"])
        return {**item, "image": _result(self._archive, file, network_input, (file,), False)}

    def archive(self, file: os.PathLike[str], function: Callable[..., T], *arguments: Any) -> T:
        """Call a function that reads an image of the archive, before all scoring; arguments as of `upload`."""
        return self._requested(self._archive, file, function, arguments)

    def upload(self, file: os.PathLike[str], function: Callable[..., T], *arguments: Any) -> T:
        """Call a function that reads an uploaded image.

        Args:
            file: the image, whose size decides on the time limit.
            function, arguments: the call; picklable, as is the result.

        Raises:
            RadiographError: with code "crashed" or "too_slow", when the worker died or reached its time limit.
            Refused: with reason "busy", when too many requests are waiting; all that the function raises.
        """
        return self._requested(self._uploads, file, function, arguments)

    def _requested(
        self, pool: WorkerPool, file: os.PathLike[str], function: Callable[..., T], arguments: tuple[Any, ...]
    ) -> T:
        if not self._places.acquire(blocking=False):
            raise Refused("busy", "too many images are being read at the moment; try again in a few seconds")
        try:
            return _result(pool, file, function, arguments, True)
        finally:
            self._places.release()


def network_input(file: str) -> NDArray[np.float32]:
    """Return the network input [3, S, S] of an image; to be called in a worker.

    Raises:
        RadiographError: when the file cannot be used.
    """
    assert _load is not None
    try:
        array: NDArray[np.float32] = _load({"image": file})["image"]
    except Exception as error:
        raise find_radiograph_error(error) or error from None
    return array


def image_size(file: str, allow: Collection[str]) -> tuple[int, int]:
    """Return width and height of an image in pixels; to be called in a worker.

    Raises:
        RadiographError: when the file cannot be used.
    """
    height, width = read_radiograph(file, allow=allow).image.shape
    return width, height


def _is_ready() -> bool:
    """Return True, as the first task of a worker."""
    return True


def _prepare(preprocessing: Preprocessing, allow: Collection[str]) -> None:
    """Initialise a worker process."""
    global _load
    single_threaded()
    _load = RadiographLoader(preprocessing, allow=allow)


def _result(
    pool: WorkerPool,
    file: str | os.PathLike[str],
    function: Callable[..., T],
    arguments: tuple[Any, ...],
    urgent: bool,
) -> T:
    """Call a function in a worker and wait for its result."""
    limit = time_limit(file)
    try:
        result: T = pool.submit(function, *arguments, urgent=urgent, seconds=limit).result()
    except WorkerLostError as lost:
        raise lost_error(lost, limit) from None
    return result
