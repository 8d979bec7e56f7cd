"""Types and converters for the parsers of several commands."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

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
