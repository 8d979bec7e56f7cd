"""`monai-wscxr bank`: banks of patch features in folders that grow, shrink and merge."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tqdm import tqdm

from monai_wscxr.commands.backbone_options import add_backbone_options, extractor_of
from monai_wscxr.commands.exit_status import ANSWER_NO
from monai_wscxr.commands.parsers import Commands
from monai_wscxr.errors import InputError


def add_parser(commands: Commands) -> None:
    """Add the command and its actions to the program's parser."""
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
    action.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"), help="of a new bank")
    action.add_argument("--max_bad_share", type=float, default=0.05)
    add_backbone_options(action)
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
    from monai_wscxr.data.listing import list_images

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
    listing = list_images(options.images)
    if listing.left_out:
        print(listing.summary(), file=sys.stderr)
    files = [file for file in listing.images if not _is_in(known, file)]
    shard = extractor.shard_images
    for first in range(0, len(files), shard):
        part = extractor.bank([{"image": str(file)} for file in files[first : first + shard]])
        h, w = part.grid
        digests = [extractor.digests[file] for file in part.files]
        bank.add(digests, part.rows.reshape(len(digests), h * w, -1))
    for file, code, message in extractor.done.rejected:
        print(f"rejected ({code}): {file}: {message}", file=sys.stderr)
    print(f"{extractor.done.extracted} images added, {len(known)} were there")


def _is_in(digests: set[str], file: Path) -> bool:
    """Tell whether a bank holds a file; the extractor then gives the reason for one that cannot be read."""
    from monai_wscxr.data.radiograph.read import file_digest

    try:
        return file_digest(file) in digests
    except OSError:
        return False


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
    return ANSWER_NO if damaged else 0
