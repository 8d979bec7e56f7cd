"""`monai-wscxr phantom`: write a data set of synthetic radiographs."""

from __future__ import annotations

import argparse

from monai_wscxr.commands.parsers import Commands


def add_parser(commands: Commands) -> None:
    """Add the command to the program's parser."""
    parser = commands.add_parser("phantom", help="write a data set of synthetic chest radiographs with lesions")
    parser.add_argument("folder", metavar="DIR", help="new or empty folder")
    for part, name in (("train", "training"), ("test", "test")):
        normal, abnormal = (160, 8) if part == "train" else (40, 10)
        parser.add_argument(
            f"--{part}_normal",
            type=int,
            default=normal,
            metavar="N",
            help=f"number of normal {name} images (default: %(default)s)",
        )
        parser.add_argument(
            f"--{part}_abnormal",
            type=int,
            default=abnormal,
            metavar="N",
            help=f"number of abnormal {name} images per kind of lesion (default: %(default)s)",
        )
    parser.add_argument(
        "--image_size", type=int, default=256, metavar="N", help="side of the images in pixels (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the images (default: %(default)s)")
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
