"""Studies in a folder of files, and the file that keeps their labels."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path

from monai_wscxr.data.datalist import Item, load_datalist, patient_of
from monai_wscxr.data.listing import list_images
from monai_wscxr.data.radiograph.formats import sniff_format
from monai_wscxr.data.radiograph.read import file_digest
from monai_wscxr.errors import InputError
from monai_wscxr.label.archive.patients import dicom_patient
from monai_wscxr.label.archive.studies import RESULT_SUFFIXES, Label, UnknownImage
from monai_wscxr.prediction.inputs import find_inputs
from monai_wscxr.system.atomic import replacing

_UPLOAD_SUFFIXES = {
    "png": ".png",
    "jpeg": ".jpg",
    "tiff": ".tif",
    "bmp": ".bmp",
    "nifti": ".nii",
    "dicom": ".dcm",
}


class LabelFile:
    """Labels in a file of JSON lines, one per decision. The last decision on an image counts; the earlier ones are history.

    Args:
        path: the file; created with the first label.
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
                continue  # a line that a power cut left incomplete
            self._set(image_id, label)

    def _set(self, image_id: str, label: Label | None) -> None:
        self._labels.pop(image_id, None)  # so that a new decision comes last
        if label is not None:
            self._labels[image_id] = label

    def labels(self) -> dict[str, Label]:
        """Return the labels by image id, oldest decision first."""
        with self._lock:
            return dict(self._labels)

    def put(self, image_id: str, name: str, label: Label | None) -> None:
        """Append a decision and wait until it is on the disk."""
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
            self._set(image_id, label)


class FolderStudies:
    """The images below a folder, see `list_images`: PNG, JPEG, NIfTI and DICOM, in any mixture.

    Labels and results go to another folder, so nothing is written among the images; it is not searched if it lies below.

    An image's id is a hash of its path below the folder, so an id cannot name a file outside it. Links that lead out of the
    folder are left out, and checked again whenever a file is opened.

    Args:
        folder: folder with the images.
        kept: folder for `labels.jsonl` and `results/`; created if missing.

    Attributes:
        outside: number of images left out because they are links that lead out of the folder.

    Raises:
        InputError: when the folder does not exist.
    """

    def __init__(self, folder: str | Path, kept: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(f"the studies folder {self.folder} does not exist; create it and put radiographs there")
        self.source = str(self.folder.resolve())
        self.kept = Path(kept)
        self.kept.mkdir(parents=True, exist_ok=True)
        self._file = LabelFile(self.kept / "labels.jsonl")
        self._paths: dict[str, Path] = {}
        self._patients: dict[str, str] = {}
        self.outside = 0
        self.refresh()

    def refresh(self) -> None:
        """Search the folder for images."""
        root, kept = Path(self.source), self.kept.resolve()
        listing = list_images([root], skip=lambda folder: folder == kept != root)
        inside = [path for path in listing.images if _is_inside(root, path)]
        self._paths = {self._id(path): path for path in inside}
        self.outside = len(listing.images) - len(inside)

    def ids(self) -> list[str]:
        """Return the ids of all images, in the order of their paths."""
        return list(self._paths)

    def _path(self, image_id: str) -> Path:
        path = self._paths.get(image_id)
        if path is None:
            raise UnknownImage(image_id)
        return path

    def name(self, image_id: str) -> str:
        """Return the path below the folder."""
        return os.fsencode(self._path(image_id).relative_to(self.source)).decode("utf-8", "backslashreplace")

    def file(self, image_id: str) -> Path:
        """Return the image file."""
        path = self._path(image_id)
        if not _is_inside(Path(self.source), path) or not path.is_file():
            raise UnknownImage(image_id)
        return path

    def patient(self, image_id: str) -> str:
        """Return the patient by DICOM header or ZhangLab file name; without either, an image is its own patient."""
        if image_id not in self._patients:
            path = self.file(image_id)
            self._patients[image_id] = dicom_patient(path) or patient_of(path.name) or image_id
        return self._patients[image_id]

    def labels(self) -> dict[str, Label]:
        """Return the labels of the images in the folder."""
        return {image_id: label for image_id, label in self._file.labels().items() if image_id in self._paths}

    def put(self, image_id: str, label: Label | None) -> None:
        """Store a label, or withdraw it with None."""
        self._file.put(image_id, self.name(image_id), label)

    def add(self, file: Path) -> str:
        """Copy a radiograph to `uploaded/DIGEST`, with the suffix of its format; return its id."""
        name = file_digest(file) + _UPLOAD_SUFFIXES[sniff_format(file) or "png"]
        folder = Path(self.source) / "uploaded"
        folder.mkdir(exist_ok=True)
        with replacing(folder / name) as temporary:
            shutil.copyfile(file, temporary)
        self.refresh()
        return self._id(folder / name)

    def _id(self, path: Path) -> str:
        return hashlib.blake2b(os.fsencode(path.relative_to(self.source).as_posix()), digest_size=8).hexdigest()

    def keep_results(self, image_id: str, results: Mapping[str, bytes]) -> list[str]:
        """Write `results/ID/KIND.SUFFIX`, each file replaced in one step; return the kinds."""
        self._path(image_id)
        for kind, data in results.items():
            path = self._result(image_id, kind)
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                temporary.write_bytes(data)
        return list(results)

    def results(self, image_id: str) -> dict[str, Path]:
        """Return the files that `keep_results` wrote, by kind."""
        self._path(image_id)
        paths = {kind: self._result(image_id, kind) for kind in RESULT_SUFFIXES}
        return {kind: path for kind, path in paths.items() if path.is_file()}

    def _result(self, image_id: str, kind: str) -> Path:
        return self.kept / "results" / image_id / f"{kind}{RESULT_SUFFIXES[kind]}"


def _is_inside(root: Path, path: Path) -> bool:
    """Tell whether a path, with all links followed, exists below `root`."""
    try:
        return path.resolve(strict=True).is_relative_to(root)
    except (OSError, RuntimeError):  # a broken link, or one that leads in a circle
        return False


def known_normals(source: str | Path) -> list[Item]:
    """List normal images that need no label: the normal training images of a data set, or all images below a folder.

    Raises:
        InputError: when there is none.
    """
    path = Path(source)
    if path.is_file() or any((path / name).is_dir() for name in ("train", "training", "TRAIN")):
        return [item for item in load_datalist(path)["training"] if item["label"] == 0]
    found, _ = find_inputs([str(path)])
    return [{"image": i.path, "label": 0, "class": "normal", "patient": i.path} for i in found if i.path]
