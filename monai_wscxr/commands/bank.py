"""`monai-wscxr bank`: manage banks of patch features in folders."""

from __future__ import annotations

import argparse
import errno
import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from monai_wscxr.commands.backbone_options import add_backbone_options, extractor_of
from monai_wscxr.commands.exit_status import ANSWER_NO
from monai_wscxr.commands.parsers import Commands
from monai_wscxr.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from monai_wscxr.bank.folder import BankFolder
    from monai_wscxr.features.extraction import PatchExtractor

_DTYPES = ("float32", "float16", "bfloat16")
_IMAGE_BYTES = 200  # of an image in the header of a shard, and in the index
_ADDED_STAYS = "the images added so far stay in the bank; make room and give the same command again"


def add_parser(commands: Commands) -> None:
    """Add the command and its actions to the program's parser."""
    parser = commands.add_parser(
        "bank", help="manage banks of patch features in folders: list, add, remove, merge, compact, verify"
    )
    parser.set_defaults(run=run)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    action = actions.add_parser("list", help="show the size and the settings of a bank")
    action.add_argument("bank", metavar="BANK", help="folder of the bank")
    action.add_argument("--digests", action="store_true", help="also show the digest of every image")

    action = actions.add_parser("add", help="add images; images that are in the bank already are not computed again")
    action.add_argument("bank", metavar="BANK", help="folder of the bank: new, or of a bank with the same settings")
    action.add_argument("images", nargs="+", metavar="PATH", help="image files, or folders that are searched for them")
    action.add_argument(
        "--dtype", default="float32", choices=_DTYPES, help="type of the numbers in a new bank (default: %(default)s)"
    )
    action.add_argument(
        "--max_bad_share",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="largest share of images that may be unusable, from 0 to 1 (default: %(default)s)",
    )
    action.add_argument(
        "--workers",
        type=int,
        default=min(os.cpu_count() or 1, 2),
        metavar="N",
        help="processes that read, so that a file that crashes a decoder costs itself alone; 0 for none (default: %(default)s)",
    )
    add_backbone_options(action)

    action = actions.add_parser("remove", help="remove images")
    action.add_argument("bank", metavar="BANK", help="folder of the bank")
    action.add_argument(
        "images", nargs="+", metavar="IMAGE", help="image files, or digests as `bank list --digests` shows them"
    )

    action = actions.add_parser("merge", help="merge banks into a new one, without computing features")
    action.add_argument("output", metavar="OUT", help="new folder")
    action.add_argument(
        "banks", nargs="+", metavar="BANK", help="folders of the banks; their files are shared if possible"
    )
    action.add_argument("--dtype", choices=_DTYPES, help="type of the numbers (default: that of the first bank)")

    action = actions.add_parser("compact", help="free the disk space of removed images")
    action.add_argument("bank", metavar="BANK", help="folder of the bank")

    action = actions.add_parser(
        "verify", help="compare every image with its checksum; the exit status is 1 when one is damaged"
    )
    action.add_argument("bank", metavar="BANK", help="folder of the bank")
    action.add_argument("--drop", action="store_true", help="remove damaged shards from the bank")


def run(options: argparse.Namespace) -> int:
    """Run one action; return ANSWER_NO when `verify` finds damage."""
    return _ACTIONS[options.action](options)


def _list(options: argparse.Namespace) -> int:
    from monai_wscxr.bank.folder import BankFolder

    bank = BankFolder(options.bank)
    dead, size = sum(len(entry.dead) for entry in bank.entries), sum(entry.bytes for entry in bank.entries)
    images = sum(entry.images for entry in bank.entries) - dead
    h, w = bank.grid
    print(f"{images:,} images, {len(bank):,} rows of {bank.channels} channels ({h} x {w} per image), {bank.dtype}")
    print(f"{len(bank.entries)} shards, {size / 1e9:.2f} GB; {dead} removed images (`bank compact` frees their space)")
    for key in ("backbone", "layers", "neighbourhood", "align_to", "preprocessing", "inference"):
        if key in bank.settings:
            print(f"  {key}: {json.dumps(bank.settings[key])}")
    if options.digests:
        print("\n".join(bank.digests()))
    return 0


