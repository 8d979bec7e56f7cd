"""Runs that are told to stop: SIGTERM (schedulers, `kill`) and SIGINT (Ctrl-C) end them cleanly, with the way to go on."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from pathlib import Path
from types import FrameType

STOPPED = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, give the same command again


class StoppedError(SystemExit):
    """Unwinds the run, so that temporary files go and threads end; no handler of ordinary errors takes it for one."""


def stop_cleanly() -> None:
    """From now on SIGTERM and SIGINT end this process with status `STOPPED` and print the command that goes on.

    In a process that torchrun started, only rank 0 does so; the others end at once, so that none waits for them. A second
    signal ends the process as if there were no handler.
    """
    if int(os.environ.get("RANK", "0")) > 0:
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)


def resume_command() -> str:
    """The command that started this run, for a shell, with the folder it was given in."""
    arguments = sys.orig_argv
    if "TORCHELASTIC_RUN_ID" in os.environ:  # a worker's command means nothing without torchrun's
        arguments = _command_line(os.getppid()) or arguments
    return f"cd {shlex.quote(os.getcwd())} && {shlex.join(arguments)}"


def _stop(number: int, frame: FrameType | None) -> None:
    for again in (signal.SIGTERM, signal.SIGINT):
        signal.signal(again, signal.SIG_DFL)
    name = signal.Signals(number).name
    text = f"\nstopped by {name}; whatever was finished is kept. Go on with:\n  {resume_command()}\n"
    # past sys.stderr: a handler may have interrupted a write to it
    os.write(2, text.encode())
    raise StoppedError(STOPPED)


def _command_line(process: int) -> list[str]:
    try:
        return [part.decode() for part in Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")[:-1]]
    except OSError:
        return []
