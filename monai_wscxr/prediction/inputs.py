"""Inputs of a prediction run: the images among files, folders and DICOMDIRs, each of which gets a row in the results."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
from pydicom.filereader import read_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian

from monai_wscxr.data.listing import HIDDEN, IMAGE_SUFFIXES, NOT_AN_IMAGE, UNREADABLE, UNREADABLE_FOLDER, list_images
from monai_wscxr.data.radiograph.base import quiet
from monai_wscxr.errors import InputError
from monai_wscxr.prediction.journal import NAME as JOURNAL

_DICOMDIR_CLASS = re.compile(rb"1\.2\.840\.10008\.1\.3\.10(?![0-9.])")  # SOP class of media storage directories
_LARGEST_DICOMDIR = 2**26  # bytes
_SPECIAL = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@dataclass(frozen=True)
class Input:
    """One image to predict.

    Attributes:
        file: name of its row: the path as it was given, or joined to the folder that was given.
        path: the file to open; empty when there is none.
        problem: reason code and message of an input that is rejected without being read, or None.
    """

    file: str
    path: str
    problem: tuple[str, str] | None = None


def find_inputs(paths: Sequence[str], without: str | None = None) -> tuple[list[Input], int]:
    """List the inputs in a fixed order.

    A file is taken as it is given, a DICOMDIR for the images that it lists. In a folder, `listing` decides which files are
    images; files and subfolders that cannot be read, pipes, sockets and devices become inputs too, so that their rows name the
    reason. Only regular files are ever opened. Folders with results of prediction runs are not searched.

    Args:
        paths: files, folders and DICOMDIRs.
        without: output folder of this run, which is not searched even if it holds no results yet.

    Returns:
        The inputs, and the number of files in folders that are neither images nor hidden.

    Raises:
        InputError: when no path exists, no path gives an input, or the only path is a DICOMDIR that cannot be used. Among
            several paths, such a DICOMDIR is an input that is rejected, so that the others are predicted.
    """
    if not paths:
        raise InputError("nothing to predict was given; name files, folders or a DICOMDIR")
    if not any(os.path.exists(path) for path in paths):
        raise InputError(f"{shown(paths[0])} does not exist; name files, folders or a DICOMDIR that do")
    found: list[Input] = []
    left_out = 0
    for path in paths:
        if os.path.isdir(path):
            inputs, others = _in_folder(path, without)
            found += inputs
            left_out += others
        elif os.path.isfile(path) and _is_dicomdir(path):
            try:
                found += _listed(path)
            except InputError as error:
                if len(paths) == 1:
                    raise
                found.append(Input(shown(path), "", ("unreadable", f"{str(error).removeprefix(shown(path)).strip()}.")))
        else:
            found.append(_input(path))
    if not found:
        raise InputError(
            f"no radiograph was found in {', '.join(map(shown, paths))}; images are files that end in "
            f"{', '.join(IMAGE_SUFFIXES)}, and DICOM files of any name"
        )
    return found, left_out


def shown(path: str) -> str:
    r"""Return a path as text that can be written anywhere; bytes that are not UTF-8 become \x escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _in_folder(folder: str, without: str | None) -> tuple[list[Input], int]:
    """Return the inputs in a folder and the number of files that are neither images nor hidden."""
    root = Path(folder)
    output = None if without is None else os.path.realpath(without)

    def holds_results(path: Path) -> bool:
        return os.path.realpath(path) == output or (path != root and (path / JOURNAL).is_file())

    listing = list_images([root], skip=holds_results)
    reasons = dict(listing.left_out)
    shown_too = [
        path
        for path, reason in listing.left_out
        if reason in (UNREADABLE, UNREADABLE_FOLDER) or (reason != HIDDEN and _special(path))
    ]
    found = []
    for path in sorted([*listing.images, *shown_too]):
        file = os.path.join(folder, path.relative_to(root))
        if reasons.get(path) == UNREADABLE_FOLDER:
            problem = ("unreadable", "this folder cannot be opened. Check its permissions.")
            found.append(Input(shown(file), "", problem))
        else:
            found.append(_input(file))
    others = set(reasons).difference(shown_too)
    return found, sum(reasons[path] == NOT_AN_IMAGE for path in others)


def _input(file: str) -> Input:
    """Return the input of a file; one that is not a regular file is rejected without being opened, which might never end."""
    what = _special(file)
    if what is None:
        return Input(shown(file), file)
    return Input(shown(file), "", ("unreadable", f"this is {what}, not a file; it was not opened."))


def _special(path: str | Path) -> str | None:
    """Return what a path names that exists and is neither a file nor a folder; otherwise None."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return None
    return next((words for check, words in _SPECIAL if check(mode)), None)


def _is_dicomdir(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            head = file.read(1024)
    except OSError:
        return False
    return head[128:132] == b"DICM" and _DICOMDIR_CLASS.search(head) is not None


def _listed(path: str) -> list[Input]:
    """Return the images that a DICOMDIR lists.

    Entries that point to no file or out of its folder are named by their number, because their text may be patient data.

    Raises:
        InputError: when the DICOMDIR is too large, damaged or lists no image.
    """
    if os.path.getsize(path) > _LARGEST_DICOMDIR:
        raise InputError(f"{shown(path)} is larger than {_LARGEST_DICOMDIR >> 20} MiB; name the folder instead")
    try:
        with quiet:
            meta = read_file_meta_info(path)
            if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
                raise ValueError("a DICOMDIR is never compressed, and this could unpack to any size")
            ds: Any = pydicom.dcmread(path, specific_tags=["DirectoryRecordSequence"])
            records = ds.get("DirectoryRecordSequence") or ()
            names = [r.get("ReferencedFileID") or "" for r in records if r.get("DirectoryRecordType") == "IMAGE"]
    except Exception as error:  # pydicom raises errors of every type, and their text may quote the header
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
            found.append(_input(str(target)))
    if not found:
        raise InputError(f"{shown(path)} lists no image")
    return found


def _inside(folder: Path, parts: Sequence[str]) -> Path | None:
    """Return the file in `folder` that the parts name, in upper or lower case because copies of discs change it, or None."""
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
