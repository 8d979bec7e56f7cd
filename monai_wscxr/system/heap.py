"""Control of freed memory in glibc: kept for reuse while a network runs, returned to the system otherwise.

These functions have an effect only on Linux with glibc; other C libraries do not need them.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
from collections.abc import Iterator

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGE = 4 << 20  # bytes; larger blocks return to the system at once, outside of `reused`
_LARGEST = 32 << 20  # the largest threshold that glibc accepts


def _find_library() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        library = ctypes.CDLL("libc.so.6")
        _ = library.malloc_trim, library.mallopt
    except (OSError, AttributeError):  # not glibc
        return None
    return library


_library = _find_library()
_lock = threading.Lock()
_users = 0


def give_back() -> None:
    """Return freed memory to the system; to be called after a stage that used much of it.

    glibc keeps freed memory in one heap per thread. With activations of changing sizes the heaps grow to several times the
    memory in use: an evaluation of 500 images held up to 0.7 GB that way.
    """
    if _library is not None:
        _library.malloc_trim(0)


def give_back_large_blocks() -> None:
    """Make the C library return freed blocks of 4 MiB or more to the system at once, outside of `reused`.

    By default it keeps blocks of up to 32 MiB for reuse. An aligned block, however, does not fit the gap that a block of the
    same size left, so a pass over a bank that keeps small results between large temporaries would come to hold as much memory
    as the bank.
    """
    with _lock:
        if _library is not None and not _users:
            _library.mallopt(_MMAP_THRESHOLD, _LARGE)


@contextlib.contextmanager
def reused() -> Iterator[None]:
    """Keep freed memory in the process during this context, and return it to the system afterwards.

    Meant for running a network over many images: its activations of some megabytes are freed and allocated again a moment
    later, and clearing new pages for them would take a quarter of the processor time. It applies to the whole process; several
    threads may be in the context at a time.
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
