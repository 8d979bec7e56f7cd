"""How the C library keeps the memory that was freed: for reuse while a network runs, back to the system otherwise (glibc).

Elsewhere than on Linux with glibc nothing here has an effect; other C libraries need none of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
from collections.abc import Iterator

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGE = 4 << 20  # blocks that go back at once, outside of `reused`
_LARGEST = 32 << 20  # the most that glibc takes for it


def _find_library() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        library = ctypes.CDLL("libc.so.6")
        _ = library.malloc_trim, library.mallopt
    except (OSError, AttributeError):  # another C library than glibc, which gives memory back by itself
        return None
    return library


_library = _find_library()
_lock = threading.Lock()
_users = 0


def give_back() -> None:
    """Return freed memory to the system; call it after a stage that used much.

    glibc keeps what threads have freed in heaps of their own. With activations of changing sizes these grow to several times
    what is in use: an evaluation of 500 images held up to 0.7 GB that way.
    """
    if _library is not None:
        _library.malloc_trim(0)


def give_back_large_blocks() -> None:
    """Make the C library return freed blocks of 4 MiB or more to the system at once, outside of `reused`.

    It keeps them for reuse otherwise, up to 32 MiB each. But an aligned block never fits the hole that one of the same size
    left, so with small results between large temporaries a pass over a bank would come to hold as much as the bank.
    """
    with _lock:
        if _library is not None and not _users:
            _library.mallopt(_MMAP_THRESHOLD, _LARGE)


@contextlib.contextmanager
def reused() -> Iterator[None]:
    """While this lasts freed memory stays with the process; afterwards it goes back to the system.

    For a network that runs over many images: its activations of some megabytes are freed and needed again a moment later,
    and clearing the pages of new ones would take a quarter of the processor time. Holds for the whole process; threads may
    enter and leave as they like.
    """
    global _users
    with _lock:
        _users += 1
        if _library is not None and _users == 1:
            _library.mallopt(_MMAP_THRESHOLD, _LARGEST)
            _library.mallopt(_TRIM_THRESHOLD, 1 << 30)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _library is not None and not _users:
                _library.mallopt(_MMAP_THRESHOLD, _LARGE)
                _library.mallopt(_TRIM_THRESHOLD, 2 * _LARGE)
        give_back()
