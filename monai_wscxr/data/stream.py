"""Stream of loaded datalist items that skips and lists the files that cannot be used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

import numpy as np
import torch
from torch.utils.data import IterableDataset

from monai_wscxr.data.datalist import Item
from monai_wscxr.data.isolation import (
    PRELOAD,
    SECONDS,
    load_item,
    load_there,
    lost_error,
    prepare_loading,
    time_limit,
)
from monai_wscxr.data.radiograph.base import MEMORY_LIMIT, RadiographError
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
        """Load one item, or return the error of a file that cannot be used; arrays become tensors."""
        return _with_tensors(load_item(self.transform, item))


def _in_workers(stream: RadiographStream) -> Iterator[Item | RadiographError]:
    """Yield the loaded items of a stream, or their errors, in order."""
    waiting: deque[tuple[Item, Future[Item | RadiographError]]] = deque()

    def result() -> Item | RadiographError:
        item, future = waiting.popleft()
        try:
            loaded = future.result()
        except WorkerLostError as lost:
            return lost_error(lost, time_limit(str(item["image"])))
        return _with_tensors(loaded)

    workers = stream.workers
    with WorkerPool(workers, prepare_loading, (stream.transform,), SECONDS, MEMORY_LIMIT, PRELOAD) as pool:
        for item in stream.items:
            waiting.append((item, pool.submit(load_there, item, seconds=time_limit(str(item["image"])))))
            if len(waiting) >= max(stream.depth, workers):
                yield result()
        while waiting:
            yield result()


def _with_tensors(loaded: Item | RadiographError) -> Item | RadiographError:
    if isinstance(loaded, RadiographError):
        return loaded
    return {key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for key, value in loaded.items()}
