"""`monai-wscxr simulate`: what the order of labelling gains over labelling at random."""

from __future__ import annotations

import argparse
import logging
import shlex

from monai_wscxr.commands.parsers import Commands, option_values


def add_parser(commands: Commands) -> None:
    """Add the command to the program's parser."""
    simulate = commands.add_parser(
        "simulate",
        help="what the order of labelling gains over labelling at random, on a data set with known labels",
        description="Simulate an annotator on a data set whose labels are known, and compare labelling strategies by the AUROC "
        "of the test images after each round, also pair by pair with labelling at random. A stopped simulation continues when "
        "the same command is given again; more draws or strategies are added to it.",
    )
    simulate.add_argument("dataset_dir", metavar="DIR", help="folder or datalist with a training and a test part")
    simulate.add_argument("output_dir", metavar="OUT", help="folder for the results: new, or of the same simulation")
    simulate.add_argument("--strategies", default="varied,most_suspicious,random", help="separated by commas")
    simulate.add_argument("--rounds", type=int, default=10, metavar="N", help="rounds of labelling and retraining")
    simulate.add_argument("--per_round", type=int, default=1, metavar="N", help="images labelled per round")
    simulate.add_argument(
        "--every",
        type=int,
        default=1,
        metavar="N",
        help="measure each Nth round and the last; random labelling trains only then",
    )
    simulate.add_argument("--draws", type=int, default=5, metavar="N", help="repetitions with other random splits")
    simulate.add_argument(
        "--archive_normal", type=int, metavar="N", help="normal images in the archive; default: half of them"
    )
    simulate.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE", help="an option of train.yaml")
    simulate.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the simulations that are missing, then write and print the table."""
    from monai_wscxr.training.configs import check_settable

    train_options = option_values(options.set)
    check_settable(train_options)
    from monai_wscxr.label.simulate import simulate

    logging.basicConfig(level=logging.WARNING)
    settings = {
        "strategies": options.strategies.split(","),
        "rounds": options.rounds,
        "per_round": options.per_round,
        "draws": options.draws,
        "every": options.every,
        "archive_normal": options.archive_normal,
        "options": train_options,
    }
    command = shlex.join(["monai-wscxr", *options.arguments])
    path = simulate(options.dataset_dir, options.output_dir, settings, command)
    print(path.read_text(encoding="utf-8"))
