"""Studies in a folder of files, and the file that keeps their labels."""

from __future__ import annotations

import datetime
import json
import logging
import os
import re
import shutil
import stat
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from monai_wscxr.data.datalist import Item, load_datalist, patient_of
from monai_wscxr.data.listing import list_images
from monai_wscxr.data.patients import Mention, identify
from monai_wscxr.data.radiograph.formats import sniff_format
from monai_wscxr.data.radiograph.read import file_digest
from monai_wscxr.errors import InputError
from monai_wscxr.label.archive.keys import IdKey, unkeyed_id
from monai_wscxr.label.archive.patients import dicom_patient
from monai_wscxr.label.archive.studies import RESULT_SUFFIXES, Label, Refused, UnknownImage
from monai_wscxr.prediction.inputs import find_inputs
from monai_wscxr.system.atomic import is_disk_full, missing_text, on_disk, replacing, sync, write_bytes_atomic

logger = logging.getLogger("monai_wscxr")

_UPLOAD_SUFFIXES = {
    "png": ".png",
    "jpeg": ".jpg",
    "tiff": ".tif",
    "bmp": ".bmp",
    "nifti": ".nii",
    "dicom": ".dcm",
}
_ENTRY = re.compile(rb'\{"id": ?"')  # cannot occur in a text value, where quotes are escaped
_ESCAPE = re.compile(rb"\\x([0-9a-f]{2})")
_LONGEST_LINE = 1 << 20


class LabelFile:
    """Labels in a file of JSON lines, one per decision. The last decision on an image counts; the earlier ones are history.

    A line that is not a decision, for instance one that a power cut left incomplete, is moved to a file of its own, `damaged`,
    and never stops the server. A decision that follows such a remnant in the same line is kept.

    Args:
        path: the file; created with the first label.
        identify: returns the id of an image by the id and the name in a line; by default the id in the line.

    Attributes:
        damaged: file that takes the lines that are not decisions; named like `path`, with `.damaged` at the end.
    """

    def __init__(self, path: Path, identify: Callable[[str, str | None], str] | None = None) -> None:
        self.path, self.damaged = path, path.with_name(f"{path.name}.damaged")
        self._identify = identify or (lambda image_id, name: image_id)
        self._lock = threading.Lock()
        self._labels: dict[str, Label] = {}
        self._load()

    def _load(self) -> None:
        content = self.path.read_bytes() if self.path.exists() else b""
        kept: list[bytes] = []
        bad: list[bytes] = []
        for line in content.split(b"\n"):
            if not line.strip():
                continue
            remnant, decision = _split(line)
            if remnant:
                bad.append(remnant)
            if decision is not None:
                text, image_id, name, label = decision
                kept.append(text)
                self._set(self._identify(image_id, name), label)
        if bad:
            self._set_aside(kept, bad)

    def _set_aside(self, kept: Sequence[bytes], bad: Sequence[bytes]) -> None:
        """Move damaged lines to `damaged`; without space for this, they stay where they are and are skipped."""
        try:
            _append(self.damaged, b"".join(line + b"\n" for line in bad))
            write_bytes_atomic(self.path, b"".join(line + b"\n" for line in kept))
        except OSError as error:
            logger.warning("%s: %d damaged lines are skipped (%s)", self.path, len(bad), error.strerror)
            return
        logger.warning("%s: %d damaged lines were moved to %s", self.path, len(bad), self.damaged)

    def _set(self, image_id: str, label: Label | None) -> None:
        self._labels.pop(image_id, None)  # so that a new decision comes last
        if label is not None:
            self._labels[image_id] = label

    def labels(self) -> dict[str, Label]:
        """Return the labels by image id, oldest decision first."""
        with self._lock:
            return dict(self._labels)

    def put(self, image_id: str, name: str, label: Label | None) -> None:
        """Append a decision and wait until it is on the disk.

        Raises:
            Refused: with reason "disk_full" or "not_stored", when it could not be written; the file is as before.
        """
        entry = {
            "id": image_id,
            "name": name,
            "label": None if label is None else label.to_dict(),
            "time": datetime.datetime.now().isoformat(timespec="seconds"),
        }
        line = json.dumps(entry).encode() + b"\n"
        with self._lock:
            try:
                _append(self.path, line)
            except OSError as error:
                full = is_disk_full(error)
                room = f": {missing_text(self.path.parent, on_disk(len(line)))}" if full else ""
                raise Refused(
                    "disk_full" if full else "not_stored",
                    f"the label could not be stored ({error.strerror}{room}); the earlier labels are intact",
                ) from error
            self._set(image_id, label)


