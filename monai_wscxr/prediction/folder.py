"""Output folder of a prediction run: which run it belongs to, what it contains, and which inputs are done."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import monai_wscxr
from monai_wscxr.errors import InputError
from monai_wscxr.model.description import ModelDescription
from monai_wscxr.prediction.inputs import Input
from monai_wscxr.prediction.journal import NAME as JOURNAL
from monai_wscxr.prediction.journal import Record, check_idle
from monai_wscxr.prediction.options import Options
from monai_wscxr.system.atomic import is_disk_full, missing_text, on_disk

_FOLDER = 4096  # bytes of an entry that is not a file
_RECORD_BYTES, _ROW_BYTES = 700, 2000  # of an image in the journal, and in tables and report
_OWN = ("maps", "overlays", "dicom", "report", "predictions.csv", "predictions.json", JOURNAL)


def claim(folder: Path, overwrite: bool) -> None:
    """Create the folder, or delete the results of the run in it if they are to be replaced.

    Args:
        folder: output folder of the run.
        overwrite: delete the results of another run.

    Raises:
        InputError: when the folder contains anything other than a prediction run, a run in it is still active, or it cannot
            be written.
        OSError: when the disk is full.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give a folder with --output")
    if folder.is_dir() and not (folder / JOURNAL).is_file() and any(folder.iterdir()):
        raise InputError(
            f"{folder} is not empty and holds no prediction run (it has no {JOURNAL}); give an empty or new folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_idle(folder)
        for name in _OWN if overwrite else ():
            path = folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        if is_disk_full(error):
            raise
        raise InputError(f"the output folder {folder} cannot be written ({error.strerror})") from error


def identity(
    options: Options, model: ModelDescription, inputs: Sequence[Input], computing: Mapping[str, Any]
) -> dict[str, Any]:
    """Return everything that the results depend on; with any other value, a run needs another folder.

    Args:
        options, model, inputs: of the run.
        computing: device and runtime of the network, JSON-like.
    """
    check = None if model.chest_check is None else model.chest_check.to_dict()
    drift = None if model.drift is None else model.drift.to_dict()
    scoring = [model.calibration.to_dict(), model.preprocessing.to_dict(), model.map_sigma, check, drift]
    return {
        "version": monai_wscxr.__version__,
        "model": model.sha256,
        "scoring": digest(json.dumps(scoring, sort_keys=True)),
        "inputs": digest("\0".join(item.file for item in inputs)),
        **computing,
        "batch_size": options.batch_size,
        "maps": options.maps,
        "overlays": options.overlays,
        "report": options.report,
        "dicom": options.dicom,
        "allow": sorted(options.allow),
    }


def make_folders(folder: Path, options: Options) -> None:
    """Create the subfolders for the results and delete unfinished files of a killed run; requires the journal's lock."""
    names = {"maps": options.maps != "none", "overlays": options.overlays, "dicom": options.dicom}
    names["report/pictures"] = options.report
    for name, wanted in names.items():
        if wanted:
            (folder / name).mkdir(parents=True, exist_ok=True)
    for place in (folder, *(folder / name for name in names)):
        for partial in place.glob(".*.partial") if place.is_dir() else ():
            partial.unlink(missing_ok=True)


def is_done(folder: Path, record: Record | None, item: Input) -> bool:
    """Return whether a record is still valid: the file is unchanged, and all its results are complete."""
    if record is None or record["stamp"] != stamp(item.path):
        return False
    return all(_size(folder / name) == record["sizes"][what] for what, name in record["files"].items())


def full_disk(folder: Path, options: Options, side: int, records: Mapping[int, Record], inputs: Sequence[Input]) -> str:
    """Return the sentence that ends a run on a full disk, with the number of bytes that are missing.

    Args:
        folder: output folder of the run.
        options: options of the run.
        side: rows and columns of the model's images.
        records: records of the inputs that are done.
        inputs: all inputs of the run.
    """
    sizes = [sum(on_disk(size) for size in record["sizes"].values()) for record in records.values() if record["sizes"]]
    left = [item for n, item in enumerate(inputs) if n not in records]
    results = [sum(sizes) / len(sizes)] * len(left) if sizes else [_guess(options, side, item) for item in left]
    needed = on_disk(sum(results) + len(left) * _RECORD_BYTES + len(inputs) * _ROW_BYTES)
    return (
        f"{folder} cannot be written because the disk is full: for the results of {len(left)} more images and the tables "
        f"about {missing_text(folder, needed)}; make room or give another folder with --output, then give the same command "
        "again"
    )


def _guess(options: Options, side: int, item: Input) -> float:
    """Estimate the bytes of an image's results before any are known, from the size of its file."""
    pixels, file = side * side, min(max(_size(Path(item.path)), 0), 2**27) if item.path else 0
    guess: float = 4 * pixels * (options.maps != "none") + 2 * pixels * options.overlays + pixels * options.report
    if options.dicom:  # map and regions have the pixels of the image, most files two bytes for each
        guess += 0.6 * file + min(1.5 * file, 3 * 2**20) + 12_000
    return guess + 3 * _FOLDER


def stamp(path: str) -> str:
    """Return a digest of size and modification time of a file; empty if it does not exist."""
    try:
        state = os.stat(path)
    except (OSError, ValueError):
        return ""
    return digest(f"{state.st_size} {state.st_mtime_ns}")[:16]


def digest(text: str) -> str:
    """Return the SHA-256 of a text in hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def _size(path: Path) -> int:
    """Return the size of a file in bytes, -1 if it does not exist."""
    try:
        return path.stat().st_size
    except OSError:
        return -1
