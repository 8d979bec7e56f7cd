"""The program `monai-wscxr`: parse the command line and run one command."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import monai_wscxr
from monai_wscxr.commands import (
    adapt,
    bank,
    bundle,
    check_precision,
    cross_validate,
    datalist,
    doctor,
    drift,
    label,
    phantom,
    plan,
    predict,
    protocol,
    simulate,
)
from monai_wscxr.commands.exit_status import INTERRUPTED, UNUSABLE
from monai_wscxr.errors import InputError

_COMMANDS = (
    predict,
    adapt,
    drift,
    label,
    datalist,
    protocol,
    cross_validate,
    simulate,
    bank,
    bundle,
    plan,
    check_precision,
    phantom,
    doctor,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its status, see `exit_status`.

    Args:
        arguments: command line without the program's name; None takes that of this process.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    options, unknown = create_parser().parse_known_args(one_spelling(given))
    if unknown:
        options.parser.refuse(unknown[0])
    options.arguments = given
    try:
        status = options.run(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(UNUSABLE)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    if status:
        sys.exit(status)


class Parser(argparse.ArgumentParser):
    """Parser that ends a wrong command line with one sentence, and names what comes close to an unknown word."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})
        self.set_defaults(parser=self)

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


def close_to(word: str, known: Sequence[str]) -> str:
    """Return a question that names the known words close to a word, or ""."""
    close = difflib.get_close_matches(word, known, n=3)
    return f"; did you mean {', '.join(close)}?" if close else ""


def one_spelling(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `--train-normal` spelt `--train_normal`; `--no-` stays, and what follows `--` stays."""
    found = list(arguments)
    for number, argument in enumerate(found):
        if argument == "--":
            break
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            name = name.replace("-", "_")
            name = f"no-{name[3:]}" if name.startswith("no_") else name
            found[number] = f"--{name}{equals}{value}"
    return found


def create_parser() -> argparse.ArgumentParser:
    """Create the parser of all commands; each command sets `run`, the function that takes the parsed options."""
    parser = Parser(prog="monai-wscxr", description=monai_wscxr.__doc__)
    parser.add_argument("--version", action="version", version=monai_wscxr.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_parser(commands)
    return parser
