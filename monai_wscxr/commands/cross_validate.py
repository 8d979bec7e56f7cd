"""`monai-wscxr cross-validate`: compare training options on the training part of a data set."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from monai_wscxr.commands.parsers import Commands, whole_numbers


def add_parser(commands: Commands) -> None:
    """Add the command to the program's parser."""
    parser = commands.add_parser(
        "cross-validate",
        help="compare training options on the training part of a data set",
        description="Compare variants of the training options on the same random splits; the test part is never opened. "
        "Variants that have results in OUT are not run again.",
    )
    parser.add_argument("dataset_dir", metavar="DIR", help="folder or data list")
    parser.add_argument("output_dir", type=Path, metavar="OUT", help="folder for the results")
    parser.add_argument(
        "--k", type=whole_numbers, default=[1, 8], help="abnormal images per class, separated by commas"
    )
    parser.add_argument("--draws", type=int, default=10, metavar="N", help="number of random splits")
    parser.add_argument("--variants", default="", help="names of variants, separated by semicolons; default: all")
    parser.add_argument(
        "--perturbed_normals", type=int, default=200, metavar="N", help="normal images that are also scored perturbed"
    )
    parser.add_argument(
        "--options", type=json.loads, default={}, help="options of train.yaml for all variants, as JSON"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the missing variants and write the tables."""
    from monai_wscxr.experiments.cross_validation import cross_validate

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    variants = [name.strip() for name in options.variants.split(";") if name.strip()]
    cross_validate(
        options.dataset_dir,
        options.output_dir,
        options.k,
        options.draws,
        variants,
        options.perturbed_normals,
        options.options,
    )
