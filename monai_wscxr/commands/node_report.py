"""`monai-wscxr node-report`: what a DICOM node saw, week by week."""

from __future__ import annotations

import argparse

from monai_wscxr.commands.exit_status import ANSWER_NO
from monai_wscxr.commands.parsers import Commands
from monai_wscxr.errors import InputError


def add_parser(commands: Commands) -> None:
    """Add the command to the program's parser."""
    parser = commands.add_parser(
        "node-report",
        help="weekly report of a DICOM node: alarm rate, drift, reasons without a score",
        description="Sum up what a DICOM node received, by week of arrival (UTC): images, alarm rate with its 95 % interval "
        "beside the promised one, drift, the most frequent reasons without a score, and the same by device and view. The "
        "node may be running; it keeps images for its --days. No patient data. Exit status: 0 no drift, 1 drift in the latest "
        "week, 2 the command cannot run as given.",
    )
    parser.add_argument("--folder", required=True, metavar="DIR", help="folder of the node's queue")
    parser.add_argument("--model", required=True, metavar="OUT", help="the model of the node")
    parser.add_argument("--weeks", type=int, default=8, metavar="N", help="most weeks")
    parser.add_argument(
        "--output", metavar="DIR2", help="folder for node_report.html and node_report.json (default: none)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print and write the report; return ANSWER_NO for drift."""
    if options.weeks < 1:
        raise InputError(f"--weeks must be at least 1, got {options.weeks}")
    from monai_wscxr.node.weekly import stored_rows, weekly, write_weekly
    from monai_wscxr.prediction.network import open_description

    rows = stored_rows(options.folder)
    model = open_description(options.model)
    report = weekly(rows, model, options.weeks)
    print("\n".join(report.sentences()))
    if report.command is not None:
        print(report.command)
    if options.output:
        page, values = write_weekly(options.output, report, model)
        print(f"report in {page} and {values}")
    return ANSWER_NO if report.command is not None else 0
