"""The parser of all commands, with types and converters that several of them share."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from monai_wscxr.commands.exit_status import UNUSABLE
from monai_wscxr.errors import InputError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Commands = argparse._SubParsersAction


class Help(argparse.HelpFormatter):
    """Help in which every option with a default names it."""

    def _get_help_string(self, action: argparse.Action) -> str:
        """Return the help of an option, with its default unless the text speaks of one already."""
        text = action.help or ""
        plain = action.default not in (None, False, argparse.SUPPRESS, [], {}, "")
        if action.option_strings and plain and "default" not in text:
            text += f" (default: {shown(action.default)})"
        return text


class Parser(argparse.ArgumentParser):
    """Parser that ends a wrong command line with one sentence, and names what comes close to an unknown word.

    Attributes:
        fill: adds options to this parser when they are first needed, from the words of the command line; None if all options
            are there from the start.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "formatter_class": Help, **options})
        self.fill: Callable[[Parser, Sequence[str]], None] | None = None
        self.set_defaults(parser=self)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, after the options have been added."""
        self._add_options(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def format_help(self) -> str:
        """Return the help, after the options have been added."""
        self._add_options(())
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        """Print the sentence and exit with the status `UNUSABLE`."""
        choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if choice:
            message += close_to(choice[1], re.findall(r"[\w-]+", choice[2]))
        print(f"error: {message}; `{self.prog} --help` lists what there is", file=sys.stderr)
        sys.exit(UNUSABLE)

    def refuse(self, word: str) -> NoReturn:
        """End a command line with a word that this parser does not know."""
        if word.startswith("-"):
            name = word.partition("=")[0]
            self.error(f"unknown option {name}{close_to(name, list(self._option_string_actions))}")
        self.error(f"{word!r} is one argument too many")

    def _add_options(self, words: Sequence[str]) -> None:
        fill, self.fill = self.fill, None
        if fill is not None:
            fill(self, words)


def close_to(word: str, known: Sequence[str]) -> str:
    """Return a question that names the known words close to a word, or ""."""
    close = difflib.get_close_matches(word, known, n=3)
    return f"; did you mean {', '.join(close)}?" if close else ""


def shown(value: Any) -> str:
    """Return a value as it is written on a command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ",".join(map(shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def whole_numbers(text: str) -> list[int]:
    """Convert a text like "2,4,8" to a list of whole numbers, for argparse."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: give whole numbers separated by commas, for instance 2,4,8,16"
        ) from None


def named_paths(text: str) -> dict[str, str]:
    """Convert a text like "zhanglab=DIR,nih=nih.csv" to paths by name, for argparse; the name of the file is the default."""
    found: dict[str, str] = {}
    for part in text.split(","):
        name, equals, path = part.rpartition("=")
        name = name if equals else Path(path).stem
        if not name or not path:
            raise argparse.ArgumentTypeError(f"{text!r}: give NAME=DIR,NAME=DIR, for instance zhanglab=DIR,nih=nih.csv")
        if name in found:
            raise argparse.ArgumentTypeError(f"{text!r}: {name} is there twice; give each data set a name of its own")
        found[name] = path
    return found


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
