"""The rule for which files are images, and the search of folders for them.

Training data lists, the bundle's `inferring`, `predict`, `bank add` and the labelling server all use it. A file is an image

* by its extension, one of `IMAGE_SUFFIXES` in upper or lower case;
* without an extension, or with a number as extension as in names made of UIDs, if its content is that of an image;
* with any other extension, if its content is a DICOM part 10 file ("DICM" after the preamble).

Hidden files (names that start with a dot), DICOMDIRs, and pipes, sockets and devices are not images. Nothing here decodes
pixels, so an image may still turn out to be unusable.
"""

from __future__ import annotations

import os
import stat
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from monai_wscxr.data.radiograph.base import RadiographError
from monai_wscxr.data.radiograph.dicom import has_preamble
from monai_wscxr.data.radiograph.formats import sniff_format
from monai_wscxr.errors import InputError

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp"),
    *(".nii", ".nii.gz", ".dcm", ".dicom", ".ima"),
)

HIDDEN = "hidden"
"""A file or folder whose name starts with a dot, or a folder whose name starts with two underscores, like `__MACOSX`."""
NOT_AN_IMAGE = "not_an_image"
"""A file that is not an image by its name or content, or a DICOMDIR."""
UNREADABLE = "unreadable"
"""A file to be judged by its content that is empty, damaged or cannot be opened."""
NOT_A_FILE = "not_a_file"
"""A pipe, socket or device. It is never opened, because that may wait for ever."""
UNREADABLE_FOLDER = "unreadable_folder"
"""A folder that cannot be opened."""
LINKED_FOLDER = "linked_folder"
"""A link to a folder; links are not followed, because they may lead in circles or out of the folder that was given."""
SKIPPED = "skipped"
"""A folder that the caller leaves out."""


@dataclass(frozen=True)
class Listing:
    """Images that a search found.

    Attributes:
        images: sorted within each folder that was searched.
        left_out: files and folders that were not taken, each with its reason code, also sorted. A folder stands for
            everything in it.
    """

    images: tuple[Path, ...]
    left_out: tuple[tuple[Path, str], ...]

    def summary(self) -> str:
        """Return how much was left out and why, in one line; empty when nothing was."""
        if not self.left_out:
            return ""
        counts = Counter(reason for _, reason in self.left_out).most_common()
        return f"{len(self.left_out)} files or folders left out: {', '.join(f'{n} {reason}' for reason, n in counts)}"


def is_image(path: Path) -> bool:
    """Tell whether a file is an image by the rule of this module; the file is opened only where its name does not decide."""
    return _reason_against(path) is None


def is_hidden_folder(path: Path) -> bool:
    """Tell whether the name of a folder marks it as hidden: it starts with a dot or two underscores."""
    return path.name.startswith((".", "__"))


def list_images(paths: Iterable[str | os.PathLike[str]], skip: Callable[[Path], bool] | None = None) -> Listing:
    """List the images among files and folders.

    Files are taken as given, with any name, but no pipes, sockets or devices. Folders are searched with all subfolders except
    hidden and linked ones.

    Args:
        paths: files and folders.
        skip: tells of a folder whether to leave it out with everything in it; called for the given folders and all below.

    Raises:
        InputError: when a path does not exist.
    """
    images: list[Path] = []
    left_out: list[tuple[Path, str]] = []
    for path in map(Path, paths):
        if path.is_dir():
            found, others = _search(path, skip)
            images += sorted(found)
            left_out += sorted(others)
        elif path.is_file():
            images.append(path)
        elif path.exists():
            left_out.append((path, NOT_A_FILE))
        else:
            raise InputError(f"there is no file or folder {path}")
    return Listing(tuple(images), tuple(left_out))


def _search(root: Path, skip: Callable[[Path], bool] | None) -> tuple[list[Path], list[tuple[Path, str]]]:
    images: list[Path] = []
    left_out: list[tuple[Path, str]] = []

    def unreadable(error: OSError) -> None:
        left_out.append((Path(error.filename), UNREADABLE_FOLDER))

    for base, folders, names in os.walk(root, onerror=unreadable):
        folder = Path(base)
        if skip is not None and skip(folder):
            left_out.append((folder, SKIPPED))
            folders.clear()
            continue
        for below in [folder / name for name in folders]:
            reason = HIDDEN if is_hidden_folder(below) else LINKED_FOLDER if below.is_symlink() else None
            if reason is not None:
                left_out.append((below, reason))
                folders.remove(below.name)
        for name in names:
            reason = _reason_against(folder / name)
            if reason is None:
                images.append(folder / name)
            else:
                left_out.append((folder / name, reason))
    return images, left_out


def _reason_against(path: Path) -> str | None:
    """Return why a file is not an image, or None if it is one."""
    name = path.name.lower()
    if name.startswith("."):
        return HIDDEN
    if _is_special(path):
        return NOT_A_FILE
    if name == "dicomdir":
        return NOT_AN_IMAGE
    if name.endswith(IMAGE_SUFFIXES):
        return None
    if path.suffix and not path.suffix[1:].isdecimal():
        return None if _is_dicom_part_10(path) else NOT_AN_IMAGE
    try:
        return NOT_AN_IMAGE if sniff_format(path) is None else None
    except (RadiographError, OSError, EOFError, zlib.error):
        return UNREADABLE


def _is_special(path: Path) -> bool:
    """Tell whether a path is something else than a file or a folder; a broken link and a file without access are not."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _is_dicom_part_10(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return has_preamble(file.read(132))
    except OSError:
        return False
