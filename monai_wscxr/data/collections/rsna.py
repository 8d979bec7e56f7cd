"""RSNA Pneumonia Detection Challenge: `stage_2_train_labels.csv`, `stage_2_detailed_class_info.csv`, DICOM images or copies.

The challenge's `patientId` identifies an image, not a patient. The images come from NIH ChestX-ray14, where a patient has
several; `pneumonia-challenge-dataset-mappings_2018.json`, published beside the challenge, names the patients. With that file
no patient is in training and test; without it every image counts as a patient of its own, and the command reports this.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from monai_wscxr.data.collections.common import Box, Record, find_image, find_table, read_table
from monai_wscxr.data.datalist import DatalistError

MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"
_BOX_SIZE = (1024, 1024)  # of the challenge's DICOM files, in whose pixels the boxes are
NORMAL, OTHER, OPACITY = "Normal", "No Lung Opacity / Not Normal", "Lung Opacity"


def read_rsna(root: Path, left_out: Counter[str], other: str = "exclude") -> list[Record]:
    """Read normal images and images with lung opacity, with its boxes.

    Args:
        root: folder with the tables and `stage_2_train_images/`.
        left_out: counts the images left out, by reason.
        other: policy for images that are neither normal nor show lung opacity: "exclude", or "include" as another class.

    Raises:
        DatalistError: for missing tables or columns, or another policy.
    """
    if other not in ("exclude", "include"):
        raise DatalistError(f"other {other!r} is not allowed; allowed are exclude and include")
    boxes: dict[str, list[Box]] = {}
    labels = find_table(root, "stage_2_train_labels.csv", "stage_1_train_labels.csv")
    for row in read_table(labels, ("patientId", "x", "y", "width", "height", "Target")):
        if row["Target"] == "1":
            try:
                x, y, w, h = (float(row[name]) for name in ("x", "y", "width", "height"))
            except ValueError as error:
                raise DatalistError(f"{labels}: {row['patientId']} has Target 1 without a box ({error})") from error
            boxes.setdefault(row["patientId"], []).append((x, y, w, h))
    patients = _patients(root / MAPPING)
    if not patients:
        left_out["note: without the mapping file every image counts as a patient of its own"] += 1
    kinds: dict[str, str] = {}  # the table has one row per box
    table = find_table(root, "stage_2_detailed_class_info.csv", "stage_1_detailed_class_info.csv")
    for row in read_table(table, ("patientId", "class")):
        kinds[row["patientId"]] = row["class"]
    images = root / "stage_2_train_images"
    images = images if images.is_dir() else root / "stage_1_train_images"
    records = []
    for name, kind in kinds.items():
        if kind not in (NORMAL, OTHER, OPACITY):
            raise DatalistError(f"{table}: class {kind!r} is unknown; expected {NORMAL}, {OTHER} or {OPACITY}")
        if kind == OTHER and other == "exclude":
            left_out["neither normal nor lung opacity"] += 1
            continue
        findings = {NORMAL: (), OPACITY: ("Lung Opacity",), OTHER: ("Not Normal",)}[kind]
        found = tuple(boxes.get(name, ()))
        image = find_image(images, name, (".dcm", ".dicom", ".png", ".jpg", ".jpeg"))
        records.append(Record(image, findings, patients.get(name, name), None, found, _BOX_SIZE))
    return records


def _patients(path: Path) -> dict[str, str]:
    """Read the patients of ChestX-ray14 by image of the challenge; empty without the file."""
    if not path.is_file():
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {entry["subset_img_id"]: str(entry["img_id"]).partition("_")[0] for entry in entries}
    except (ValueError, KeyError, TypeError) as error:
        raise DatalistError(f"{path} is damaged ({error}); download it again") from error
