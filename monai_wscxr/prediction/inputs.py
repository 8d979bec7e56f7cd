"""What a prediction run reads: files, folders and DICOMDIRs become a list of inputs, each of which gets its row."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom

from monai_wscxr.data.radiograph.read import quiet
from monai_wscxr.errors import InputError
from monai_wscxr.prediction.journal import NAME as JOURNAL

_SUFFIXES = (".png", ".jpg", ".jpeg", ".nii", ".nii.gz", ".dcm", ".dicom", ".ima")
_DIRECTORY_CLASS = re.compile(rb"1\.2\.840\.10008\.1\.3\.10(?![0-9.])")
_LARGEST_DICOMDIR = 2**26


@dataclass(frozen=True)
class Input:
    """One thing to predict.

    Attributes:
        file: what its row is called: the path as it was given, or joined to it.
        path: what is opened; empty when there is nothing to open.
        problem: reason code and sentence of an input that is rejected without being read, or None.
    """

    file: str
    path: str
    problem: tuple[str, str] | None = None


def find_inputs(paths: Sequence[str], without: str | None = None) -> tuple[list[Input], int]:
    """Inputs in a fixed order, and the number of other files that were left out of folders.

    A folder is searched with all its subfolders, sorted by name; in it, files count that have the suffix of a picture, no
    suffix, the dotted numbers of a UID as name, or DICOM content. Hidden files and DICOMDIRs do not count: a folder's images
    are there anyway. A DICOMDIR that is named itself stands for the images it lists. The results of a prediction run, below a
    folder that is searched, are no inputs either.

    Args:
        paths: files, folders, DICOMDIRs.
        without: folder of results that is not searched, though it may not hold any yet.

    Raises:
        InputError: when no path exists, or nothing is found in any.
    """
    if not paths:
        raise InputError("nothing to predict was given; name files, folders or a DICOMDIR")
    if not any(os.path.exists(path) for path in paths):
        raise InputError(f"{shown(paths[0])} does not exist; name files, folders or a DICOMDIR that do")
    found: list[Input] = []
    left_out = 0
    for path in paths:
        if os.path.isdir(path):
            for file in _files_below(path, without):
                if _is_candidate(file):
                    found.append(Input(shown(file), file))
                else:
                    left_out += not os.path.basename(file).startswith(".")
        elif os.path.isfile(path) and _is_dicomdir(path):
            found += _listed(path)
        else:
            found.append(Input(shown(path), path))
    if not found:
        raise InputError(
            f"no radiograph was found in {', '.join(map(shown, paths))}; files count that end in "
            f"{', '.join(_SUFFIXES)}, have no suffix, or hold DICOM"
        )
    return found, left_out


def shown(path: str) -> str:
    r"""A path as text that every file and console takes; bytes that are no UTF-8 become \x escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _files_below(folder: str, without: str | None) -> Iterator[str]:
    apart = None if without is None else os.path.realpath(without)
    for current, folders, files in os.walk(folder):
        below = current != folder
        if (below and JOURNAL in files) or os.path.realpath(current) == apart:  # results of a run
            folders.clear()
            continue
        folders.sort()
        yield from (os.path.join(current, name) for name in sorted(files))


def _is_candidate(file: str) -> bool:
    name = os.path.basename(file).lower()
    if name.startswith(".") or name == "dicomdir":
        return False
    stem, dot, suffix = name.rpartition(".")
    if not dot or name.endswith(_SUFFIXES) or (suffix.isdecimal() and stem.replace(".", "").isdecimal()):
        return True
    try:
        with open(file, "rb") as opened:
            return opened.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _is_dicomdir(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            head = file.read(1024)
    except OSError:
        return False
    return head[128:132] == b"DICM" and _DIRECTORY_CLASS.search(head) is not None


def _listed(path: str) -> list[Input]:
    """Images of a DICOMDIR. Entries that point nowhere or out of its folder are named by number: their text is not a
    path that somebody gave."""
    if os.path.getsize(path) > _LARGEST_DICOMDIR:
        raise InputError(f"{shown(path)} is larger than {_LARGEST_DICOMDIR >> 20} MiB; name the folder instead")
    try:
        with quiet:
            ds: Any = pydicom.dcmread(path, specific_tags=["DirectoryRecordSequence"])
            records = ds.get("DirectoryRecordSequence") or ()
            names = [r.get("ReferencedFileID") or "" for r in records if r.get("DirectoryRecordType") == "IMAGE"]
    except Exception as error:  # whatever pydicom makes of damaged bytes; its text may quote the header
        raise InputError(
            f"{shown(path)} is damaged ({type(error).__name__}); name the folder with the images instead"
        ) from None
    folder = Path(path).parent
    found = []
    for number, name in enumerate(names):
        parts = [name] if isinstance(name, str) else [str(part) for part in name]
        target = _inside(folder, parts)
        if target is None:
            problem = ("outside_folder", "this entry of the DICOMDIR points out of its folder, or to no file.")
            found.append(Input(f"{shown(path)}#{number}", "", problem))
        else:
            found.append(Input(shown(str(target)), str(target)))
    if not found:
        raise InputError(f"{shown(path)} lists no image")
    return found


def _inside(folder: Path, parts: Sequence[str]) -> Path | None:
    """The file below `folder` that the parts name, in any case (discs are often copied in lower case), or None."""
    current = folder
    for part in parts:
        if not part or part in (".", "..") or "/" in part or "\\" in part or "\0" in part:
            return None
        if (current / part).exists():
            current = current / part
            continue
        try:
            same = [entry for entry in current.iterdir() if entry.name.lower() == part.lower()]
        except OSError:
            return None
        if len(same) != 1:
            return None
        current = same[0]
    contained = current.resolve().is_relative_to(folder.resolve())
    return current if contained and current.is_file() else None
