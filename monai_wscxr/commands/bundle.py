"""`monai-wscxr bundle`: the MONAI bundle with the configurations."""

from __future__ import annotations

import argparse

from monai_wscxr.commands.parsers import Commands


def add_parser(commands: Commands) -> None:
    """Add the command and its actions to the program's parser."""
    parser = commands.add_parser("bundle", help="the MONAI bundle with the configurations: path")
    parser.set_defaults(run=run)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("path", help="print the folder of the bundle, which holds configs/train.yaml")


def run(options: argparse.Namespace) -> None:
    """Print the folder of the bundle."""
    from monai_wscxr.training.options import find_configs

    print(find_configs().parent)
