"""`monai-wscxr bundle`: the MONAI bundle with the configurations, and bundles that hold a trained model."""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path

from monai_wscxr.commands.parsers import Commands


def add_parser(commands: Commands) -> None:
    """Add the command and its actions to the program's parser."""
    parser = commands.add_parser("bundle", help="the MONAI bundle with the configurations, or with a model: path, pack")
    parser.set_defaults(run=run)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("path", help="print the folder of the bundle, which holds configs/train.yaml")
    pack = actions.add_parser(
        "pack",
        help="make a bundle that holds a trained model, to pass on",
        description="Make a MONAI bundle with weights, artefact, model card, licence and metadata. Its inference.yaml "
        "runs from its own models/ folder. Packed again into the same folder or ZIP file, it gets a new version.",
    )
    pack.add_argument("--model", required=True, metavar="OUT", help="output folder of a training, evaluated or not")
    pack.add_argument(
        "--output",
        required=True,
        metavar="FOLDER|NAME.zip",
        help="folder of the bundle, or ZIP file: new, empty, or an earlier version of it",
    )
    pack.add_argument("--version", default="0.1.0", metavar="X.Y.Z", help="version of the bundle")
    pack.add_argument("--changes", default="first version", metavar="TEXT", help="line for the changelog")
    pack.add_argument("--data_licence", metavar="FILE", help="text file with the terms of the training images")
    pack.add_argument(
        "--torchscript", action="store_true", help="add models/model.ts, for programs without this package"
    )


def run(options: argparse.Namespace) -> None:
    """Print the folder of the bundle, or pack one and list its files."""
    if options.action == "path":
        from monai_wscxr.training.configs import find_configs

        print(find_configs().parent)
        return
    from monai_wscxr.training.packing import LARGEST_FILE, pack_bundle

    place = pack_bundle(
        options.model, options.output, options.version, options.changes, options.data_licence, options.torchscript
    )
    for name, size in _sizes(place):
        note = f"  larger than the {LARGEST_FILE >> 20} MiB that MONAI's model zoo takes" if size > LARGEST_FILE else ""
        print(f"{size:>12,}  {name}{note}")
    print(f"bundle {place.stem if place.is_file() else place.name} {options.version} in {place}")


def _sizes(place: Path) -> list[tuple[str, int]]:
    """Return names and sizes in bytes of the files of a bundle, in a folder or a ZIP file."""
    if place.is_file():
        with zipfile.ZipFile(place) as archive:
            return sorted((entry.filename, entry.file_size) for entry in archive.infolist() if not entry.is_dir())
    return sorted((str(path.relative_to(place)), path.stat().st_size) for path in place.rglob("*") if path.is_file())
