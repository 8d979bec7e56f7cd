"""Strict JSON: parsing without the extensions of Python's parser, and checks of the parsed values.

`parse_json` refuses what RFC 8259 leaves out or warns of: NaN and Infinity, duplicate keys, numbers beyond the range of
float64 or 64-bit integers, and deep nesting. A check is a function that raises ValueError for a value
that is not allowed; checks of records are made of checks of their fields.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

DEEPEST = 32  # levels of lists and objects
_LONGEST_NUMBER = 400  # characters
_INT64 = 2**63

Check = Callable[[Any, str], None]  # raises ValueError for a value; the second argument names the value


def parse_json(text: str | bytes, deepest: int = DEEPEST) -> Any:
    """Parse strict JSON, in UTF-8 if bytes are given.

    Args:
        text: JSON text.
        deepest: largest number of nested lists and objects.

    Raises:
        ValueError: when the text is not strict JSON.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_refuse_constant
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    level: list[Any] = [value]
    for _ in range(deepest + 1):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += item.values()
            elif isinstance(item, list):
                inner += item
        if not inner:
            return value
        level = inner
    raise ValueError(f"it is nested more than {deepest} levels deep")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r:.60} occurs twice")
    return values


def _integer(digits: str) -> int:
    if len(digits) > _LONGEST_NUMBER or not -_INT64 <= (value := int(digits)) < _INT64:
        raise ValueError(f"the number {digits:.30} does not fit into 64 bits")
    return value


def _float(digits: str) -> float:
    if len(digits) > _LONGEST_NUMBER or not math.isfinite(value := float(digits)):
        raise ValueError(f"the number {digits:.30} does not fit into 64 bits")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not allowed in JSON")


def _shown(value: Any) -> str:
    """Return a short text of a value for a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def refuse(where: str, expected: str, value: Any) -> NoReturn:
    """Raise ValueError for a value.

    Args:
        where: name of the value.
        expected: what is allowed.
        value: what came.
    """
    raise ValueError(f"{where} must be {expected}, got {_shown(value)}")


def integer(low: int, high: int) -> Check:
    """Return a check for integers in [low, high]; True and 1.0 are none."""

    def check(value: Any, where: str) -> None:
        if type(value) is not int or not low <= value <= high:
            refuse(where, f"a whole number from {low} to {high}", value)

    return check


def number(low: float = -math.inf, high: float = math.inf) -> Check:
    """Return a check for finite numbers in [low, high]."""

    def check(value: Any, where: str) -> None:
        if type(value) not in (int, float) or not math.isfinite(value) or not low <= value <= high:
            limits = "" if low == -math.inf and high == math.inf else f" from {low:g} to {high:g}"
            refuse(where, f"a finite number{limits}", value)

    return check


def boolean(value: Any, where: str) -> None:
    """Check for true or false."""
    if type(value) is not bool:
        refuse(where, "true or false", value)


def text(longest: int = 256, pattern: str | None = None, expected: str | None = None) -> Check:
    """Return a check for printable strings.

    Args:
        longest: largest number of characters; at least one is needed.
        pattern: regular expression that the whole string must match.
        expected: what the pattern allows, for the message.
    """

    def check(value: Any, where: str) -> None:
        valid = isinstance(value, str) and 0 < len(value) <= longest and value.isprintable()
        if not valid or (pattern is not None and not re.fullmatch(pattern, value)):
            refuse(where, expected or f"a printable string of at most {longest} characters", value)

    return check


def one_of(*allowed: str) -> Check:
    """Return a check for one of these strings."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, str) or value not in allowed:
            refuse(where, f"one of {', '.join(allowed)}", value)

    return check


def optional(inner: Check) -> Check:
    """Return a check that also allows null."""

    def check(value: Any, where: str) -> None:
        if value is not None:
            inner(value, where)

    return check


def list_of(inner: Check, shortest: int, longest: int) -> Check:
    """Return a check for lists with `shortest` to `longest` values of one kind."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, list) or not shortest <= len(value) <= longest:
            counts = f"{shortest}" if shortest == longest else f"{shortest} to {longest}"
            refuse(where, f"a list of {counts} values", value)
        for place, item in enumerate(value):
            inner(item, f"{where}[{place}]")

    return check


def record(fields: Mapping[str, Check]) -> Check:
    """Return a check for objects with exactly these keys."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            refuse(where or "it", "an object", value)
        inside = f"{where}." if where else ""
        for key in fields:
            if key not in value:
                raise ValueError(f"{inside}{key} is missing")
        for key in value:
            if key not in fields:
                raise ValueError(f"{inside}{_shown(key)[1:-1]} is not a known key")
        for key, inner in fields.items():
            inner(value[key], f"{inside}{key}")

    return check


def any_object(value: Any, where: str) -> None:
    """Check for an object with any content."""
    if not isinstance(value, dict):
        refuse(where, "an object", value)


def ascending(values: Sequence[float]) -> bool:
    """Return whether numbers never decrease."""
    return all(a <= b for a, b in itertools.pairwise(values))
