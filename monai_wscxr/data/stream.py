"""A stream of loaded datalist items that skips, and lists, what cannot be read."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from torch.utils.data import IterableDataset

from monai_wscxr.data.radiograph import RadiographError

T = TypeVar("T")
R = TypeVar("R")
Rejected = tuple[str, str, str]


def ahead(function: Callable[[T], R], items: Iterable[T], threads: int, depth: int) -> Iterator[R]:
    """`map` with `threads` threads that run at most `depth` items ahead; results come in order."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class RadiographStream(IterableDataset):
    """Items with their images loaded, in order; decoding runs ahead in threads.

    Args:
        items: datalist items; `image` is the path. The path stays under `file`.
        transform: loads an item, for instance `radiograph_transforms(...)`.
        threads: that decode.
        depth: items decoded ahead.

    Attributes:
        rejected: (file, reason code, message) of the items that were skipped in the latest pass.
    """

    def __init__(
        self, items: Sequence[dict[str, Any]], transform: Callable[[dict], dict], threads: int = 2, depth: int = 32
    ) -> None:
        self.items, self.transform = list(items), transform
        self.threads, self.depth = threads, depth
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
        for item, loaded in zip(self.items, ahead(self._load, self.items, self.threads, self.depth), strict=True):
            if isinstance(loaded, RadiographError):
                self.rejected.append((str(item["image"]), loaded.code, str(loaded)))
            else:
                yield loaded
