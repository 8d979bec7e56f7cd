"""Errors that the user can correct, and how a command shows them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType

_FULL = ("torch", "torchvision", "monai", "ignite", "timm", "sklearn", "scipy", "safetensors", "fire", "yaml")


class InputError(ValueError):
    """An option, file or folder cannot be used; the message says which one, why, and what to do."""


def find_input_error(error: BaseException | None) -> InputError | None:
    """Return the first `InputError` on the chain of causes of `error`, or None."""
    while error is not None:
        if isinstance(error, InputError):
            return error
        error = error.__cause__ or error.__context__
    return None


def needs_full_package(error: BaseException | None) -> InputError | None:
    """Return the error to show where a package is missing that the extra `full` installs; None for any other error."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in _FULL:
            return InputError(f"This needs {error.name}, which is not installed: pip install 'monai-wscxr[full]'")
        error = error.__cause__ or error.__context__
    return None


def show_input_errors_plainly(explain: Callable[[BaseException], InputError | None] = find_input_error) -> None:
    """Show an uncaught `InputError` as its message alone, without a stack trace; other errors keep theirs.

    MONAI wraps the errors that a configuration raises, so the message would otherwise be buried under two stack traces.

    Args:
        explain: returns the error to show for an uncaught one, or None to leave the stack trace.
    """
    inherited = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        shown = explain(error)
        if shown is None:
            inherited(kind, error, trace)
            return
        sys.stdout.flush()
        print(f"\nerror: {shown}", file=sys.stderr)

    sys.excepthook = hook
