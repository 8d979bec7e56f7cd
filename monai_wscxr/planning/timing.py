"""Wall and processor time of a call."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass
class Cost:
    """Wall and processor seconds, of one call or per unit."""

    seconds: float
    cpu: float

    def __mul__(self, times: float) -> Cost:
        return Cost(self.seconds * times, self.cpu * times)

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.seconds + other.seconds, self.cpu + other.cpu)


def timed(function: Callable[[], Any], least: float = 0.5, most_runs: int = 20) -> Cost:
    """Measure the median cost of a call, after one call that does not count.

    Args:
        function: what to time.
        least: seconds over which calls are repeated.
        most_runs: largest number of calls.
    """
    function()
    walls: list[float] = []
    cpus: list[float] = []
    began = time.perf_counter()
    while not walls or (time.perf_counter() - began < least and len(walls) < most_runs):
        wall, cpu = time.perf_counter(), time.process_time()
        function()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return Cost(sorted(walls)[len(walls) // 2], sorted(cpus)[len(cpus) // 2])
