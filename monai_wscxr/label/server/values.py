"""Values in requests: JSON that can be stored and sent back, and errors of a request that is malformed."""

from __future__ import annotations

import json
import math
from typing import Any

from monai_wscxr.errors import InputError

LARGEST_TEXT = 1 << 16  # characters
DEEPEST = 16


class BadRequest(InputError):  # noqa: N818 - reads as a statement where it is raised
    """A malformed request, answered with 422.

    Attributes:
        reason: short code for programs.
    """

    def __init__(self, message: str, reason: str = "invalid") -> None:
        super().__init__(message)
        self.reason = reason


def json_object(text: str | bytes | None, what: str) -> dict[str, Any]:
    """Read a JSON object that can be stored and sent back; empty text is an empty object.

    Args:
        text: the text.
        what: name of the parameter, for messages.

    Raises:
        BadRequest: when the text is too long, not JSON or not an object, or as `check_value`.
    """
    if not text:
        return {}
    if len(text) > LARGEST_TEXT:
        raise BadRequest(f"{what} is longer than {LARGEST_TEXT} characters", "bad_json")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"{what} is not valid JSON", "bad_json") from error
    return check_object(value, what)


def check_object(value: Any, what: str) -> dict[str, Any]:
    """Return a JSON value that must be an object and pass `check_value`.

    Raises:
        BadRequest: when it is or does not.
    """
    if not isinstance(value, dict):
        raise BadRequest(f"{what} must be a JSON object", "bad_json")
    check_value(value, what)
    return value


def check_value(value: Any, what: str) -> None:
    """Check that a JSON value is not nested too deeply and can be sent as JSON again.

    Raises:
        BadRequest: when it holds NaN, an infinite number or half a character (a lone surrogate), or is nested more than
            `DEEPEST` deep.
    """
    pending: list[tuple[Any, int]] = [(value, 0)]
    while pending:
        one, depth = pending.pop()
        if depth > DEEPEST:
            raise BadRequest(f"{what} is nested more than {DEEPEST} deep", "bad_json")
        if isinstance(one, dict):
            pending += [(part, depth + 1) for pair in one.items() for part in pair]
        elif isinstance(one, list | tuple):
            pending += [(part, depth + 1) for part in one]
        elif isinstance(one, str):
            check_text(one, what)
        elif isinstance(one, float) and not math.isfinite(one):
            raise BadRequest(f"{what} holds a number that is not finite", "bad_json")


def check_text(text: str, what: str) -> None:
    """Check that text consists of whole characters.

    Raises:
        BadRequest: when it holds a lone surrogate.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRequest(f"{what} holds half a character (a lone surrogate)", "bad_json") from error
