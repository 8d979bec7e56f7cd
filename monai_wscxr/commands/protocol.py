"""`monai-wscxr protocol`: the tables of the paper on your data, including the compared methods."""

from __future__ import annotations

import argparse
import shlex

from monai_wscxr.commands.parsers import Commands, named_paths, option_values, whole_numbers


def add_parser(commands: Commands) -> None:
    """Add the command to the program's parser."""
    protocol = commands.add_parser(
        "protocol", help="the tables of the paper on your data, including the compared methods"
    )
    protocol.add_argument(
        "table", choices=("table1", "table2"), help="table1: methods at every k; table2: mining and mixing on and off"
    )
    data = protocol.add_mutually_exclusive_group(required=True)
    data.add_argument("--dataset_dir", metavar="DIR", help="folder or data list with a test part")
    data.add_argument(
        "--datasets",
        type=named_paths,
        metavar="NAME=DIR,...",
        help="several of them, each with a folder NAME in OUT, beside a table of all; without NAME, the name of DIR counts",
    )
    protocol.add_argument(
        "--output_dir", required=True, metavar="OUT", help="new, or that of the same protocol to resume"
    )
    protocol.add_argument(
        "--methods",
        default="wscxr,discriminant,logistic,nearest,patchcore,simplenet,cutpaste_reduced",
        help="methods of table1, or all: also those that train networks on images, for hours",
    )
    protocol.add_argument(
        "--effort",
        default="reduced",
        help="how long methods train: paper (as published), reduced (what two cores can afford) or smoke (only a check); "
        "METHOD=EFFORT after a comma for single methods",
    )
    protocol.add_argument("--k", type=whole_numbers, default=[2, 4, 8, 16], help="abnormal images per class")
    protocol.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N-1")
    protocol.add_argument("--backbone", metavar="NAME", help="option of train.yaml (default: its value there)")
    protocol.add_argument("--weights", metavar="FILE", help="option of train.yaml (default: its value there)")
    protocol.add_argument("--image_size", type=int, metavar="N", help="option of train.yaml (default: its value there)")
    protocol.add_argument("--device", help="option of train.yaml (default: its value there)")
    protocol.add_argument(
        "--set", action="append", default=[], metavar="OPTION=VALUE", help="any other option of train.yaml; repeatable"
    )
    protocol.add_argument("--bundle", metavar="DIR", help="folder of the bundle wscxr_chest_xray")
    protocol.add_argument("--keep_runs", action="store_true", help="keep every trained model")
    protocol.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the missing cells of the table, then write and print the table."""
    from monai_wscxr.experiments.protocol import parse_methods, run_protocol

    chosen = {name: getattr(options, name) for name in ("backbone", "weights", "image_size", "device")}
    values = {name: value for name, value in chosen.items() if value is not None}
    path = run_protocol(
        options.table,
        options.datasets or options.dataset_dir,
        options.output_dir,
        methods=parse_methods(options.methods),
        k=options.k,
        seeds=options.seeds,
        options={**values, **option_values(options.set)},
        bundle=options.bundle,
        command=shlex.join(["monai-wscxr", *options.arguments]),
        keep_runs=options.keep_runs,
        effort=options.effort,
    )
    print(path.read_text(encoding="utf-8"))
    files = "results.md, results.csv, summary.csv, findings.csv, results.svg, protocol.json"
    if options.datasets:
        files = f"results.md, and in each of {', '.join(options.datasets)}: {files}"
    print(f"written to {path.parent.resolve()}: {files}")