def _append(path: Path, data: bytes) -> None:
    """Append complete lines to a file and wait until they are on the disk; after an error the file is as before.

    A file that does not end with a line break, because a process died while it wrote, gets one first.

    Raises:
        OSError: when the data could not be written.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        new = size == 0  # an earlier attempt may have created it, on a disk that was full
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            data = b"\n" + data
        try:
            written = 0
            while written < len(data):
                written += os.write(descriptor, data[written:])
            os.fsync(descriptor)
        except BaseException:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)
    if new:
        sync(path.parent)


Decision = tuple[bytes, str, str | None, Label | None]
"""A line without what precedes the decision in it, the image's id and name in it, and the label."""


def _split(line: bytes) -> tuple[bytes, Decision | None]:
    """Split a line of a label file into a damaged part, often empty, and the decision after it, or None."""
    starts = [0, *(match.start() for match in _ENTRY.finditer(line, 1))]
    for start in starts if len(line) <= _LONGEST_LINE else ():
        decision = _decision(line[start:])
        if decision is not None:
            return line[:start], decision
    return line, None


def _decision(text: bytes) -> Decision | None:
    """Read a line of a label file; None when it is not a decision."""
    try:
        entry = json.loads(text.decode("utf-8"))
        image_id, name, wanted = entry["id"], entry.get("name"), entry["label"]
        if not isinstance(image_id, str) or not isinstance(name, str | None):
            return None
        label = None if wanted is None else Label.checked(*(wanted[k] for k in ("image_label", "class", "skipped")))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return text, image_id, name, label