def _add(options: argparse.Namespace) -> int:
    from monai_wscxr.bank.folder import DTYPES, BankFolder
    from monai_wscxr.data.listing import list_images
    from monai_wscxr.features.extraction import none_usable
    from monai_wscxr.system.atomic import DiskFullError, full_disk, on_disk

    extractor = extractor_of(options)
    if (Path(options.bank) / "bank.json").exists():
        bank = BankFolder(options.bank)
        if bank.settings != extractor.settings():
            raise InputError(
                f"{options.bank} was made with other settings; give the backbone, size and other options that "
                "`monai-wscxr bank list` shows"
            )
    else:
        bank = BankFolder.create(
            options.bank, extractor.settings(), extractor.grid, extractor.features.channels, options.dtype
        )
    known = set(bank.digests())
    listing = list_images(options.images)
    if listing.left_out:
        print(listing.summary(), file=sys.stderr)
    files = [file for file in listing.images if _digest(extractor, file) not in known]
    shard = extractor.shard_images
    for first in range(0, len(files), shard):
        part = [str(file) for file in files[first : first + shard]]
        used, features, _ = extractor.usable(part, "images", of=len(listing.images))
        try:
            if used:
                bank.add([extractor.digests[file] for file in used], features)
        except DiskFullError as error:
            left = len(files) - first
            image = extractor.image_bytes * DTYPES[bank.dtype].itemsize // 4
            needed = left * (image + _IMAGE_BYTES) + on_disk(image)
            raise full_disk(bank.path, needed, f"the features of {left:,} images", _ADDED_STAYS) from error
    if files and not bank.entries:
        raise none_usable(len(files), "images", extractor.done.rejected)
    for file, code, message in extractor.done.rejected:
        print(f"rejected ({code}): {file}: {message}", file=sys.stderr)
    print(f"{extractor.done.extracted} images added, {len(known)} were in the bank already")
    return 0


def _digest(extractor: PatchExtractor, file: Path) -> str | None:
    """Return the digest of a file, or None if it cannot be read; the extractor then rejects it with the reason."""
    try:
        return extractor.digest(str(file))
    except OSError:
        return None


def _remove(options: argparse.Namespace) -> int:
    from monai_wscxr.bank.folder import BankFolder
    from monai_wscxr.data.radiograph.read import file_digest

    digests = [file_digest(image) if Path(image).is_file() else image for image in options.images]
    removed = BankFolder(options.bank).remove(digests)
    if not removed:
        raise InputError(f"none of these {len(digests)} images is in {options.bank}; nothing was removed")
    print(f"{removed} images removed")
    return 0


def _merge(options: argparse.Namespace) -> int:
    from monai_wscxr.bank.folder import BankFolder
    from monai_wscxr.system.atomic import full_disk, is_disk_full, on_disk, sync
    from monai_wscxr.system.progress import progress_bar

    sources = [BankFolder(path) for path in options.banks]
    first, output = sources[0], Path(options.output).absolute()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        if not _is_merged(output, sources, options.dtype or first.dtype):
            raise InputError(f"{options.output} exists already and is not empty; choose another folder")
        # this command was killed when it was done
        _print_merged(BankFolder(output), options.output)
        return 0
    # renamed when it is complete: a killed merge leaves no bank, and the same command starts anew
    unfinished = output.with_name(f".{output.name}.merging")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    needed = 0
    try:
        bank = BankFolder.create(unfinished, first.settings, first.grid, first.channels, options.dtype or first.dtype)
        needed = sum(bank.merging_takes(source) for source in sources)
        if needed > shutil.disk_usage(unfinished).free:  # before hours of copying
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with progress_bar(len(sources), "merging", unit="bank") as bar:
            for source in sources:
                bank.merge(source)
                bar.update()
        os.replace(unfinished, output)
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)  # would only take up room
        if isinstance(error, OSError) and is_disk_full(error):
            needed += 3 * sum(on_disk((source.path / "bank.json").stat().st_size) for source in sources)
            raise full_disk(output.parent, needed, str(options.output)) from error
        raise
    sync(output.parent)
    _print_merged(BankFolder(output), options.output)
    return 0


def _is_merged(output: Path, sources: Sequence[BankFolder], dtype: str) -> bool:
    """Tell whether a folder holds what merging these banks would give."""
    from monai_wscxr.bank.folder import BankFolder

    if not (output / "bank.json").exists() or output.resolve() in [source.path.resolve() for source in sources]:
        return False
    bank, first = BankFolder(output), sources[0]
    same = (bank.settings, bank.grid, bank.channels, bank.dtype) == (first.settings, first.grid, first.channels, dtype)
    return same and bank.digests() == list(dict.fromkeys(digest for source in sources for digest in source.digests()))


def _print_merged(bank: BankFolder, name: str) -> None:
    print(f"{len(bank.digests()):,} images, {len(bank):,} rows in {name}")


def _compact(options: argparse.Namespace) -> int:
    from monai_wscxr.bank.folder import BankFolder

    print(f"{BankFolder(options.bank).compact() / 1e6:.1f} MB freed")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from monai_wscxr.bank.folder import BankFolder
    from monai_wscxr.system.progress import progress_bar

    bank = BankFolder(options.bank)
    with progress_bar(len(bank.entries), "verifying", unit="shard") as bar:
        damaged = bank.verify(bar.update)
    for file, why, images in damaged:
        print(f"{file}: {why}; {images} images")
    if damaged and options.drop:
        bank.drop(file for file, _, _ in damaged)
        print(f"{len(damaged)} shards removed; add their images again with `monai-wscxr bank add`")
    if not damaged:
        print(f"{len(bank.entries)} shards are undamaged")
    return ANSWER_NO if damaged else 0


_ACTIONS = {
    "list": _list,
    "add": _add,
    "remove": _remove,
    "merge": _merge,
    "compact": _compact,
    "verify": _verify,
}
