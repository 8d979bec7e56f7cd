"""Scoring of the queue: images are read ahead of the network, and results are written behind it."""

from __future__ import annotations

import logging
import threading
from collections import deque
from concurrent.futures import Future
from typing import Any

from monai_wscxr.data.radiograph.base import RadiographError
from monai_wscxr.node import results
from monai_wscxr.node.items import Item
from monai_wscxr.node.queue import Queue
from monai_wscxr.prediction.scoring import Score, Scorer
from monai_wscxr.prediction.tasks import Loaded
from monai_wscxr.system.atomic import is_disk_full
from monai_wscxr.system.workers import WorkerLostError

logger = logging.getLogger("monai_wscxr.node")

ALONE_AFTER = 2
"""Tries after which an image is scored alone, so that one which ends the process does not take others with it."""
MOST_TRIES = 10
"""Tries after which an image is given up: the process has ended that often while it was scored."""
_AHEAD = 2  # batches being read
_DISK_SECONDS = 10.0

Reading = list[tuple[Item, "Future[Loaded]"]]
Writing = list[tuple[Item, "Score | RadiographError", "Future[Any]"]]


class QueueScorer:
    """Scores the images of a queue until it is stopped.

    Args:
        queue: the queue.
        scorer: model and workers.
        batch_size: images per pass of the network, at least 1.
    """

    def __init__(self, queue: Queue, scorer: Scorer, batch_size: int = 8) -> None:
        self.queue, self.scorer, self.batch_size = queue, scorer, batch_size
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Take no more images; `run` ends when those under way are done."""
        self._stopped.set()
        self.queue.wake()

    def run(self) -> None:
        """Score images as they come."""
        reading: deque[Reading] = deque()
        writing: deque[Writing] = deque()
        while True:
            while not self._stopped.is_set() and len(reading) < _AHEAD:
                busy = [item.number for batch in reading for item, _ in batch]
                busy += [item.number for batch in writing for item, _, _ in batch]
                if not (following := self._begin(busy)):
                    break
                reading.append(following)
            if reading:
                writing.append(self._score(reading.popleft()))
            while writing and (len(writing) > 1 or not reading):
                self._finish(writing.popleft())
            if not reading and not writing:
                if self._stopped.is_set():
                    return
                self.queue.wait(("received",), 1.0)

    def _begin(self, busy: list[int]) -> Reading:
        """Begin to read the next images; one that was tried often without an end is read alone."""
        items = self.queue.to_score(self.batch_size, busy)
        troubled = next((n for n, item in enumerate(items) if item.tries >= ALONE_AFTER), None)
        if troubled is not None:
            items = items[: max(troubled, 1)]
        self.queue.trying(items)
        found = []
        for item in items:
            if item.tries >= MOST_TRIES:
                self.queue.error("crashed", "the node ended whenever it scored this image", item.id)
                self.queue.scored(item, [], {}, "crashed")
                continue
            found.append((item, self.scorer.read(str(self.queue.image(item)))))
        return found

    def _score(self, batch: Reading) -> Writing:
        """Pass a batch through the network and begin to write the results."""
        images = [self.scorer.loaded(str(self.queue.image(item)), future) for item, future in batch]
        done: Writing = []
        for (item, _), score in zip(batch, self.scorer.score(images, "an image of the queue"), strict=True):
            folder, path = str(self.queue.results), str(self.queue.image(item))
            if isinstance(score, Score):
                task = self.scorer.submit(results.write_results, folder, item.id, path, score, item.received)
            else:
                task = self._refuse(item, score.code)
            done.append((item, score, task))
        return done

    def _refuse(self, item: Item, code: str) -> Future[Any]:
        """Begin to write the report that says why an image has no score."""
        folder, path, model = str(self.queue.results), str(self.queue.image(item)), self.scorer.model.sha256
        arguments = (folder, item.id, path, code, item.digest, model, item.received)
        return self.scorer.submit(results.write_refusal, *arguments, seconds=self.scorer.seconds)

    def _finish(self, done: Writing) -> None:
        """Wait for the results of a batch and note the outcomes."""
        for item, score, task in done:
            outcome = score.outcome if isinstance(score, Score) else {}
            reason = "" if isinstance(score, Score) else score.code
            try:
                written = task.result()
            except WorkerLostError:
                written = "crashed", "a library crashed while the results were written"
            except OSError as error:
                self._not_written(item, error)
                continue
            if not isinstance(written, tuple):
                self.queue.scored(item, written, outcome, reason)
                logger.info("scored %s: %s", item.id, reason or ("flagged" if outcome["abnormal"] else "not flagged"))
                continue
            # results cannot refer to the image, so the reason stays here
            code, message = written
            self.queue.error(reason or code, f"no results for the archive: {message}", item.id)
            self.queue.scored(item, [], outcome, reason or code)
            logger.warning("no results for %s: %s", item.id, reason or code)

    def _not_written(self, item: Item, error: OSError) -> None:
        """Leave an image whose results could not be written for later, and wait a while."""
        self.queue.not_tried(item)
        reason = "disk_full" if is_disk_full(error) else "disk_error"
        self.queue.error(reason, "results could not be written to the folder of the queue", item.id)
        logger.error("results of %s could not be written: %s", item.id, reason)
        self._stopped.wait(_DISK_SECONDS)
