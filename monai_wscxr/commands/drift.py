"""`monai-wscxr drift`: do the radiographs of some prediction runs still come from where the model was calibrated?"""

from __future__ import annotations

import argparse

from monai_wscxr.commands.exit_status import ANSWER_NO
from monai_wscxr.commands.parsers import Commands


def add_parser(commands: Commands) -> None:
    """Add the command to the program's parser."""
    parser = commands.add_parser(
        "drift",
        help="tell whether predicted radiographs still resemble what calibrated the model, by week, device and view",
        description="Compare the images of prediction runs with the normals that calibrated the model. Weeks, devices and "
        "views come from DICOM headers; without weeks the runs are compared in the order given. Exit status: 0 no drift, "
        "1 drift over all images, 2 the command cannot run as given.",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="output folders of predict, or the predictions.csv in them"
    )
    parser.add_argument(
        "--model", required=True, metavar="OUT", help="the model that made the predictions, trained or exported"
    )
    parser.add_argument(
        "--output", metavar="DIR", help="folder for drift.csv and drift.html with plots (default: none)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Compare and return the exit status: ANSWER_NO for drift."""
    from monai_wscxr.prediction.monitoring import monitor, read_runs, write_monitoring
    from monai_wscxr.prediction.network import open_description

    model = open_description(options.model)
    result = monitor(model, read_runs(options.runs, model))
    print("\n".join(result.sentences(options.model)))
    if options.output:
        write_monitoring(options.output, model, result)
        print(f"plots and table in {options.output}: open drift.html there")
    return ANSWER_NO if result.drift.named else 0
