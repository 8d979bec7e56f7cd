"""The output folder of a prediction run: whose it is, what is in it, and which inputs are done."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import monai_wscxr
from monai_wscxr.errors import InputError
from monai_wscxr.model.artefact import TrainedModel
from monai_wscxr.prediction.inputs import Input
from monai_wscxr.prediction.journal import NAME as JOURNAL
from monai_wscxr.prediction.journal import Record, check_idle
from monai_wscxr.prediction.options import Options

_OWN = ("maps", "overlays", "dicom", "report", "predictions.csv", "predictions.json", JOURNAL)


def claim(folder: Path, overwrite: bool) -> None:
    """Make the folder, and clear a run that is to be replaced.

    Raises:
        InputError: when the folder holds something else than a prediction run, a run that is going on, or cannot be written.
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
        raise InputError(f"the output folder {folder} cannot be written ({error.strerror})") from error


def identity(options: Options, model: TrainedModel, inputs: Sequence[Input], device: str) -> dict[str, Any]:
    """Everything that a result depends on; another value of any of these needs another folder."""
    scoring = [model.calibration.to_dict(), model.preprocessing.to_dict(), model.map_sigma]
    return {
        "version": monai_wscxr.__version__,
        "model": model.sha256,
        "scoring": digest(json.dumps(scoring, sort_keys=True)),
        "inputs": digest("\0".join(item.file for item in inputs)),
        "device": device,
        "batch_size": options.batch_size,
        "maps": options.maps,
        "overlays": options.overlays,
        "report": options.report,
        "dicom": options.dicom,
        "allow": sorted(options.allow),
    }


def make_folders(folder: Path, options: Options) -> None:
    """Folders for the results; what a killed run had not yet renamed goes. The journal's lock must be held."""
    names = {"maps": options.maps != "none", "overlays": options.overlays, "dicom": options.dicom}
    names["report/pictures"] = options.report
    for name, there in names.items():
        if there:
            (folder / name).mkdir(parents=True, exist_ok=True)
    for place in (folder, *(folder / name for name in names)):
        for left in place.glob(".*.partial") if place.is_dir() else ():
            left.unlink(missing_ok=True)


def is_done(folder: Path, record: Record | None, item: Input) -> bool:
    """Whether a record still stands: of the same file as it is now, with all its results there in full."""
    if record is None or record["stamp"] != stamp(item.path):
        return False
    return all(_size(folder / name) == record["sizes"][what] for what, name in record["files"].items())


def stamp(path: str) -> str:
    """Changes when a file does; empty for what is not there."""
    try:
        state = os.stat(path)
    except (OSError, ValueError):
        return ""
    return digest(f"{state.st_size} {state.st_mtime_ns}")[:16]


def digest(text: str) -> str:
    """SHA-256 of a text, in hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
