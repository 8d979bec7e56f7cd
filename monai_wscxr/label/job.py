"""Progress of a long-running job."""

from __future__ import annotations

import threading
import time
from typing import Any


class Job:
    """State of the latest of several runs, one at a time; other threads may read it while a run is under way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began = 0.0
        self._state: dict[str, Any] = {"state": "idle", "stage": "", "fraction": 0.0, "seconds": 0.0, "message": ""}

    def begin(self, stage: str) -> bool:
        """Start a run; return False, and change nothing, while another one is under way."""
        with self._lock:
            if self._state["state"] == "running":
                return False
            self._began = time.perf_counter()
            self._state = {"state": "running", "stage": stage, "fraction": 0.0, "seconds": 0.0, "message": ""}
            return True

    def report(self, stage: str, fraction: float) -> None:
        """Record the stage of the run and the share of it that is done, in [0, 1]."""
        with self._lock:
            self._state = {**self._state, "stage": stage, "fraction": fraction}

    def end(self, state: str, message: str = "") -> None:
        """End the run as "done" or "failed"."""
        with self._lock:
            done = 1.0 if state == "done" else self._state["fraction"]
            self._state.update(state=state, stage="", fraction=done, message=message, seconds=self._elapsed())

    def _elapsed(self) -> float:
        return time.perf_counter() - self._began

    def status(self) -> dict[str, Any]:
        """Return {"state": "idle", "running", "done" or "failed", "stage", "fraction", "seconds", "message"}."""
        with self._lock:
            running = self._state["state"] == "running"
            return {**self._state, "seconds": self._elapsed() if running else self._state["seconds"]}
