"""What this machine has and what a piece of work takes on it: memory and time."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Cost:
    """Wall and processor seconds of something, per unit or in all."""

    seconds: float
    cpu: float

    def __mul__(self, times: float) -> Cost:
        return Cost(self.seconds * times, self.cpu * times)

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.seconds + other.seconds, self.cpu + other.cpu)


def timed(function: Callable[[], Any], least: float = 0.5, most_runs: int = 20) -> Cost:
    """Median cost of a call, over runs that take `least` seconds together; one run before does not count."""
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


def available_memory() -> int:
    """Bytes of memory that can be used without swapping, a container's limit included."""
    free = _from_table(Path("/proc/meminfo"), "MemAvailable")
    if free is None:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2 if hasattr(os, "sysconf") else 4 << 30
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            used = int(Path("/sys/fs/cgroup/memory.current").read_text())
            free = min(free, max(0, int(limit) - used))
    except (OSError, ValueError):
        pass  # no container, or one that does not say
    return free


def resident_memory() -> int:
    """Bytes of memory that this process holds now, mapped files included."""
    return _own("VmRSS")


def peak_memory() -> int:
    """The most that it has held since it started, or since `reset_peak_memory`."""
    return _own("VmHWM")


def reset_peak_memory() -> None:
    """Let `peak_memory` count from here (Linux; elsewhere nothing happens)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _own(key: str) -> int:
    found = _from_table(Path("/proc/self/status"), key)
    if found is not None:
        return found
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _from_table(path: Path, key: str) -> int | None:
    try:
        for line in path.read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
