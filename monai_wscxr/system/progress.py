"""Progress bars, and computing results in threads before they are needed."""

from __future__ import annotations

import io
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

from monai_wscxr.system.threads import single_threaded

T = TypeVar("T")
R = TypeVar("R")


class PlainBar(tqdm):
    """Progress as plain lines, for a stream that is no terminal: one at the end, and before that at most one per 15 seconds."""

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Write a line if something has been done since the last one."""
        if self.n and self.n != getattr(self, "_shown", 0):
            self._shown = self.n
            of = "" if self.total is None else f" of {self.total:,}"
            took = self.format_interval(self.format_dict["elapsed"])
            self.fp.write(f"{self.desc}: {self.n:,}{of} {self.unit}s, {took}\n")
            self.fp.flush()
        return True

    def close(self) -> None:
        """Write the last line."""
        if not self.disable:
            self.display()
            self.fp, self.leave = io.StringIO(), False  # tqdm would draw its own bar once more, and return the carriage
        super().close()


def progress_bar(total: int, what: str, shown: bool = True, unit: str = "image") -> tqdm:
    """Create a progress bar on stderr; where that is no terminal, it is a few plain lines.

    Args:
        total: number of images, or of other units.
        what: text in front of the bar.
        shown: False creates a bar that shows nothing.
        unit: what is counted, in the singular.
    """
    if sys.stderr.isatty():
        return tqdm(total=total, desc=what, unit=unit, unit_scale=unit == "row", disable=not shown)
    return PlainBar(total=total, desc=what, unit=unit, disable=not shown, mininterval=15.0, miniters=1, file=sys.stderr)


def counted(items: Sequence[T], what: str, shown: bool = True, unit: str = "image") -> Iterator[T]:
    """Yield items in order, and show how many are done; arguments as for `progress_bar`."""
    with progress_bar(len(items), what, shown, unit) as bar:
        for item in items:
            yield item
            bar.update()


def ahead(function: Callable[[T], R], items: Iterable[T], threads: int, depth: int) -> Iterator[R]:
    """Yield `function` of every item in order, computed in threads ahead of their use.

    After an error, or when the generator is closed, items that have not been started are dropped.

    Args:
        function: called in the threads.
        items: consumed in the calling thread, `depth` items ahead.
        threads: number of threads, at least 1.
        depth: largest number of results that are computed or being computed at a time, at least 1.
    """
    with ThreadPoolExecutor(threads, initializer=single_threaded) as pool:
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
