"""Stream of loaded datalist items that skips and lists the files that cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset, IterableDataset

from monai_wscxr.data.datalist import Item
from monai_wscxr.data.radiograph.base import RadiographError, find_radiograph_error
from monai_wscxr.system.progress import ahead

Rejected = tuple[str, str, str]
"""File, reason code and message of a file that cannot be used; the message does not name the file."""


class RadiographStream(IterableDataset[Item]):
    """Items in order with their images loaded; threads or processes decode ahead.

    Args:
        items: datalist items; `image` is the path, which the loaded item keeps as `file`.
        transform: loads an item, for instance `radiograph_transforms(...)`.
        threads: number of decoding threads, at least 1.
        depth: number of items decoded ahead.
        workers: number of processes that decode instead of the threads; 0 for none.

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
        results: Iterable[Item | RadiographError]
        if self.workers:
            results = _in_processes(_LoadedItems(self), self.workers, self.depth)
        else:
            results = ahead(self.load, self.items, self.threads, self.depth)
        for item, loaded in zip(self.items, results, strict=True):
            if isinstance(loaded, RadiographError):
                self.rejected.append((str(item["image"]), loaded.code, loaded.message))
            else:
                yield loaded

    def load(self, item: Item) -> Item | RadiographError:
        """Load one item, or return the error of a file that cannot be used."""
        try:
            return self.transform({**item, "file": str(item["image"])})
        except Exception as error:
            found = find_radiograph_error(error)
            if found is None:
                raise
            return found


class _LoadedItems(Dataset[Any]):
    """Loaded items of a stream by number, for worker processes."""

    def __init__(self, stream: RadiographStream) -> None:
        self.stream = stream

    def __len__(self) -> int:
        return len(self.stream.items)

    def __getitem__(self, index: int) -> Item | RadiographError:
        return self.stream.load(self.stream.items[index])


def _in_processes(items: _LoadedItems, workers: int, depth: int) -> DataLoader[Any]:
    return DataLoader(
        items,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=max(1, -(-depth // workers)),
        multiprocessing_context="forkserver",  # a fork would copy locks that threads of this process hold
        collate_fn=_unchanged,
    )


def _unchanged(item: Any) -> Any:
    return item
