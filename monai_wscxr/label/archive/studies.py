"""The images to label and their labels: a folder of radiographs, and the file in which labels are kept."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pydicom

from monai_wscxr.data.datalist import is_image, load_datalist, patient_of
from monai_wscxr.data.radiograph.read import file_digest, quiet, sniff_format
from monai_wscxr.errors import InputError
from monai_wscxr.prediction.inputs import find_inputs
from monai_wscxr.system.atomic import replacing

LARGEST_CLASS = 64
RESULT_SUFFIXES = {
    "image": ".png",
    "map": ".nii.gz",
    "overlay": ".dcm",
    "fraction": ".dcm",
    "regions": ".dcm",
    "report": ".dcm",
}
"""Kinds of results and the files they make: `image` and `map` of any image, the rest of DICOM images (`report.dicom`)."""

_CLASS = re.compile(r"[^\x00-\x1f\x7f/\\]+")


class UnknownImage(KeyError):  # noqa: N818 - what it says at the raise
    """An image id that the studies do not have."""

    def __init__(self, image_id: str) -> None:
        super().__init__(image_id)
        self.image_id = image_id

    def __str__(self) -> str:
        return "there is no image with this id"


class Refused(InputError):  # noqa: N818
    """Something a person asked for that cannot be done now; `reason` is a word for programs."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Label:
    """What a person said of an image.

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
        """A label from what came in; an abnormal image without a class is of class "abnormal".

        Raises:
            Refused: when the parts are of the wrong kind or contradict each other.
        """
        if isinstance(label, bool) or label not in (0, 1, None) or isinstance(label, float):
            raise Refused("bad_label", "the label must be 0 (normal) or 1 (abnormal)")
        if not isinstance(skipped, bool):
            raise Refused("bad_label", "skipped must be true or false")
        name = image_class.strip() if isinstance(image_class, str) else image_class
        if name is not None and not isinstance(name, str):
            raise Refused("bad_class", "the class must be text")
        name = name or None
        if skipped and (label is not None or name is not None):
            raise Refused("contradiction", "a skipped image has neither a label nor a class")
        if not skipped and label is None:
            raise Refused("bad_label", "the label must be 0 (normal) or 1 (abnormal), or the image be skipped")
        if label == 0 and name is not None and name.lower() != "normal":
            raise Refused("contradiction", f"a normal image (label 0) has no class, but {name[:20]!r} was given")
        if label == 1 and name is not None and name.lower() == "normal":
            raise Refused("contradiction", "an abnormal image (label 1) cannot be of class 'normal'")
        if name is not None and (len(name) > LARGEST_CLASS or not _CLASS.fullmatch(name)):
            raise Refused("bad_class", f"a class is a name of at most {LARGEST_CLASS} characters without slashes")
        return cls(label, (name or "abnormal") if label == 1 else None, skipped)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; `image_label` and `class` as clients send them."""
        return {"image_label": self.label, "class": self.image_class, "skipped": self.skipped}


def described_label(label: Label | None) -> dict[str, Any]:
    """As JSON values, for an image that may have none."""
    return {
        "label": label.label if label else None,
        "class": label.image_class if label else None,
        "skipped": bool(label and label.skipped),
    }


class Studies(Protocol):
    """Where images and labels come from; implementations are safe to call from several threads."""

    source: str

    def refresh(self) -> None:
        """Look for images that came or went."""

    def ids(self) -> list[str]:
        """Ids of all images, in a fixed order."""

    def name(self, image_id: str) -> str:
        """What a person recognises the image by; UnknownImage otherwise."""

    def file(self, image_id: str) -> Path:
        """The image as a local file; UnknownImage when there is none."""

    def patient(self, image_id: str) -> str:
        """The same text for images of the same patient, as far as is known; nothing of a name or number can be read from it."""

    def labels(self) -> Mapping[str, Label]:
        """Labels by image id."""

    def put(self, image_id: str, label: Label | None) -> None:
        """Keep a label, or forget it; on return it would survive a power cut."""

    def keep_results(self, image_id: str, results: Mapping[str, bytes]) -> list[str]:
        """Keep results of an image, by kind; returns the kinds kept."""

    def results(self, image_id: str) -> Mapping[str, Path]:
        """Results that are kept for an image, as local files by kind; what cannot be read is left out."""


