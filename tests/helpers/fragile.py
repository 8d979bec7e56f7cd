"""Functions for worker processes that crash on some files. Nothing here imports torch, for which a task has no time."""

import multiprocessing
import os
import signal
from pathlib import Path

from monai_wscxr.data import duplicates, isolation

decode, digest_of = isolation.decode, duplicates._pixel_digest


def crash_on_bad(file):
    """Crash on some files, and never in this process."""
    if Path(file).name.startswith("bad"):
        assert multiprocessing.parent_process() is not None
        os.kill(os.getpid(), signal.SIGSEGV)


def fragile_decode(file):
    crash_on_bad(file)
    decode(file)


def fragile_digest(file):
    crash_on_bad(file)
    return digest_of(file)


def killed(file):
    os.kill(os.getpid(), signal.SIGKILL)
