"""`monai-wscxr check-precision`: measure whether a backbone can run in bfloat16."""

from __future__ import annotations

import argparse
import json

from monai_wscxr.commands.backbone_options import add_backbone_options, extractor_of
from monai_wscxr.commands.exit_status import ANSWER_NO
from monai_wscxr.commands.parsers import Commands


def add_parser(commands: Commands) -> None:
    """Add the command to the program's parser."""
    parser = commands.add_parser(
        "check-precision",
        help="measure whether a backbone can run in bfloat16",
        description="Compare anomaly scores and AUROC of a backbone in bfloat16 with those in float32, on training images. The "
        "exit status is 0 when the differences are within the tolerances, otherwise 1.",
    )
    parser.add_argument("folder", nargs="?", metavar="DIR", help="data set (default: synthetic radiographs)")
    parser.add_argument("--precision", default="bfloat16", choices=("bfloat16",), help="precision to check")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.2,
        metavar="X",
        help="largest change of image scores, root mean square, in standard deviations of the normals' scores "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--auroc_tolerance",
        type=float,
        default=0.005,
        metavar="X",
        help="largest loss of AUROC (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_backbone_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Compare with float32; return ANSWER_NO when a tolerance is exceeded."""
    import tempfile

    from monai_wscxr.data.phantom import write_phantoms
    from monai_wscxr.planning.precision import check_precision

    with tempfile.TemporaryDirectory() as folder:
        source = options.folder
        if source is None:
            source = f"{folder}/phantoms"
            write_phantoms(source, n_train_normal=60, n_train_abnormal=4, n_test_normal=1, n_test_abnormal=1, size=256)
        result = check_precision(
            lambda precision: extractor_of(options, precision=precision),
            source,
            options.precision,
            options.tolerance,
            options.auroc_tolerance,
        )
    print(json.dumps(result.to_dict(), indent=1) if options.json else result.text())
    return 0 if result.accepted else ANSWER_NO
