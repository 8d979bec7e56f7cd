"""Memory that was freed goes back to the system."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable

_M_MMAP_THRESHOLD = -3  # malloc.h


def _find_trim() -> Callable[[int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        return ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):  # another C library than glibc, which gives memory back by itself
        return None


_trim = _find_trim()


def give_back() -> None:
    """Return freed memory to the system; call it after a batch of images or a shard.

    glibc keeps what threads have freed in heaps of their own. With activations of changing sizes these grow to several times
    what is in use: an evaluation of 500 images held up to 0.7 GB that way.
    """
    if _trim is not None:
        _trim(0)


def give_back_large_blocks() -> None:
    """Make the C library return freed blocks of 4 MiB or more to the system at once (glibc; elsewhere nothing happens).

    It keeps them for reuse otherwise, up to 32 MiB each. But an aligned block never fits the hole that one of the same size
    left, so with small results between large temporaries a pass over a bank would come to hold as much as the bank.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(_M_MMAP_THRESHOLD, 4 << 20)
