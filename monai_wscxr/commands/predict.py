"""`monai-wscxr predict`: apply a trained model to files, folders and DICOM studies."""

from __future__ import annotations

import argparse
import logging
import sys

from monai_wscxr.commands.backbone_options import add_runtime_option
from monai_wscxr.commands.exit_status import INTERRUPTED, SOME_REJECTED
from monai_wscxr.commands.parsers import Commands
from monai_wscxr.data.radiograph.base import GATES


def add_parser(commands: Commands) -> None:
    """Add the command to the program's parser."""
    predict = commands.add_parser(
        "predict",
        help="apply a trained model to files, folders, DICOM studies",
        description="Apply a trained model. Exit status: 0 all images were predicted, 3 some were rejected (see "
        "predictions.csv), 2 the command cannot run as given. A killed run resumes when the same command is given again.",
    )
    predict.add_argument("paths", nargs="+", metavar="PATH", help="image files, folders (searched), DICOMDIRs")
    predict.add_argument("--model", required=True, metavar="OUT", help="output folder of a training or an export")
    predict.add_argument(
        "--output", required=True, metavar="DIR", help="folder for the results: new, or that of the same run"
    )
    predict.add_argument(
        "--maps", default="tiff", choices=("nifti", "tiff", "npy", "none"), help="anomaly maps, 32-bit"
    )
    switch = argparse.BooleanOptionalAction
    predict.add_argument("--overlays", action=switch, default=True, help="radiographs with anomaly maps as PNG")
    predict.add_argument("--report", action=switch, default=True, help="HTML report (report/index.html)")
    predict.add_argument("--dicom", action="store_true", help="DICOM results for DICOM images (needs highdicom)")
    predict.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that decode and write; 0: none, default: one per core, at most 8",
    )
    predict.add_argument("--batch_size", type=int, default=16, metavar="N", help="images per pass of the network")
    predict.add_argument("--device", help="cpu or cuda; default: a GPU if there is one")
    add_runtime_option(predict)
    predict.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="REASON",
        help=f"predict images in spite of a reason: {', '.join(GATES)}; repeatable",
    )
    predict.add_argument(
        "--seconds", type=float, default=10.0, metavar="S", help="time limit for reading a file, plus 1 s per MiB"
    )
    predict.add_argument("--overwrite", action="store_true", help="replace another run in DIR")
    predict.add_argument("--quiet", action="store_true", help="no progress bar")
    predict.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the prediction and return the exit status."""
    from monai_wscxr.prediction.options import Options
    from monai_wscxr.prediction.run import predict

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    chosen = Options(
        model=options.model,
        paths=tuple(options.paths),
        output=options.output,
        maps=options.maps,
        overlays=options.overlays,
        report=options.report,
        dicom=options.dicom,
        workers=options.workers,
        batch_size=options.batch_size,
        device=options.device,
        runtime=options.runtime,
        allow=tuple(options.allow),
        seconds=options.seconds,
        overwrite=options.overwrite,
        progress=not options.quiet,
    )
    try:
        summary = predict(chosen)
    except KeyboardInterrupt:
        print("interrupted; give the same command again to resume", file=sys.stderr)
        return INTERRUPTED
    report = "; open report/index.html there to view them" if options.report else ""
    *sentences, last = [*summary.sentences(options.model), f"results in {options.output}{report}"]
    if summary.drift.named:  # the warning stays the last line, where it is seen
        sentences, last = [*sentences[:-1], last], sentences[-1]
    print("\n".join([*sentences, last]))
    return SOME_REJECTED if summary.rejected else 0
