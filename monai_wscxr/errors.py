"""Errors that the person at the keyboard can mend, and how a command shows them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType


class InputError(ValueError):
    """Something that came in (an option, a file, a folder) cannot be used; the message says what, why and the way out."""


def find_input_error(error: BaseException | None) -> InputError | None:
    """The first `InputError` on the chain of causes of `error`, if there is one."""
    while error is not None:
        if isinstance(error, InputError):
            return error
        error = error.__cause__ or error.__context__
    return None


def show_input_errors_plainly(explain: Callable[[BaseException], InputError | None] = find_input_error) -> None:
    """Let an `InputError` end the command with its message alone instead of a stack trace; other errors keep theirs.

    Args:
        explain: finds the error to show on the chain of causes of another one; None leaves the stack trace.

    MONAI wraps whatever a configuration raises, so the sentence that helps would otherwise drown in two stack traces.
    """
    inherited = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        mendable = explain(error)
        if mendable is None:
            inherited(kind, error, trace)
            return
        sys.stdout.flush()
        print(f"\nerror: {mendable}", file=sys.stderr)

    sys.excepthook = hook
