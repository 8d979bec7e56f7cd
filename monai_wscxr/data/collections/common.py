"""Parts shared by the readers of collections: records, tables, classes from findings, and datalists split by patient."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from monai_wscxr.data.datalist import DatalistError, Item, few
from monai_wscxr.data.encoding import encode_png
from monai_wscxr.data.masks import upright_size
from monai_wscxr.data.radiograph.base import GATES, RadiographError
from monai_wscxr.data.radiograph.formats import sniff_format
from monai_wscxr.data.radiograph.read import read_radiograph
from monai_wscxr.system.atomic import write_bytes_atomic, write_text_atomic

UNCERTAIN = ("exclude", "positive", "negative")
Box = tuple[float, float, float, float]
Size = tuple[int, int]

_ASPECT_TOLERANCE = 0.02  # relative; a copy of 1,000 pixels or more loses less by rounding
_OVERHANG = 0.02  # of the original's side; boxes drawn by hand end a few pixels beyond the picture


@dataclass(frozen=True)
class Record:
    """One image of a collection.

    Attributes:
        image: the file.
        findings: names of the findings; empty for a normal image.
        patient: the patient, or the image itself where the collection names no patients.
        part: "training" or "test" by the collection's own split, or None without one.
        boxes: (x, y, width, height) of lesions in pixels of the original image.
        box_size: (width, height) in pixels of that original; None where the collection does not record it, so that only the
            original DICOM file can be used with its boxes.
        description: what the tables say of `columns.DESCRIPTIONS` besides the findings; empty texts say nothing.
    """

    image: Path
    findings: tuple[str, ...]
    patient: str
    part: str | None = None
    boxes: tuple[Box, ...] = ()
    box_size: Size | None = None
    description: Mapping[str, str] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Limits:
    """How many images of a collection to take; None takes all.

    Attributes:
        train_normal, train_abnormal: training images; abnormal ones per class.
        test_normal, test_abnormal: test images; abnormal ones of all classes together.
        test_share: share of the patients assigned to the test part of a collection without its own split, in (0, 1).
        boxed: take only abnormal test images with lesion boxes.
        seed: of all random choices.
    """

    train_normal: int | None = None
    train_abnormal: int | None = None
    test_normal: int | None = None
    test_abnormal: int | None = None
    test_share: float = 0.2
    boxed: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        counts = (self.train_normal, self.train_abnormal, self.test_normal, self.test_abnormal)
        if any(count is not None and count < 1 for count in counts) or not 0 < self.test_share < 1:
            raise DatalistError(f"numbers of images must be at least 1 and test_share must lie in (0, 1), got {self}")


@dataclass
class Datalist:
    """Datalist of a collection.

    Attributes:
        parts: {"training": items, "test": items}.
        boxes: lesion boxes of test images, by image path.
        left_out: number of images left out, by reason.
        box_sizes: `Record.box_size` of the images with boxes, by image path.
    """

    parts: dict[str, list[Item]]
    boxes: dict[str, tuple[Box, ...]]
    left_out: Counter[str] = field(default_factory=Counter)
    box_sizes: dict[str, Size | None] = field(default_factory=dict)


def read_table(path: Path, columns: Iterable[str]) -> Iterator[dict[str, str]]:
    """Yield the rows of a CSV file, plain or gzipped, as dictionaries with stripped names and values.

    Raises:
        DatalistError: when the file is missing or damaged, or lacks a column.
    """
    if not path.is_file():
        raise DatalistError(f"{path} is missing; give the folder of the collection as it was published")
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as raw:
            reader = csv.reader(io.TextIOWrapper(raw, encoding="utf-8-sig", newline=""))
            header = [name.strip() for name in next(reader, [])]
            missing = [name for name in columns if name not in header]
            if missing:
                raise DatalistError(
                    f"{path} has no column {', '.join(missing)}; its columns are {', '.join(header[:20])}"
                )
            for cells in reader:
                if cells:
                    yield {name: cell.strip() for name, cell in zip(header, cells, strict=False)}
    except (UnicodeDecodeError, csv.Error, gzip.BadGzipFile, EOFError) as error:
        raise DatalistError(f"{path} is damaged ({error}); download it again") from error


def find_table(root: Path, *names: str) -> Path:
    """Return the first of these files that exists in `root`, plain or gzipped; without any, the first name, for the message."""
    for name in names:
        for candidate in (root / name, root / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    return root / names[0]


def findings_of(row: Mapping[str, str], names: Iterable[str], uncertain: str) -> tuple[str, ...] | None:
    """Return the positive findings of a row of labels (1, 0, -1 or blank).

    Args:
        row: of the table.
        names: columns of findings.
        uncertain: meaning of -1: "positive", "negative", or "exclude" to leave out images with any uncertain finding.

    Returns:
        Names of the positive findings, or None for an image to leave out.

    Raises:
        DatalistError: for another policy or value.
    """
    if uncertain not in UNCERTAIN:
        raise DatalistError(f"uncertain labels: {uncertain!r} is not allowed; allowed are {', '.join(UNCERTAIN)}")
    found = []
    for name in names:
        text = row[name]
        try:
            value = float(text) if text else 0.0
        except ValueError as error:
            raise DatalistError(f"{name} is {text!r}; allowed are 1, 0, -1 and blank") from error
        if value == -1:
            if uncertain == "exclude":
                return None
            value = float(uncertain == "positive")
        if value == 1:
            found.append(name)
    return tuple(found)


def assemble(
    records: Sequence[Record],
    limits: Limits | None = None,
    left_out: Counter[str] | None = None,
    draw_patients: bool = True,
) -> Datalist:
    """Make a datalist in which no patient is in training and test.

    If the collection has a split, its test part is kept and the patients in it are removed from training; otherwise each
    patient is assigned to one part at random. An image with several findings belongs to the class that is rarest in its part,
    so that rare classes have images. Random choices depend only on the seed, the patients and the names of the files, with as
    many of the folders above as tell the files of the collection apart; the order of the records does not matter.

    Args:
        records: of one collection.
        limits: how many images to take.
        left_out: counts of the reader, to which more are added.
        draw_patients: where `limits` asks for fewer images than there are, take one image of each patient, in random order,
            before a second one of any patient. False draws images, so that a patient with many images is drawn more often.

    Raises:
        DatalistError: when the tables contradict themselves about an image, or no normal training image is left.
    """
    limits, counts = limits or Limits(), Counter() if left_out is None else left_out
    records = _without_repeats(records, counts)
    names = _distinct_names([record.image for record in records])
    sides: dict[str, list[Record]] = {"training": [], "test": []}
    for record in records:
        sides[record.part or _random_part(record.patient, limits)].append(record)
    tested = {record.patient for record in sides["test"]}
    kept = [record for record in sides["training"] if record.patient not in tested]
    counts["patient is in the test part"] += len(sides["training"]) - len(kept)
    sides["training"] = kept
    parts: dict[str, list[Item]] = {}
    boxes: dict[str, tuple[Box, ...]] = {}
    for part, members in sides.items():
        frequency = Counter(name for record in members for name in record.findings)
        items: list[Item] = []
        for record in members:
            if part == "test" and limits.boxed and record.findings and not record.boxes:
                counts["no lesion box"] += 1
                continue
            label = int(bool(record.findings))
            name = min(record.findings, key=lambda f: (frequency[f], f)) if record.findings else "normal"
            item: Item = {"image": str(record.image), "label": label, "class": name, "patient": record.patient}
            said = {key: text for key, text in record.description.items() if text}
            items.append({**item, **({"findings": list(record.findings)} if label else {}), **said})
            if part == "test" and record.boxes:
                boxes[str(record.image)] = record.boxes
        parts[part] = _limit(items, part, limits, counts, names, draw_patients)
    if not any(item["label"] == 0 for item in parts["training"]):
        raise DatalistError(
            f"no normal training image is left of {len(records)} records ({dict(counts)}); check the folder and the policy"
        )
    chosen = {item["image"] for item in parts["test"]}
    boxes = {image: found for image, found in boxes.items() if image in chosen}
    sizes = {str(record.image): record.box_size for record in records if str(record.image) in boxes}
    return Datalist(parts, boxes, counts, sizes)


def write_datalist(path: str | Path, datalist: Datalist) -> None:
    """Write the datalist as JSON in one step, and the lesion boxes as masks into a folder beside it.

    Args:
        path: JSON file; masks go to `<name>_masks/`. Image paths are absolute, mask paths relative.
        datalist: from `assemble`.

    Raises:
        DatalistError: when the boxes of an image cannot be placed, see `box_mask`.
    """
    path = Path(path)
    masks = path.with_name(f"{path.stem}_masks")
    if datalist.boxes:
        masks.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    content: dict[str, list[dict[str, Any]]] = {}
    for part, items in datalist.parts.items():
        content[part] = []
        for item in items:
            entry = {**item, "image": os.path.abspath(item["image"])}
            found = datalist.boxes.get(item["image"]) if part == "test" else None
            if found:
                name = f"{hashlib.blake2b(item['image'].encode(), digest_size=8).hexdigest()}.png"
                mask = box_mask(Path(item["image"]), found, datalist.box_sizes.get(item["image"]))
                write_bytes_atomic(masks / name, encode_png(mask))
                entry["mask"] = f"{masks.name}/{name}"
            content[part].append(entry)
    write_text_atomic(path, json.dumps(content, indent=1))


def box_mask(image: Path, boxes: Iterable[Box], size: Size | None = None) -> np.ndarray:
    """Return a mask of the size of an image file: uint8 [H, W], 255 inside the boxes and 0 outside.

    Boxes are scaled from the original's size to the file's. A box that ends up to 2 % of the original's side
    and one pixel beyond it is cut.

    Args:
        image: the file, the original or a copy that shows all of it.
        boxes: (x, y, width, height) in pixels of the original.
        size: (width, height) of the original; None means that the file must be the original itself, in DICOM.

    Raises:
        DatalistError: when the size of the file cannot be read; when the original's size is unknown and the file is not DICOM;
            when the sides of file and original have different ratios, because a copy may be squashed, padded or cropped; when
            a box has no area, lies beyond the original or ends far beyond it. The message gives both sizes.
    """
    boxes = list(boxes)
    height, width = _size(image)
    reach = f"{max(x + w for x, _, w, _ in boxes):g} x {max(y + h for _, y, _, h in boxes):g}"
    if size is None and sniff_format(image) != "dicom":
        raise DatalistError(
            f"{image}: the file has {width} x {height} pixels, and the tables do not give the size of the original, in whose "
            f"pixels the boxes are (they reach to {reach}). Give the original DICOM files, or add columns width and height of "
            "the originals to the table of boxes"
        )
    full_width, full_height = size or (width, height)
    if abs(width * full_height / (height * full_width) - 1) > _ASPECT_TOLERANCE:
        raise DatalistError(
            f"{image}: the boxes are in pixels of an original of {full_width} x {full_height}, but the file has "
            f"{width} x {height} pixels, another ratio of its sides, so it was squashed, padded or cropped. Give copies that "
            "keep the ratio"
        )
    mask = np.zeros((height, width), np.uint8)
    for x, y, w, h in boxes:
        finite = all(map(math.isfinite, (x, y, w, h)))
        inside = finite and min(x + w, full_width) > max(x, 0) and min(y + h, full_height) > max(y, 0)
        over_x, over_y = max(-x, x + w - full_width), max(-y, y + h - full_height)
        if not inside or over_x > 1 + _OVERHANG * full_width or over_y > 1 + _OVERHANG * full_height:
            raise DatalistError(
                f"{image}: a box from ({x:g}, {y:g}) of {w:g} x {h:g} pixels does not fit the original of {full_width} x "
                f"{full_height} (the file has {width} x {height} pixels). The boxes are in pixels of another size, or damaged"
            )
        x, w, y, h = x * width / full_width, w * width / full_width, y * height / full_height, h * height / full_height
        left, top = min(max(0, round(x)), width - 1), min(max(0, round(y)), height - 1)
        mask[top : max(top + 1, round(y + h)), left : max(left + 1, round(x + w))] = 255
    return mask


def need_files(root: Path, records: Sequence[Record]) -> None:
    """Check that the images of the tables exist.

    Raises:
        DatalistError: with the number of missing images and the first ones.
    """
    missing = [str(record.image) for record in records if not record.image.is_file()]
    if missing:
        raise DatalistError(
            f"{root}: {len(missing)} of {len(records)} images that the tables name are missing: {few(missing)}. Unpack the "
            "whole collection, or use --skip_missing to take the others"
        )


def find_image(folder: Path, name: str, suffixes: Sequence[str] = (".dicom", ".dcm", ".png", ".jpg", ".jpeg")) -> Path:
    """Return the file of an image, with the first suffix that exists; without any, with the first suffix, for the message."""
    return next((p for s in suffixes if (p := folder / f"{name}{s}").is_file()), folder / f"{name}{suffixes[0]}")


def _size(image: Path) -> tuple[int, int]:
    """Return (height, width) of a file as it is read."""
    size = upright_size(image)
    if size is not None:
        return size[1], size[0]
    try:
        shape = read_radiograph(image, allow=GATES).image.shape
    except RadiographError as error:
        raise DatalistError(f"{image}: {error}") from error
    return int(shape[0]), int(shape[1])


def _hash(*parts: object) -> float:
    digest = hashlib.blake2b(":".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _random_part(patient: str, limits: Limits) -> str:
    return "test" if _hash("test", limits.seed, patient) < limits.test_share else "training"


def _without_repeats(records: Sequence[Record], counts: Counter[str]) -> list[Record]:
    """Return the records without repeated ones, which are counted.

    Raises:
        DatalistError: when two records say different things about one image.
    """
    found: dict[Path, Record] = {}
    for record in records:
        first = found.setdefault(record.image, record)
        if first != record:
            raise DatalistError(
                f"the tables contradict themselves about {record.image}: {_described(first)} and {_described(record)}. "
                "Remove the wrong row"
            )
    counts["listed more than once"] += len(records) - len(found)
    return list(found.values())


def _described(record: Record) -> str:
    findings = ", ".join(record.findings) or "no finding"
    return f"{findings} of patient {record.patient} in {record.part or 'no'} part with {len(record.boxes)} boxes"


def _distinct_names(images: Sequence[Path]) -> dict[str, str]:
    """Return a name for every file: its last parts, as few of them as make all names different.

    Names that do not depend on where the collection lies give the same draw on every machine. One part is enough for most
    collections; in CheXpert, where nearly all files are called `view1_frontal.jpg`, it takes three.
    """
    longest = max((len(image.parts) for image in images), default=1)
    for count in range(1, longest + 1):
        names = {str(image): "/".join(image.parts[-count:]) for image in images}
        if len(set(names.values())) == len(names):
            break
    return names


def _limit(
    items: list[Item],
    part: str,
    limits: Limits,
    counts: Counter[str],
    names: Mapping[str, str],
    draw_patients: bool,
) -> list[Item]:
    """Choose the wanted number of each kind by a hash of the names and return them sorted by path."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        key = item["class"] if part == "training" else str(item["label"])
        groups.setdefault(key if item["label"] else "normal", []).append(item)
    taken: list[Item] = []
    for key, group in groups.items():
        normal, abnormal = (
            (limits.train_normal, limits.train_abnormal)
            if part == "training"
            else (limits.test_normal, limits.test_abnormal)
        )
        wanted = normal if key == "normal" else abnormal
        group.sort(key=lambda item: (_hash("limit", limits.seed, names[item["image"]]), names[item["image"]]))
        taken += (_patients_first(group) if draw_patients else group)[:wanted]
        counts["beyond the wanted number"] += len(group) - len(group[:wanted])
    return sorted(taken, key=lambda item: Path(item["image"]).as_posix())


def _patients_first(items: Sequence[Item]) -> list[Item]:
    """Order items so that each patient's first image precedes the second image of any patient; else keep the order."""
    seen: Counter[str] = Counter()
    turns = []
    for item in items:
        turns.append(seen[item["patient"]])
        seen[item["patient"]] += 1
    return [items[index] for index in sorted(range(len(items)), key=turns.__getitem__)]
