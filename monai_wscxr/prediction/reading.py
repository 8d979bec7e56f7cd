"""Reading ahead of the network: batches that follow from the list of inputs alone, whatever is already done."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future

from monai_wscxr.data.radiograph.read import RadiographError
from monai_wscxr.prediction import tasks
from monai_wscxr.prediction.inputs import Input
from monai_wscxr.prediction.tasks import Loaded
from monai_wscxr.prediction.workers import WorkerLostError, WorkerPool

_SECONDS_PER_MEBIBYTE = 1.0
_AHEAD = 3  # batches that are read ahead of the network

Found = dict[int, Loaded | RadiographError]


class Reader:
    """Asks worker processes for images and collects what became of them.

    Args:
        pool: of workers that `tasks.prepare` set up.
        inputs: of the run.
        batch_size: images per batch.
        seconds: allowed for reading a small file; one more per MiB.
    """

    def __init__(self, pool: WorkerPool, inputs: Sequence[Input], batch_size: int, seconds: float) -> None:
        self.pool, self.inputs, self.batch_size, self.seconds = pool, inputs, batch_size, seconds

    def batches(self, pending: Sequence[int]) -> Iterator[tuple[range, Found]]:
        """Batches in which something is to be done, with what reading gave for their pending inputs."""
        size, total, todo = self.batch_size, len(self.inputs), set(pending)
        waiting: deque[tuple[range, dict[int, Future[Loaded] | None]]] = deque()
        for numbers in (range(first, min(first + size, total)) for first in range(0, total, size)):
            asked = {n: self._ask(self.inputs[n]) for n in numbers if n in todo}
            if asked:
                waiting.append((numbers, asked))
            if len(waiting) >= _AHEAD:
                yield self._collect(*waiting.popleft())
        while waiting:
            yield self._collect(*waiting.popleft())

    def _ask(self, item: Input) -> Future[Loaded] | None:
        """None for an input that is rejected without being read."""
        if item.problem is not None:
            return None
        return self.pool.submit(tasks.read, item.path, seconds=self._allowed(item))

    def _allowed(self, item: Input) -> float:
        try:
            mebibytes = os.path.getsize(item.path) / 2**20
        except (OSError, ValueError):
            mebibytes = 0.0
        return self.seconds + mebibytes * _SECONDS_PER_MEBIBYTE

    def _collect(self, numbers: range, asked: dict[int, Future[Loaded] | None]) -> tuple[range, Found]:
        return numbers, {n: self._result(self.inputs[n], future) for n, future in asked.items()}

    def _result(self, item: Input, future: Future[Loaded] | None) -> Loaded | RadiographError:
        if future is None:
            code, message = item.problem or ("unreadable", "")
            return RadiographError(code, message)
        try:
            return future.result()
        except RadiographError as error:
            return error
        except WorkerLostError as lost:
            if not lost.too_slow:
                return RadiographError("crashed", "a decoding library crashed on it. Export or copy it again.")
            message = f"reading it took longer than {self._allowed(item):.0f} s. Export it again, or raise --seconds."
            return RadiographError("too_slow", message)
