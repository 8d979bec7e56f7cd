"""`python -m monai_wscxr`: the same as the command `monai-wscxr`. Nothing is imported before Ctrl-C is handled."""

import os
import signal
from types import FrameType

INTERRUPTED = 130  # as in `commands.exit_status`


class Interrupt:
    """Handler of SIGINT (Ctrl-C): raises KeyboardInterrupt while a command works, and ends the process at once otherwise.

    During an import the process ends at once, too: libraries that are interrupted there print stack traces, or turn
    KeyboardInterrupt into other errors.

    Attributes:
        working: whether a command runs.
    """

    def __init__(self) -> None:
        self.working = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle the signal in the main thread, which was executing `frame`."""
        if self.working and not _importing(frame):
            raise KeyboardInterrupt
        os.write(2, b"interrupted\n")
        os._exit(INTERRUPTED)


def _importing(frame: FrameType | None) -> bool:
    """Return whether an import is in progress in a frame or one of its callers."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def main() -> None:
    """Run the program `monai-wscxr`."""
    interrupt = Interrupt()
    signal.signal(signal.SIGINT, interrupt)
    from monai_wscxr.commands.main import main as run

    interrupt.working = True
    try:
        run()
    finally:
        interrupt.working = False


if __name__ == "__main__":
    main()
