"""The program `monai-wscxr`: parse the command line and run one command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import monai_wscxr
from monai_wscxr.commands import (
    bank,
    check_precision,
    cross_validate,
    datalist,
    doctor,
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
    label,
    datalist,
    protocol,
    cross_validate,
    simulate,
    bank,
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
    options = create_parser().parse_args(arguments)
    options.arguments = sys.argv[1:] if arguments is None else list(arguments)
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


def create_parser() -> argparse.ArgumentParser:
    """Create the parser of all commands; each command sets `run`, the function that takes the parsed options."""
    parser = argparse.ArgumentParser(prog="monai-wscxr", description=monai_wscxr.__doc__)
    parser.add_argument("--version", action="version", version=monai_wscxr.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_parser(commands)
    return parser
