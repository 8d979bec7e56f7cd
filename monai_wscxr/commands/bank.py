"""`python -m monai_wscxr bank | plan | check-precision`: thin commands over banks, the plan and the network's precision."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from monai_wscxr.errors import InputError

if TYPE_CHECKING:
    from monai_wscxr.features.extraction import PatchExtractor

DAMAGED = 1  # exit status of `bank verify` and `check-precision` when the answer is no


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the commands to the program's parser."""
    _bank_parser(commands)

    plan = commands.add_parser(
        "plan",
        help="predict time, memory and disk of a training",
        description="Predict time, memory and disk of each stage of a training on N normal images, from half a minute of "
        "calibration on this machine.",
    )
    plan.add_argument("--images", type=int, required=True, metavar="N", help="normal images")
    plan.add_argument("--abnormal", type=int, default=16, metavar="N", help="abnormal images")
    plan.add_argument("--size", type=int, default=320, help="pixels per side of the network's input")
    plan.add_argument("--epochs", type=int, default=5)
    plan.add_argument("--bank_memory", type=float, metavar="BYTES", help="see train.yaml")
    plan.add_argument(
        "--sample", nargs="+", metavar="FILE", help="images like yours; default: a synthetic PNG, 1024 x 1024"
    )
    plan.add_argument("--json", action="store_true", help="as JSON")
    _backbone_options(plan)
    plan.set_defaults(run=_plan)

    check = commands.add_parser(
        "check-precision",
        help="measure whether a backbone bears bfloat16",
        description="Compare features and image scores of a backbone in bfloat16 with float32. Exit status 0: within the "
        "tolerances, 1: not.",
    )
    check.add_argument("folder", nargs="?", metavar="DIR", help="data set; default: synthetic radiographs")
    check.add_argument("--size", type=int, default=320)
    check.add_argument("--precision", default="bfloat16", choices=("bfloat16",))
    check.add_argument(
        "--tolerance", type=float, default=0.05, help="relative error of whitened features (root mean square)"
    )
    check.add_argument("--auroc_tolerance", type=float, default=0.005, help="largest change of the AUROC")
    check.add_argument("--json", action="store_true", help="as JSON")
    _backbone_options(check)
    check.set_defaults(run=_check_precision)


def _bank_parser(commands: argparse._SubParsersAction) -> None:
    bank = commands.add_parser(
        "bank", help="banks of patch features in folders: list, add, remove, merge, compact, verify"
    )
    actions = bank.add_subparsers(required=True, metavar="ACTION")

    action = actions.add_parser("list", help="what a bank holds")
    action.add_argument("bank", metavar="BANK")
    action.add_argument("--digests", action="store_true", help="the digest of every image as well")
    action.set_defaults(run=_bank_list)

    action = actions.add_parser("add", help="add images; those that are there are not computed again")
    action.add_argument("bank", metavar="BANK", help="new, or of the same settings")
    action.add_argument("images", nargs="+", metavar="PATH", help="image files, or folders of them")
    action.add_argument("--size", type=int, default=320)
    action.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"), help="of a new bank")
    action.add_argument("--max_bad_share", type=float, default=0.05)
    _backbone_options(action)
    action.set_defaults(run=_bank_add)

    action = actions.add_parser("remove", help="take images out")
    action.add_argument("bank", metavar="BANK")
    action.add_argument(
        "images", nargs="+", metavar="IMAGE", help="files, or digests as `bank list --digests` shows them"
    )
    action.set_defaults(run=_bank_remove)

    action = actions.add_parser(
        "merge", help="several banks as one; nothing is computed, files are shared where possible"
    )
    action.add_argument("output", metavar="OUT", help="new folder")
    action.add_argument("banks", nargs="+", metavar="BANK")
    action.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="default: that of the first bank")
    action.set_defaults(run=_bank_merge)

    action = actions.add_parser("compact", help="free the space of removed images")
    action.add_argument("bank", metavar="BANK")
    action.set_defaults(run=_bank_compact)

    action = actions.add_parser(
        "verify", help="compare every image with its checksum; exit status 1 when one is damaged"
    )
    action.add_argument("bank", metavar="BANK")
    action.add_argument("--drop", action="store_true", help="take damaged shards out of the bank")
    action.set_defaults(run=_bank_verify)


def _backbone_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--weights", default="default", help="file of weights, or 'none' for random ones")
    parser.add_argument("--layers", help="comma-separated; default: those of the backbone")
    parser.add_argument("--neighbourhood", type=int, default=5)
    parser.add_argument("--align_to", default="coarsest", choices=("coarsest", "finest"))
    parser.add_argument("--device", default="cpu")


def extractor_of(options: argparse.Namespace, cache: bool = False, precision: str = "float32") -> PatchExtractor:
    """The extractor that the backbone options describe."""
    from monai_wscxr.data.transforms import Preprocessing
    from monai_wscxr.features.backbones import create_backbone
    from monai_wscxr.features.extraction import PatchExtractor
    from monai_wscxr.features.patches import PatchFeatures

    layers = options.layers.split(",") if options.layers else None
    backbone = create_backbone(options.backbone, layers, options.weights)
    features = PatchFeatures(backbone, options.neighbourhood, None, options.align_to)
    preprocessing = Preprocessing(options.size, backbone.mean, backbone.std, intensity="standardised")
    share = getattr(options, "max_bad_share", 0.05)
    return PatchExtractor(
        features, preprocessing, options.device, None if cache else False, max_bad_share=share, precision=precision
    )


