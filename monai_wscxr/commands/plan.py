"""`monai-wscxr plan`: predict time, memory and disk of a training."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from monai_wscxr.commands.backbone_options import add_backbone_options, extractor_of
from monai_wscxr.commands.parsers import Commands
from monai_wscxr.errors import InputError


def add_parser(commands: Commands) -> None:
    """Add the command to the program's parser."""
    parser = commands.add_parser(
        "plan",
        help="predict time, memory and disk of a training",
        description="Predict time, memory and disk space for each stage of a training on N normal images, from measurements of "
        "about half a minute on this machine, and the ranges that nine of ten runs keep to.",
    )
    parser.add_argument("--images", type=int, required=True, metavar="N", help="number of normal images")
    parser.add_argument(
        "--abnormal", type=int, default=16, metavar="N", help="number of abnormal images (default: %(default)s)"
    )
    parser.add_argument("--epochs", type=int, default=5, metavar="N", help="number of epochs (default: %(default)s)")
    parser.add_argument(
        "--bank_memory",
        type=float,
        metavar="BYTES",
        help="memory for the normal bank; a larger bank stays on disk (default: half of the free memory)",
    )
    parser.add_argument(
        "--sample",
        nargs="+",
        metavar="FILE",
        help="typical images of your data (default: one synthetic PNG of 1024 x 1024 pixels)",
    )
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    add_backbone_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Measure on this machine and print the plan."""
    import tempfile
    import time

    began = time.perf_counter()
    from monai_wscxr.planning.plan import make_plan
    from monai_wscxr.planning.timing import Cost

    # a training imports the same; what ran before `run` is little beside that
    start = Cost(time.perf_counter() - began, time.process_time())
    if options.images < 2 or options.abnormal < 1 or options.epochs < 1:
        raise InputError("a plan needs at least 2 normal images, 1 abnormal image and 1 epoch")
    with tempfile.TemporaryDirectory() as folder:
        sample = options.sample or [_phantom(Path(folder))]
        made = make_plan(
            extractor_of(options),
            options.images,
            sample,
            options.abnormal,
            options.epochs,
            None if options.bank_memory is None else int(options.bank_memory),
            start=start,
        )
    print(json.dumps(made.to_dict(), indent=1) if options.json else made.table())


def _phantom(folder: Path) -> str:
    from monai_wscxr.data.phantom import write_phantoms

    write_phantoms(folder / "p", n_train_normal=1, n_train_abnormal=1, n_test_normal=1, n_test_abnormal=1, size=1024)
    return str(next((folder / "p" / "train" / "normal").iterdir()))
