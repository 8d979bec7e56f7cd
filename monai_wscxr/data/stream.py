"""A stream of loaded datalist items that skips, and lists, what cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset, IterableDataset

from monai_wscxr.data.radiograph.read import RadiographError
from monai_wscxr.system.progress import ahead

T = TypeVar("T")
R = TypeVar("R")
Rejected = tuple[str, str, str]


class RadiographStream(IterableDataset):
    """Items with their images loaded, in order; decoding runs ahead in threads.

    Args:
        items: datalist items; `image` is the path. The path stays under `file`.
        transform: loads an item, for instance `radiograph_transforms(...)`.
        threads: that decode.
        depth: items decoded ahead.
        workers: processes that decode in place of the threads; 0 for none.

    Attributes:
        rejected: (file, reason code, message) of the items that were skipped in the latest pass.
    """

    def __init__(
        self,
        items: Sequence[dict[str, Any]],
        transform: Callable[[dict], dict],
        threads: int = 2,
        depth: int = 32,
        workers: int = 0,
    ) -> None:
        self.items, self.transform = list(items), transform
        self.threads, self.depth, self.workers = threads, depth, workers
        self.rejected: list[Rejected] = []

    def __len__(self) -> int:
        return len(self.items)

    def _load(self, item: dict[str, Any]) -> dict[str, Any] | RadiographError:
        try:
            return self.transform({**item, "file": str(item["image"])})
        except Exception as error:
            cause: BaseException | None = error  # MONAI's Compose wraps what a transform raises
            while cause is not None and not isinstance(cause, RadiographError):
                cause = cause.__cause__
            if cause is None:
                raise
            return cause

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.rejected.clear()
        if self.workers:
            results: Iterable[Any] = _in_processes(_Loading(self), self.workers, self.depth)
        else:
            results = ahead(self._load, self.items, self.threads, self.depth)
        for item, loaded in zip(self.items, results, strict=True):
            if isinstance(loaded, RadiographError):
                self.rejected.append((str(item["image"]), loaded.code, str(loaded)))
            else:
                yield loaded


class _Loading(Dataset):
    """The items of a stream by number, for worker processes."""

    def __init__(self, stream: RadiographStream) -> None:
        self.stream = stream

    def __len__(self) -> int:
        return len(self.stream.items)

    def __getitem__(self, index: int) -> dict[str, Any] | RadiographError:
        return self.stream._load(self.stream.items[index])


def _in_processes(dataset: Dataset, workers: int, depth: int) -> DataLoader:
    # a fork of a process with threads may inherit locks that nobody opens any more
    return DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=max(1, -(-depth // workers)),
        multiprocessing_context="forkserver",
        collate_fn=_as_it_is,
    )


def _as_it_is(item: Any) -> Any:
    return item
