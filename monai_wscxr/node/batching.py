"""Scoring of single images for many callers at once, with a bounded number of them."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from monai_wscxr.data.radiograph.base import RadiographError
from monai_wscxr.prediction.scoring import Score, Scorer

_RECENT = 1000


class Batcher:
    """Passes images of several callers through the network together, as soon as they have been read.

    Args:
        scorer: model and workers.
        places: images that may be under way at a time; more are refused.
        batch_size: images per pass of the network.

    Attributes:
        outcomes: JSON values of the last scored images, see `Score.outcome`.
        seconds: times from the submission to the score of the last images.
        counts: numbers of images by "ok" or reason code, since the start.
    """

    def __init__(self, scorer: Scorer, places: int = 32, batch_size: int = 8) -> None:
        self.scorer, self.places, self.batch_size = scorer, places, batch_size
        self.outcomes: deque[Mapping[str, Any]] = deque(maxlen=_RECENT)
        self.seconds: deque[float] = deque(maxlen=_RECENT)
        self.counts: Counter[str] = Counter()
        self._taken = 0
        self._lock = threading.Lock()
        self._read: queue.Queue[tuple[str, Future[Any], Future[Score | RadiographError], float] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether images are still scored."""
        return self._thread.is_alive()

    @property
    def taken(self) -> int:
        """Number of images under way."""
        return self._taken

    def take(self, count: int) -> bool:
        """Take places for images; return whether there were enough."""
        with self._lock:
            if not self.alive or self._taken + count > self.places:
                return False
            self._taken += count
            return True

    def give_back(self, count: int) -> None:
        """Give places back."""
        with self._lock:
            self._taken -= count

    def wait_seconds(self) -> int:
        """Estimate when a refused caller should come again, in whole seconds from 1 to 60."""
        recent = list(self.seconds)[-20:]
        return max(1, min(60, round(sum(recent) / len(recent)) if recent else 1))

    def submit(self, path: str) -> Future[Score | RadiographError]:
        """Score a file, for which a place was taken."""
        scored: Future[Score | RadiographError] = Future()
        began = time.monotonic()
        reading = self.scorer.read(path)
        reading.add_done_callback(lambda done: self._read.put((path, done, scored, began)))
        return scored

    def close(self) -> None:
        """Score no more images."""
        self._read.put(None)
        self._thread.join(30)

    def _run(self) -> None:
        while True:
            first = self._read.get()
            if first is None:
                return
            batch = [first]
            while len(batch) < self.batch_size:
                try:
                    following = self._read.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    self._read.put(None)
                    break
                batch.append(following)
            try:
                images = [self.scorer.loaded(path, reading) for path, reading, _, _ in batch]
                found = self.scorer.score(images, "an image")
            except BaseException as error:
                for _, _, scored, _ in batch:
                    scored.set_exception(error)
                raise
            for (_, _, scored, began), score in zip(batch, found, strict=True):
                self._note(score, time.monotonic() - began)
                scored.set_result(score)

    def _note(self, score: Score | RadiographError, seconds: float) -> None:
        self.seconds.append(seconds)
        if isinstance(score, Score):
            self.counts["ok"] += 1
            self.outcomes.append(score.outcome)
        else:
            self.counts[score.code] += 1
