"""What this machine has and what a piece of work takes on it: memory and time."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path


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
