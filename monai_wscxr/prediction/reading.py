"""Images read ahead of the network, in batches that depend on the list of inputs only.

Which inputs are already done does not change the batches, so a resumed run gives the results of an uninterrupted one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future

from monai_wscxr.data.isolation import lost_error, time_limit
from monai_wscxr.data.radiograph.read import RadiographError
from monai_wscxr.prediction import tasks
from monai_wscxr.prediction.inputs import Input
from monai_wscxr.prediction.tasks import Loaded
from monai_wscxr.system.workers import WorkerLostError, WorkerPool

_AHEAD = 3  # batches that are read ahead of the network

Found = dict[int, Loaded | RadiographError]


class Reader:
    """Let worker processes read images and collect the results.

    Args:
        pool: worker processes, initialised by `tasks.prepare`.
        inputs: all inputs of the run.
        batch_size: images per batch.
        seconds: time limit for reading a file, in seconds; one second more per MiB.
    """

    def __init__(self, pool: WorkerPool, inputs: Sequence[Input], batch_size: int, seconds: float) -> None:
        self.pool, self.inputs, self.batch_size, self.seconds = pool, inputs, batch_size, seconds

    def batches(self, pending: Sequence[int]) -> Iterator[tuple[range, Found]]:
        """Yield the batches with pending inputs: numbers of all inputs of the batch, and image or error of the pending ones."""
        size, total, todo = self.batch_size, len(self.inputs), set(pending)
        waiting: deque[tuple[range, dict[int, Future[Loaded] | None]]] = deque()
        for numbers in (range(first, min(first + size, total)) for first in range(0, total, size)):
            futures = {n: self._submit(self.inputs[n]) for n in numbers if n in todo}
            if futures:
                waiting.append((numbers, futures))
            if len(waiting) >= _AHEAD:
                yield self._collect(*waiting.popleft())
        while waiting:
            yield self._collect(*waiting.popleft())

    def _submit(self, item: Input) -> Future[Loaded] | None:
        """Start reading an input; None for an input that is rejected without being read."""
        if item.problem is not None:
            return None
        return self.pool.submit(tasks.read, item.path, seconds=time_limit(item.path, self.seconds))

    def _collect(self, numbers: range, futures: dict[int, Future[Loaded] | None]) -> tuple[range, Found]:
        """Wait for the images of a batch."""
        return numbers, {n: self._result(self.inputs[n], future) for n, future in futures.items()}

    def _result(self, item: Input, future: Future[Loaded] | None) -> Loaded | RadiographError:
        """Wait for one image; returns the image, or the reason why it cannot be used."""
        if future is None:
            code, message = item.problem or ("unreadable", "")
            return RadiographError(code, message)
        try:
            return future.result()
        except RadiographError as error:
            return error
        except WorkerLostError as lost:
            limit = time_limit(item.path, self.seconds)
            return lost_error(lost, limit, "Export it again, or raise --seconds.")