def _bank_list(options: argparse.Namespace) -> None:
    from monai_wscxr.bank.folder import BankFolder

    bank = BankFolder(options.bank)
    dead, size = sum(len(entry.dead) for entry in bank.entries), sum(entry.bytes for entry in bank.entries)
    images = sum(entry.images for entry in bank.entries) - dead
    h, w = bank.grid
    print(f"{images:,} images, {len(bank):,} rows of {bank.channels} channels ({h} x {w} per image), {bank.dtype}")
    print(
        f"{len(bank.entries)} shards, {size / 1e9:.2f} GB; {dead} removed images in them (`bank compact` frees their space)"
    )
    for key in ("backbone", "layers", "neighbourhood", "align_to", "preprocessing", "inference"):
        if key in bank.settings:
            print(f"  {key}: {json.dumps(bank.settings[key])}")
    if options.digests:
        print("\n".join(bank.digests()))


def _bank_add(options: argparse.Namespace) -> None:
    from monai_wscxr.bank.folder import BankFolder
    from monai_wscxr.data.radiograph.read import file_digest

    extractor = extractor_of(options)
    if (Path(options.bank) / "bank.json").exists():
        bank = BankFolder(options.bank)
        if bank.settings != extractor.settings():
            raise InputError(
                f"{options.bank} was made with other settings (`bank list` shows them); give the same backbone, size and so on"
            )
    else:
        bank = BankFolder.create(
            options.bank, extractor.settings(), extractor.grid, extractor.features.channels, options.dtype
        )
    known = set(bank.digests())
    files = [file for file in _files(options.images) if file_digest(file) not in known]
    shard = extractor.shard_images
    for first in range(0, len(files), shard):
        part = extractor.bank([{"image": str(file)} for file in files[first : first + shard]])
        h, w = part.grid
        digests = [extractor.digests[file] for file in part.files]
        bank.add(digests, part.rows.reshape(len(digests), h * w, -1))
    for file, code, message in extractor.done.rejected:
        print(f"rejected ({code}): {message or file}", file=sys.stderr)
    print(f"{extractor.done.extracted} images added, {len(known)} were there")


def _files(paths: list[str]) -> Iterator[Path]:
    for path in map(Path, paths):
        if path.is_dir():
            yield from sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
        elif path.is_file():
            yield path
        else:
            raise InputError(f"there is no file or folder {path}")


def _bank_remove(options: argparse.Namespace) -> None:
    from monai_wscxr.bank.folder import BankFolder
    from monai_wscxr.data.radiograph.read import file_digest

    digests = [file_digest(image) if Path(image).is_file() else image for image in options.images]
    removed = BankFolder(options.bank).remove(digests)
    if not removed:
        raise InputError(f"none of these {len(digests)} images is in {options.bank}; nothing was removed")
    print(f"{removed} images removed")


def _bank_merge(options: argparse.Namespace) -> None:
    from monai_wscxr.bank.folder import BankFolder

    sources = [BankFolder(path) for path in options.banks]
    first = sources[0]
    bank = BankFolder.create(options.output, first.settings, first.grid, first.channels, options.dtype or first.dtype)
    for source in tqdm(sources, desc="merging", unit="bank"):
        bank.merge(source)
    print(f"{len(bank.digests()):,} images, {len(bank):,} rows in {options.output}")


def _bank_compact(options: argparse.Namespace) -> None:
    from monai_wscxr.bank.folder import BankFolder

    print(f"{BankFolder(options.bank).compact() / 1e6:.1f} MB freed")


def _bank_verify(options: argparse.Namespace) -> int:
    from monai_wscxr.bank.folder import BankFolder

    bank = BankFolder(options.bank)
    with tqdm(total=len(bank.entries), desc="verifying", unit="shard") as bar:
        damaged = bank.verify(bar.update)
    for file, why, images in damaged:
        print(f"{file}: {why}; {images} images")
    if damaged and options.drop:
        bank.drop(file for file, _, _ in damaged)
        print(f"{len(damaged)} shards taken out; `bank add` the images again")
    if not damaged:
        print(f"{len(bank.entries)} shards are whole")
    return DAMAGED if damaged else 0


def _plan(options: argparse.Namespace) -> None:
    import tempfile

    from monai_wscxr.planning.plan import make_plan

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
        )
    print(json.dumps(made.to_dict(), indent=1) if options.json else made.table())


def _phantom(folder: Path) -> str:
    from monai_wscxr.data.phantom import write_phantoms

    write_phantoms(folder / "p", n_train_normal=1, n_train_abnormal=1, n_test_normal=1, n_test_abnormal=1, size=1024)
    return str(next((folder / "p" / "train" / "normal").iterdir()))


def _check_precision(options: argparse.Namespace) -> int:
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
    return 0 if result.accepted else DAMAGED
