"""The interface of an archive of studies, and the labels that annotators give."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from monai_wscxr.errors import InputError

LARGEST_CLASS = 64
RESULT_SUFFIXES = {
    "image": ".png",
    "map": ".nii.gz",
    "overlay": ".dcm",
    "fraction": ".dcm",
    "regions": ".dcm",
    "report": ".dcm",
}
"""File name suffixes of results by kind: any image has `image` and `map`, a DICOM image the others too (`report.dicom`)."""

_BLANK = "\u115f\u1160\u2800\u3164\uffa0"  # letters and symbols by their category, but drawn as nothing


def class_name(value: Any) -> str | None:
    """Check the name of a class, by the one rule for all requests, label files and label reports.

    A name has 1 to `LARGEST_CLASS` printable characters without slashes and backslashes. Control characters, surrogates,
    line breaks, invisible characters and those that change the direction of writing are refused. Runs of spaces and tabs
    count as one space, and are dropped at both ends.

    Args:
        value: an untrusted value.

    Returns:
        The name; None when nothing is left of it.

    Raises:
        Refused: with reason "bad_class".
    """
    if value is None:
        return None
    if not isinstance(value, str):
        raise Refused("bad_class", "the class must be text")
    if len(value) > 16 * LARGEST_CLASS:
        raise Refused("bad_class", f"a class is a name of at most {LARGEST_CLASS} characters")
    spaced = "".join(" " if c == "\t" or unicodedata.category(c) == "Zs" else c for c in value)
    name = " ".join(part for part in spaced.split(" ") if part)
    if len(name) > LARGEST_CLASS or not name.isprintable() or any(c in "/\\" or c in _BLANK for c in name):
        raise Refused(
            "bad_class",
            f"a class is a name of at most {LARGEST_CLASS} printable characters in one line, without slashes",
        )
    return name or None


class UnknownImage(KeyError):  # noqa: N818 - reads as a statement where it is raised
    """An image id that the archive does not have."""

    def __init__(self, image_id: str) -> None:
        super().__init__(image_id)
        self.image_id = image_id

    def __str__(self) -> str:
        return "there is no image with this id"


class Refused(InputError):  # noqa: N818
    """A request that cannot be met at present.

    Attributes:
        reason: short code for programs.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:  # worker processes send these errors to their parent
        return type(self), (self.reason, str(self))


@dataclass(frozen=True)
class Label:
    """An image-level label given by an annotator.

    Attributes:
        label: 0 normal, 1 abnormal, None when skipped.
        image_class: free name of the abnormal class; None unless abnormal.
        skipped: looked at and left undecided.
    """

    label: int | None
    image_class: str | None = None
    skipped: bool = False

    @classmethod
    def checked(cls, label: Any, image_class: Any = None, skipped: Any = False) -> Label:
        """Build a label from untrusted values; an abnormal image without a class gets the class "abnormal".

        Raises:
            Refused: when a value has the wrong type, or the values contradict each other.
        """
        if label is not None and (type(label) is not int or label not in (0, 1)):
            raise Refused("bad_label", "the label must be 0 (normal) or 1 (abnormal)")
        if not isinstance(skipped, bool):
            raise Refused("bad_label", "skipped must be true or false")
        name = class_name(image_class)
        if skipped and (label is not None or name is not None):
            raise Refused("contradiction", "a skipped image has neither a label nor a class")
        if not skipped and label is None:
            raise Refused("bad_label", "the label must be 0 (normal) or 1 (abnormal), unless the image is skipped")
        if label == 0 and name is not None and name.lower() != "normal":
            raise Refused("contradiction", f"a normal image (label 0) has no class, but {name[:20]!r} was given")
        if label == 1 and name is not None and name.lower() == "normal":
            raise Refused("contradiction", "an abnormal image (label 1) cannot be of class 'normal'")
        return cls(label, (name or "abnormal") if label == 1 else None, skipped)

    def to_dict(self) -> dict[str, Any]:
        """Return the label as JSON values, under the names that clients use: `image_label`, `class`, `skipped`."""
        return {"image_label": self.label, "class": self.image_class, "skipped": self.skipped}


def label_fields(label: Label | None) -> dict[str, Any]:
    """Return the fields `label`, `class` and `skipped` of an image's entry; an unlabelled image has None, None, False."""
    return {
        "label": label.label if label else None,
        "class": label.image_class if label else None,
        "skipped": bool(label and label.skipped),
    }


class Studies(Protocol):
    """An archive of images and their labels. Implementations are safe to call from several threads.

    Methods that take an image id raise `UnknownImage` when the archive does not have it.

    Attributes:
        source: the folder or address of the archive.
    """

    source: str

    def refresh(self) -> None:
        """Look for images that were added or removed."""

    def ids(self) -> list[str]:
        """Return the ids of all images, in a fixed order."""

    def name(self, image_id: str) -> str:
        """Return the name that annotators see."""

    def file(self, image_id: str) -> Path:
        """Return the image as a local file."""

    def patient(self, image_id: str) -> str:
        """Return a text that images of the same patient share, as far as known, and that reveals no name or number."""

    def labels(self) -> Mapping[str, Label]:
        """Return the labels by image id."""

    def put(self, image_id: str, label: Label | None) -> None:
        """Store a label, or withdraw it with None; it has survived a power cut once this returns."""

    def keep_results(self, image_id: str, results: Mapping[str, bytes]) -> list[str]:
        """Store results of an image by kind; return the kinds stored."""

    def results(self, image_id: str) -> Mapping[str, Path]:
        """Return the stored results of an image as local files by kind, without unreadable ones."""
