"""Stream of loaded datalist items that skips and lists the files that cannot be used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset

from monai_wscxr.data.datalist import Item
from monai_wscxr.data.isolation import PRELOAD, SECONDS, lost_error, single_threaded, time_limit
from monai_wscxr.data.radiograph.base import MEMORY_LIMIT, RadiographError, find_radiograph_error
from monai_wscxr.system.progress import ahead
from monai_wscxr.system.workers import WorkerLostError, WorkerPool

Rejected = tuple[str, str, str]
"""File, reason code and message of a file that cannot be used; the message does not name the file."""


class RadiographStream(IterableDataset[Item]):
    """Items in order with their images loaded; threads or processes decode ahead.

    Args:
        items: datalist items; `image` is the path, which the loaded item keeps as `file`.
        transform: loads an item, for instance a `RadiographLoader`.
        threads: number of decoding threads, at least 1.
        depth: number of items decoded ahead.
        workers: number of processes that decode instead of the threads, with limits on memory and time; 0 for none. A file on
            which a decoder crashes, or for which it needs too long, is then one of the rejected.

    Attributes:
        rejected: the items that the latest pass skipped.
    """

    def __init__(
        self,
        items: Sequence[Item],
        transform: Callable[[Item], Item],
        threads: int = 2,
        depth: int = 32,
        workers: int = 0,
    ) -> None:
        self.items, self.transform = list(items), transform
        self.threads, self.depth, self.workers = threads, depth, workers
        self.rejected: list[Rejected] = []

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Item]:
        self.rejected.clear()
        results = _in_workers(self) if self.workers else ahead(self.load, self.items, self.threads, self.depth)
        for item, loaded in zip(self.items, results, strict=True):
            if isinstance(loaded, RadiographError):
                self.rejected.append((str(item["image"]), loaded.code, loaded.message))
            else:
                yield loaded

    def load(self, item: Item) -> Item | RadiographError:
        """Load one item, or return the error of a file that cannot be used."""
        return _load(self.transform, item)


def _load(transform: Callable[[Item], Item], item: Item) -> Item | RadiographError:
    try:
        return transform({**item, "file": str(item["image"])})
    except Exception as error:
        found = find_radiograph_error(error)
        if found is None:
            raise
        return found


_transform: Callable[[Item], Item] | None = None  # of a worker


def _prepare(transform: Callable[[Item], Item]) -> None:
    """Initialise a worker."""
    global _transform
    single_threaded()
    _transform = transform


def _load_there(item: Item) -> Item | RadiographError:
    """Load an item in a worker; tensors travel as arrays, since torch would send each of them as an open file."""
    assert _transform is not None
    loaded = _load(_transform, item)
    if isinstance(loaded, RadiographError):
        return loaded
    return {key: value.numpy() if isinstance(value, torch.Tensor) else value for key, value in loaded.items()}


def _in_workers(stream: RadiographStream) -> Iterator[Item | RadiographError]:
    """Yield the loaded items of a stream, or their errors, in order."""
    waiting: deque[tuple[Item, Future[Item | RadiographError]]] = deque()

    def result() -> Item | RadiographError:
        item, future = waiting.popleft()
        try:
            loaded = future.result()
        except WorkerLostError as lost:
            return lost_error(lost, time_limit(str(item["image"])))
        if isinstance(loaded, RadiographError):
            return loaded
        tensors = {key: torch.from_numpy(loaded[key]) for key, value in loaded.items() if _is_array(value)}
        return {**loaded, **tensors}

    workers = stream.workers
    with WorkerPool(workers, _prepare, (stream.transform,), SECONDS, MEMORY_LIMIT, PRELOAD) as pool:
        for item in stream.items:
            waiting.append((item, pool.submit(_load_there, item, seconds=time_limit(str(item["image"])))))
            if len(waiting) >= max(stream.depth, workers):
                yield result()
        while waiting:
            yield result()


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)