class LabelFile:
    """Labels in a file of JSON lines, one per decision; the last one of an image counts, the others are its history.

    Args:
        path: the file; made on the first label.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._labels: dict[str, Label] = {}
        content = path.read_bytes() if path.exists() else b""
        self._torn = not content.endswith(b"\n") and bool(content)
        for line in content.splitlines():
            try:
                entry = json.loads(line)
                image_id, wanted = str(entry["id"]), entry["label"]
                label = (
                    None if wanted is None else Label.checked(*(wanted[k] for k in ("image_label", "class", "skipped")))
                )
            except (ValueError, KeyError, TypeError):
                continue  # the end of a line that a power cut left unfinished
            self._keep(image_id, label)

    def _keep(self, image_id: str, label: Label | None) -> None:
        self._labels.pop(image_id, None)
        if label is not None:
            self._labels[image_id] = label

    def labels(self) -> dict[str, Label]:
        """Labels by image id, oldest decision first."""
        with self._lock:
            return dict(self._labels)

    def put(self, image_id: str, name: str, label: Label | None) -> None:
        """Append one decision and wait until the disk has it."""
        entry = {
            "id": image_id,
            "name": name,
            "label": None if label is None else label.to_dict(),
            "time": datetime.datetime.now().isoformat(timespec="seconds"),
        }
        with self._lock:
            with open(self.path, "ab") as file:
                file.write((b"\n" if self._torn else b"") + json.dumps(entry).encode() + b"\n")
                self._torn = False
                file.flush()
                os.fsync(file.fileno())
            self._keep(image_id, label)


class FolderStudies:
    """Radiographs below a folder: PNG, JPEG, NIfTI, DICOM, in any mixture; hidden files and folders are left out.

    Labels and results go to another folder, so that nothing is written among the images.

    An image's id is a hash of its path below the folder, so an id can name nothing that the folder does not hold. Links that
    lead out of the folder are left out, and looked at again whenever a file is opened.

    Args:
        folder: with the images.
        kept: folder for `labels.jsonl` and `results/`; made if missing.

    Raises:
        InputError: when the folder does not exist.
    """

    def __init__(self, folder: str | Path, kept: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(f"the studies folder {self.folder} does not exist; make it and put radiographs there")
        self.source = str(self.folder.resolve())
        self.kept = Path(kept)
        self.kept.mkdir(parents=True, exist_ok=True)
        self._file = LabelFile(self.kept / "labels.jsonl")
        self._paths: dict[str, Path] = {}
        self._patients: dict[str, str] = {}
        self.outside = 0
        self.refresh()

    def refresh(self) -> None:
        """Search the folder again."""
        root = Path(self.source)
        found: dict[str, Path] = {}
        outside = 0
        for base, folders, names in os.walk(root):
            folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
            for name in sorted(names):
                path = Path(base) / name
                if name.startswith(".") or not is_image(path):
                    continue
                if _contained(root, path):
                    found[self._id(path)] = path
                else:
                    outside += 1
        self._paths, self.outside = found, outside

    def ids(self) -> list[str]:
        """In the order of the paths."""
        return list(self._paths)

    def _path(self, image_id: str) -> Path:
        path = self._paths.get(image_id)
        if path is None:
            raise UnknownImage(image_id)
        return path

    def name(self, image_id: str) -> str:
        """The path below the folder."""
        return os.fsencode(self._path(image_id).relative_to(self.source)).decode("utf-8", "backslashreplace")

    def file(self, image_id: str) -> Path:
        """The image file."""
        path = self._path(image_id)
        if not _contained(Path(self.source), path) or not path.is_file():
            raise UnknownImage(image_id)
        return path

    def patient(self, image_id: str) -> str:
        """From the DICOM header or a ZhangLab file name; any other file is its own patient."""
        if image_id not in self._patients:
            path = self.file(image_id)
            self._patients[image_id] = dicom_patient(path) or patient_of(path.name) or image_id
        return self._patients[image_id]

    def labels(self) -> dict[str, Label]:
        """Labels of the images that are there."""
        return {image_id: label for image_id, label in self._file.labels().items() if image_id in self._paths}

    def put(self, image_id: str, label: Label | None) -> None:
        """Keep a label."""
        self._file.put(image_id, self.name(image_id), label)

    def add(self, file: Path) -> str:
        """Take in a copy of a radiograph, as `uploaded/DIGEST` with the suffix of its format; returns its id."""
        name = (
            file_digest(file)
            + {"png": ".png", "jpeg": ".jpg", "nifti": ".nii", "dicom": ".dcm"}[sniff_format(file) or "png"]
        )
        folder = Path(self.source) / "uploaded"
        folder.mkdir(exist_ok=True)
        with replacing(folder / name) as temporary:
            shutil.copyfile(file, temporary)
        self.refresh()
        return self._id(folder / name)

    def _id(self, path: Path) -> str:
        return hashlib.blake2b(os.fsencode(path.relative_to(self.source).as_posix()), digest_size=8).hexdigest()

    def keep_results(self, image_id: str, results: Mapping[str, bytes]) -> list[str]:
        """As `results/ID/KIND.SUFFIX`, each replaced in one step."""
        self._path(image_id)
        folder = self.kept / "results" / image_id
        folder.mkdir(parents=True, exist_ok=True)
        for kind, data in results.items():
            with replacing(folder / f"{kind}{RESULT_SUFFIXES[kind]}") as temporary:
                temporary.write_bytes(data)
        return list(results)

    def results(self, image_id: str) -> dict[str, Path]:
        """What is there of `keep_results`."""
        self._path(image_id)
        places = {
            kind: self.kept / "results" / image_id / f"{kind}{suffix}" for kind, suffix in RESULT_SUFFIXES.items()
        }
        return {kind: path for kind, path in places.items() if path.is_file()}


def hashed_patient(number: str) -> str | None:
    """A text that stands for a PatientID without showing it; None for an empty one."""
    number = number.strip()
    return f"patient-{hashlib.blake2b(number.encode(), digest_size=8).hexdigest()}" if number else None


def dicom_patient(path: Path) -> str | None:
    """`hashed_patient` of a DICOM file; None for other files and without a PatientID."""
    try:
        if sniff_format(path) != "dicom":
            return None
        with quiet:
            header = pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=["PatientID"])
        return hashed_patient(str(header.get("PatientID") or ""))
    except Exception:  # a damaged header says nothing of its patient, in whatever way it fails
        return None


def _contained(root: Path, path: Path) -> bool:
    try:
        return path.resolve(strict=True).is_relative_to(root)
    except (OSError, RuntimeError):  # a link to nothing, or in a circle
        return False


def known_normals(source: str | Path) -> list[dict[str, Any]]:
    """Normal images that need no label: those of a data set's training part, or every image below a plain folder.

    Raises:
        InputError: when there is none.
    """
    path = Path(source)
    if path.is_file() or any((path / name).is_dir() for name in ("train", "training", "TRAIN")):
        return [item for item in load_datalist(path)["training"] if item["label"] == 0]
    found, _ = find_inputs([str(path)])
    return [{"image": i.path, "label": 0, "class": "normal", "patient": i.path} for i in found if i.path]
