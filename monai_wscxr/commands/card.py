"""`monai-wscxr card`: the model card of a trained model."""

from __future__ import annotations

import argparse
from pathlib import Path

from monai_wscxr.commands.parsers import Commands
from monai_wscxr.errors import InputError


def add_parser(commands: Commands) -> None:
    """Add the command to the program's parser."""
    parser = commands.add_parser(
        "card",
        help="the model card of a trained model, as Markdown",
        description="Write what a model was trained on, its settings, calibration, figures (after `evaluate`), limits and "
        "licence. The card names no file, folder or patient.",
    )
    parser.add_argument("--model", required=True, metavar="OUT", help="output folder of a training")
    parser.add_argument("--output", metavar="FILE", help="file for the card; default: print it")
    parser.add_argument("--data_licence", metavar="FILE", help="text file with the terms of the training images")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print the card, or write it to a file."""
    from monai_wscxr.model.artefact import load_model
    from monai_wscxr.report.card import model_card, read_metrics
    from monai_wscxr.system.atomic import DiskFullError, write_text_atomic
    from monai_wscxr.training.configs import default_values
    from monai_wscxr.training.packing import read_terms

    model = load_model(options.model)
    text = model_card(model, read_metrics(model), default_values(), read_terms(options.data_licence))
    if options.output is None:
        print(text, end="")
        return
    try:
        write_text_atomic(Path(options.output), text)
    except DiskFullError:
        raise
    except OSError as error:
        raise InputError(f"--output {options.output} cannot be written ({error.strerror})") from error
