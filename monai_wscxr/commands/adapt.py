"""`monai-wscxr adapt`: adapt a trained model to another site."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from monai_wscxr.commands.backbone_options import add_runtime_option
from monai_wscxr.commands.parsers import Commands
from monai_wscxr.data.radiograph.base import GATES
from monai_wscxr.errors import InputError

_ABNORMAL_NAMES = ("abnormal", "abnormals", "pathological", "positive")


def add_parser(commands: Commands) -> None:
    """Add the command to the program's parser."""
    parser = commands.add_parser(
        "adapt",
        help="adapt a trained model to another site by some of its normal images",
        description="Write a model whose threshold, p-values, colours and drift check hold at another site. 20 normal images "
        "of the site are enough, 100 are better; where there are no labels, 50 or more images of which at most half are "
        "abnormal. Takes seconds besides reading the images. The adapted model is used as any other.",
    )
    parser.add_argument("--model", required=True, metavar="OUT", help="output folder of a training")
    images = parser.add_mutually_exclusive_group(required=True)
    images.add_argument("--normals", nargs="+", metavar="PATH", help="normal images of the site: files or folders")
    images.add_argument(
        "--unlabelled", nargs="+", metavar="PATH", help="images of the site without labels: files or folders"
    )
    parser.add_argument("--output", required=True, metavar="NEW", help="folder for the adapted model")
    parser.add_argument(
        "--align",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also align the features with the normal images (default: yes)",
    )
    parser.add_argument("--cache", metavar="DIR", help="cache folder (default: $MONAI_WSCXR_CACHE or the user's)")
    parser.add_argument(
        "--max_bad_share",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="largest share of images that may be unusable, from 0 to 1 (default: %(default)s)",
    )
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="REASON",
        help=f"use images in spite of a reason: {', '.join(GATES)}; repeatable",
    )
    parser.add_argument(
        "--accept_flagged", action="store_true", help="take images as normal that look abnormal to the model"
    )
    parser.add_argument("--device", help="cpu or cuda (default: cpu)", default="cpu")
    add_runtime_option(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace an adapted model in NEW")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Adapt and return the exit status."""
    from monai_wscxr.model.description import ARTEFACT, WEIGHTS, check_holds_model

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    check_holds_model(options.model)
    output = Path(options.output)
    if output.exists() and output.resolve() == Path(options.model).resolve():
        raise InputError(f"--output {output} is the model itself; give another folder")
    there = sorted(path.name for path in output.iterdir()) if output.is_dir() else []
    if output.exists() and not output.is_dir():
        raise InputError(f"--output {output} is a file; give a folder")
    if there and not (options.overwrite and set(there) <= {ARTEFACT, WEIGHTS}):
        raise InputError(
            f"--output {output} is not empty; give a new folder"
            + (", or --overwrite to replace the adapted model" if set(there) <= {ARTEFACT, WEIGHTS} else "")
        )
    files = _files(options)

    from monai_wscxr.adaptation.site import adapt, extractor_for
    from monai_wscxr.data.radiograph.gates import check_allowed
    from monai_wscxr.model.artefact import load_model

    try:
        check_allowed(options.allow)
    except ValueError as error:
        raise InputError(f"--allow: {error}") from error
    model = load_model(options.model, options.device)
    extractor = extractor_for(
        model,
        cache=options.cache,
        max_bad_share=options.max_bad_share,
        allow=options.allow,
        progress=not options.quiet,
        runtime=options.runtime,
    )
    done = adapt(model, files, output, extractor, options.unlabelled is not None, options.align, options.accept_flagged)
    print(
        "\n".join(
            [*done.sentences(), f"adapted model in {output}: monai-wscxr predict PATH --model {output} --output DIR"]
        )
    )
    return 0


def _files(options: argparse.Namespace) -> list[Path]:
    """Return the images that the options name."""
    from monai_wscxr.data.listing import list_images

    paths = options.normals or options.unlabelled
    listing = list_images(paths)
    if listing.left_out:
        print(listing.summary(), file=sys.stderr)
    if not listing.images:
        raise InputError(f"{', '.join(paths)}: no radiographs found")
    if options.normals:
        for root in map(Path, paths):
            for file in listing.images:
                inside = file.relative_to(root).parts[:-1] if file.is_relative_to(root) else ()
                if any(part.lower() in _ABNORMAL_NAMES for part in inside):
                    raise InputError(
                        f"--normals {root} contains a folder of abnormal images ({file}); give normal images only"
                    )
    return list(listing.images)
