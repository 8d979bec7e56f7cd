"""The program `monai-wscxr`: parse the command line and run one command."""

from __future__ import annotations

import argparse
import os
import select
import sys
from collections.abc import Sequence

import monai_wscxr
from monai_wscxr.commands import (
    adapt,
    bank,
    bundle,
    card,
    check_precision,
    cross_validate,
    datalist,
    doctor,
    drift,
    export,
    label,
    node,
    node_report,
    phantom,
    plan,
    predict,
    protocol,
    serve,
    simulate,
    workflows,
)
from monai_wscxr.commands.exit_status import INTERRUPTED, OUTPUT_CLOSED, UNUSABLE
from monai_wscxr.commands.parsers import Parser
from monai_wscxr.errors import InputError, find_input_error, needs_full_package

_COMMANDS = (
    workflows,
    predict,
    adapt,
    drift,
    export,
    label,
    node,
    node_report,
    serve,
    datalist,
    protocol,
    cross_validate,
    simulate,
    bank,
    bundle,
    card,
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
    try:
        options, unknown = create_parser().parse_known_args(one_spelling(given))
        if unknown:
            options.parser.refuse(unknown[0])
        options.arguments = given
        status = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        if not _output_is_closed():
            raise
        sys.exit(OUTPUT_CLOSED)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(UNUSABLE)
    except Exception as error:  # MONAI wraps what its expressions raise
        from monai_wscxr.system.atomic import as_disk_full

        found = find_input_error(error) or as_disk_full(error) or needs_full_package(error)
        if found is None:
            raise
        print(f"error: {found}", file=sys.stderr)
        sys.exit(UNUSABLE)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    if status:
        sys.exit(status)


def _output_is_closed() -> bool:
    """Return whether the reader of the standard output has ended, as that of `... | head`; what is left goes nowhere then."""
    try:
        output = sys.stdout.fileno()
        watch = select.poll()
    except (OSError, AttributeError):  # no file, or no such system call here
        return False
    watch.register(output, 0)  # an error of a pipe is reported without being asked for
    if not watch.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True


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
