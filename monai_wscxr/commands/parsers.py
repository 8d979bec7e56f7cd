"""Types and converters for the parsers of several commands."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from monai_wscxr.errors import InputError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Commands = argparse._SubParsersAction


def whole_numbers(text: str) -> list[int]:
    """Convert a text like "2,4,8" to a list of whole numbers, for argparse."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: give whole numbers separated by commas, for instance 2,4,8,16"
        ) from None


def option_values(texts: Iterable[str]) -> dict[str, Any]:
    """Read the values of a repeated `--set OPTION=VALUE`, each value as YAML.

    Raises:
        InputError: on a text without "=".
    """
    import yaml

    values = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set {text}: give OPTION=VALUE, for instance --set epochs=10")
        values[name] = yaml.safe_load(value)
    return values
