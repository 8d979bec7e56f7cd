"""`monai-wscxr datalist`: a published collection as a data list in which patients are kept apart."""

from __future__ import annotations

import argparse

from monai_wscxr.commands.parsers import Commands


def add_parser(commands: Commands) -> None:
    """Add the command to the program's parser."""
    collection = commands.add_parser("datalist", help="a published collection as a patient-disjoint datalist")
    collection.add_argument("collection", choices=("zhanglab", "chexpert", "nih", "rsna", "vindr", "mimic"))
    collection.add_argument("folder", help="the collection as published, unpacked")
    collection.add_argument("--output", required=True, metavar="FILE.json")
    collection.add_argument("--train_normal", type=int, metavar="N", help="at most; all without it")
    collection.add_argument("--train_abnormal", type=int, metavar="N", help="at most, per class")
    collection.add_argument("--test_normal", type=int, metavar="N")
    collection.add_argument("--test_abnormal", type=int, metavar="N", help="at most, over all classes")
    collection.add_argument("--test_share", type=float, default=0.2, help="of the patients, without an official split")
    collection.add_argument("--boxed", action="store_true", help="abnormal test images with lesion boxes only")
    collection.add_argument("--seed", type=int, default=0)
    collection.add_argument("--skip_missing", action="store_true", help="take the images that are there")
    collection.add_argument("--uncertain", choices=("exclude", "positive", "negative"), help="chexpert, mimic")
    collection.add_argument("--view", choices=("all", "PA", "AP"), help="nih")
    collection.add_argument("--other", choices=("exclude", "include"), help="rsna: neither normal nor opaque")
    collection.add_argument("--readers", type=int, help="vindr: readers who must agree on a finding")
    collection.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Write the data list and print what it holds."""
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
