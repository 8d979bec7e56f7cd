"""`monai-wscxr export`: write a trained model as a folder that predicts without torch and MONAI."""

from __future__ import annotations

import argparse

from monai_wscxr.commands.parsers import Commands


def add_parser(commands: Commands) -> None:
    """Add the command to the program's parser."""
    parser = commands.add_parser(
        "export",
        help="write a trained model for prediction without torch and MONAI",
        description="Write a trained model as a folder that predict, serve, node and drift take where only "
        "'monai-wscxr[runtime]' is installed. Needs pip install 'monai-wscxr[full,onnxruntime]'. Exit status: 0 exported, "
        "2 the command cannot run as given.",
    )
    parser.add_argument("--model", required=True, metavar="OUT", help="output folder of a training")
    parser.add_argument(
        "--output", required=True, metavar="FOLDER", help="folder for the exported model: new, or to be replaced"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Export and return the exit status."""
    from monai_wscxr.prediction.export import export_model
    from monai_wscxr.system.atomic import bytes_text

    found = export_model(options.model, options.output)
    print(
        f"exported to {options.output}, {bytes_text(found.size)}; results differ from those of torch by "
        f"{found.difference:.0e} (relative)"
    )
    return 0
