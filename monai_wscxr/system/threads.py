"""Threads of operations inside worker threads and processes."""

from __future__ import annotations

import os
import sys

ONE_THREAD_PRODUCT = 1 << 18
"""Multiplications of a matrix product up to which OpenBLAS, NumPy's library, computes on the calling thread.

Above, it wakes further threads, which then wait for more work for 20 ms, at full load: far longer than the product takes.
"""


def single_threaded() -> None:
    """Let torch compute in one thread for the calling thread and those it starts; does nothing where it is not imported.

    To be called first in threads and processes that work side by side: threads inside their operations would wait for each
    other.
    """
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)


def usable_cores() -> int:
    """Return how many cores this process may use: OMP_NUM_THREADS if that is set, otherwise what the system grants it."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
