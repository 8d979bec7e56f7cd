"""`monai-wscxr datalist`: make a data list of a published collection."""

from __future__ import annotations

import argparse

from monai_wscxr.commands.parsers import Commands


def add_parser(commands: Commands) -> None:
    """Add the command to the program's parser."""
    parser = commands.add_parser(
        "datalist",
        help="make a data list of a published collection",
        description="Make a data list of a published collection. No patient is in both the training and the test part.",
    )
    parser.add_argument(
        "collection", choices=("zhanglab", "chexpert", "nih", "rsna", "vindr", "mimic"), help="name of the collection"
    )
    parser.add_argument("folder", metavar="DIR", help="folder of the unpacked collection")
    parser.add_argument("--output", required=True, metavar="FILE", help="data list to write (.json)")
    parser.add_argument(
        "--train_normal", type=int, metavar="N", help="largest number of normal training images (default: all)"
    )
    parser.add_argument(
        "--train_abnormal",
        type=int,
        metavar="N",
        help="largest number of abnormal training images per class (default: all)",
    )
    parser.add_argument(
        "--test_normal", type=int, metavar="N", help="largest number of normal test images (default: all)"
    )
    parser.add_argument(
        "--test_abnormal", type=int, metavar="N", help="largest number of abnormal test images (default: all)"
    )
    parser.add_argument(
        "--test_share",
        type=float,
        default=0.2,
        metavar="SHARE",
        help="share of the patients in the test part of a collection without an official split (default: %(default)s)",
    )
    parser.add_argument("--boxed", action="store_true", help="only abnormal test images with lesion boxes")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the selection (default: %(default)s)")
    parser.add_argument("--skip_missing", action="store_true", help="leave out images whose files are missing")
    parser.add_argument(
        "--uncertain",
        choices=("exclude", "positive", "negative"),
        help="chexpert, mimic: what to do with uncertain findings",
    )
    parser.add_argument("--view", choices=("all", "PA", "AP"), help="nih: views to use")
    parser.add_argument(
        "--other",
        choices=("exclude", "include"),
        help="rsna: what to do with images that are neither normal nor opaque",
    )
    parser.add_argument("--readers", type=int, metavar="N", help="vindr: number of readers who must agree on a finding")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Write the data list and print a summary."""
    from monai_wscxr.data.collections import Limits, make_datalist

    policies = {name: getattr(options, name) for name in ("uncertain", "view", "other", "readers")}
    limits = Limits(
        options.train_normal,
        options.train_abnormal,
        options.test_normal,
        options.test_abnormal,
        options.test_share,
        options.boxed,
        options.seed,
    )
    chosen = {name: value for name, value in policies.items() if value is not None}
    print(make_datalist(options.collection, options.folder, options.output, limits, options.skip_missing, **chosen))
