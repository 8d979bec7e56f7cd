"""Progress bars, and computing results in threads before they are needed."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from tqdm import tqdm

T = TypeVar("T")
R = TypeVar("R")


def progress_bar(total: int, what: str, shown: bool = True) -> tqdm:
    """Create a progress bar over images on stderr; in a log file it adds a line every 15 seconds.

    Args:
        total: number of images.
        what: text in front of the bar.
        shown: False creates a bar that shows nothing.
    """
    interval = 0.1 if sys.stderr.isatty() else 15.0
    return tqdm(total=total, desc=what, unit="image", disable=not shown, mininterval=interval)


def ahead(function: Callable[[T], R], items: Iterable[T], threads: int, depth: int) -> Iterator[R]:
    """Yield `function` of every item in order, computed in threads ahead of their use.

    After an error, or when the generator is closed, items that have not been started are dropped.

    Args:
        function: called in the threads.
        items: consumed in the calling thread, `depth` items ahead.
        threads: number of threads, at least 1.
        depth: largest number of results that are computed or being computed at a time, at least 1.
    """
    # torch operations in each thread are single-threaded: nested threads would wait for each other
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