class FolderStudies:
    """The images below a folder, see `list_images`: PNG, JPEG, NIfTI and DICOM, in any mixture.

    Labels and results go to another folder, so nothing is written among the images; it is not searched if it lies below.

    An image's id is a keyed hash of its path below the folder (`IdKey`), so an id cannot name a file outside it. Only regular
    files count, no pipes, sockets or devices. Links that lead out of the folder are left out. Both are checked again whenever
    a file is opened.

    Args:
        folder: folder with the images.
        kept: folder for `labels.jsonl`, `results/` and the key of the ids; created if missing.

    Attributes:
        outside: number of images left out because they are links that lead out of the folder.
        irregular: number of images left out because they are pipes, sockets or devices.

    Raises:
        InputError: when the folder does not exist, or the key is damaged.
    """

    def __init__(self, folder: str | Path, kept: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(f"the studies folder {self.folder} does not exist; create it and put radiographs there")
        self.source = str(self.folder.resolve())
        self.kept = Path(kept)
        self.kept.mkdir(parents=True, exist_ok=True)
        self._key = IdKey(self.kept)
        self._paths: dict[str, Path] = {}
        self._patients: dict[str, str] = {}
        self._unkeyed: dict[str, str] = {}  # ids by the unkeyed ids of earlier versions
        self.outside = self.irregular = 0
        self.refresh()
        self._file = LabelFile(self.kept / "labels.jsonl", self._identify)

    def refresh(self) -> None:
        """Search the folder for images."""
        root, kept = Path(self.source), self.kept.resolve()
        listing = list_images([root], skip=lambda folder: folder == kept != root)
        inside = [path for path in listing.images if _is_inside(root, path)]
        regular = [path for path in inside if _is_regular(path)]
        outside, irregular = len(listing.images) - len(inside), len(inside) - len(regular)
        if irregular > self.irregular:
            logger.warning("left out of the studies: %d pipes, sockets or devices", irregular)
        self.outside, self.irregular = outside, irregular
        self._paths = {self._id(path): path for path in regular}
        self._unkeyed = {unkeyed_id(self._below(path)): image_id for image_id, path in self._paths.items()}
        self._rename_results()

    def _rename_results(self) -> None:
        """Give results that an earlier version stored under unkeyed ids their present names."""
        results = self.kept / "results"
        for folder in results.iterdir() if results.is_dir() else ():
            image_id = self._unkeyed.get(folder.name)
            if image_id is not None and not (results / image_id).exists():
                folder.rename(results / image_id)

    def _identify(self, image_id: str, name: str | None) -> str:
        """Return the id of the image of a line in the label file, whose id may be unkeyed or made with a lost key."""
        for below in _encodings(name):
            if image_id in (self._key.id(below), unkeyed_id(below)):
                return self._key.id(below)
        if name is None or image_id in self._paths or image_id in self._unkeyed:
            return self._unkeyed.get(image_id, image_id)
        return self._key.id(_encodings(name)[0])

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
        if not _is_inside(Path(self.source), path) or not _is_regular(path):
            raise UnknownImage(image_id)
        return path

    def patient(self, image_id: str) -> str:
        """Return the patient by DICOM header or a known path; without either, an image is its own."""
        if image_id not in self._patients:
            path = self.file(image_id)
            # not the keyed id: the choice of held-out images depends on it and must be the same in every work folder
            self._patients[image_id] = (
                dicom_patient(path) or patient_of(str(path.relative_to(self.source))) or unkeyed_id(self._below(path))
            )
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
        with replacing(folder / name, file.stat().st_size) as temporary:
            shutil.copyfile(file, temporary)
        self.refresh()
        return self._id(folder / name)

    def _below(self, path: Path) -> bytes:
        return os.fsencode(path.relative_to(self.source).as_posix())

    def _id(self, path: Path) -> str:
        return self._key.id(self._below(path))

    def keep_results(self, image_id: str, results: Mapping[str, bytes]) -> list[str]:
        """Write `results/ID/KIND.SUFFIX`, each file replaced in one step; return the kinds."""
        self._path(image_id)
        for kind, data in results.items():
            path = self._result(image_id, kind)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes_atomic(path, data)
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


def _is_regular(path: Path) -> bool:
    """Tell whether a path, with links followed, is a regular file; a pipe would wait for its writer for ever."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def _encodings(name: str | None) -> list[bytes]:
    r"""Return the paths that a name in a label file may stand for: as it reads, and with \x escapes as bytes."""
    if name is None:
        return []
    plain = name.encode("utf-8", "surrogatepass")
    escaped = _ESCAPE.sub(lambda match: bytes([int(match[1], 16)]), plain)
    return [plain] if escaped == plain else [plain, escaped]


def known_normals(source: str | Path) -> list[Item]:
    """List normal images that need no label: the normal training images of a data set, or all images below a folder.

    Patients are known as in a datalist without a patient column, see `data.patients`.

    Raises:
        InputError: when there is none.
    """
    path = Path(source)
    if path.is_file() or any((path / name).is_dir() for name in ("train", "training", "TRAIN")):
        return [item for item in load_datalist(path)["training"] if item["label"] == 0]
    found, _ = find_inputs([str(path)])
    files = [one.path for one in found if one.path]
    patients = identify([Mention(file, None, file) for file in files], str(path))
    return [
        {"image": file, "label": 0, "class": "normal", "patient": patient}
        for file, patient in zip(files, patients, strict=True)
    ]
