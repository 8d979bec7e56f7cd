"""Memory of the machine and of this process, in bytes."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path


def available_memory() -> int:
    """Return the bytes of memory that can be used without swapping, within the limit of a container."""
    free = _read_table(Path("/proc/meminfo"), "MemAvailable")
    if free is None:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2 if hasattr(os, "sysconf") else 4 << 30
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            used = int(Path("/sys/fs/cgroup/memory.current").read_text())
            free = min(free, max(0, int(limit) - used))
    except (OSError, ValueError):
        pass  # no container, or no limit that can be read
    return free


def resident_memory() -> int:
    """Return the bytes of memory that this process holds now, mapped files included."""
    return _of_this_process("VmRSS")


def peak_memory() -> int:
    """Return the most bytes that this process has held since it started, or since `reset_peak_memory`."""
    return _of_this_process("VmHWM")


def reset_peak_memory() -> None:
    """Restart the measurement of `peak_memory`; only Linux supports it, elsewhere nothing happens."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _of_this_process(key: str) -> int:
    found = _read_table(Path("/proc/self/status"), key)
    if found is not None:
        return found
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _read_table(path: Path, key: str) -> int | None:
    """Return the bytes of an entry "key: N kB" in a table of /proc, or None without such a table or entry."""
    try:
        for line in path.read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
