"""`monai-wscxr phantom`: write a data set of synthetic radiographs."""

from __future__ import annotations

import argparse

from monai_wscxr.commands.parsers import Commands


def add_parser(commands: Commands) -> None:
    """Add the command to the program's parser."""
    parser = commands.add_parser("phantom", help="write a data set of synthetic chest radiographs with lesions")
    parser.add_argument("folder", help="new or empty folder")
    parser.add_argument("--train_normal", type=int, default=160, metavar="N")
    parser.add_argument("--train_abnormal", type=int, default=8, metavar="N", help="per kind of lesion")
    parser.add_argument("--test_normal", type=int, default=40, metavar="N")
    parser.add_argument("--test_abnormal", type=int, default=10, metavar="N", help="per kind of lesion")
    parser.add_argument("--image_size", type=int, default=256, metavar="N", help="pixels per side")
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Write the phantoms."""
    from monai_wscxr.data.phantom import write_phantoms

    write_phantoms(
        options.folder,
        n_train_normal=options.train_normal,
        n_train_abnormal=options.train_abnormal,
        n_test_normal=options.test_normal,
        n_test_abnormal=options.test_abnormal,
        size=options.image_size,
        seed=options.seed,
    )
    print(f"phantoms in {options.folder}")
