"""Stopping a run cleanly on SIGTERM (schedulers, `kill`) or SIGINT (Ctrl-C), with the command that resumes it."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from pathlib import Path
from types import FrameType

STOPPED = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, the same command resumes the run


class StoppedError(SystemExit):
    """Ends the run like `SystemExit`: temporary files are removed and threads end, and `except Exception` does not catch it."""


def stop_cleanly() -> None:
    """Let SIGTERM and SIGINT end this process with the exit status `STOPPED` and print the command that resumes the run.

    Among processes that torchrun started, this concerns rank 0 only; the others end at once, so that rank 0 does not wait for
    them. A second signal ends the process as if there were no handler.
    """
    if int(os.environ.get("RANK", "0")) > 0:
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)


def resume_command() -> str:
    """Return the shell command that started this run, including the change to its folder."""
    arguments = sys.orig_argv
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun's command, not that of one of its workers
        arguments = _command_line(os.getppid()) or arguments
    return f"cd {shlex.quote(os.getcwd())} && {shlex.join(arguments)}"


def _stop(number: int, frame: FrameType | None) -> None:
    for again in (signal.SIGTERM, signal.SIGINT):
        signal.signal(again, signal.SIG_DFL)
    name = signal.Signals(number).name
    text = f"\nstopped by {name}; everything finished so far is kept. Resume with:\n  {resume_command()}\n"
    # not through sys.stderr: the signal may have interrupted a write to it
    os.write(2, text.encode())
    raise StoppedError(STOPPED)


def _command_line(process: int) -> list[str]:
    """Return the arguments of a process, or an empty list where they cannot be read."""
    try:
        return [part.decode() for part in Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")[:-1]]
    except OSError:
        return []
