"""Progress bars, and work done ahead of its use in threads."""

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
    """A bar over images; in a log file it writes a line every 15 seconds instead of redrawing."""
    return tqdm(
        total=total, desc=what, unit="image", disable=not shown, mininterval=0.1 if sys.stderr.isatty() else 15.0
    )


def ahead(function: Callable[[T], R], items: Iterable[T], threads: int, depth: int) -> Iterator[R]:
    """`map` with `threads` threads that run at most `depth` items ahead; results come in order.

    After an error, or when no more results are asked for, what has not begun is not begun any more.
    """
    # each thread computes alone: threads of operations inside it would wait for each other
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
