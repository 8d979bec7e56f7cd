"""VinDr-CXR: boxes of radiologists in `annotations/annotations_{train,test}.csv` (PhysioNet) or `train.csv` (Kaggle).

The collection names no patients, so every image counts as a patient of its own. Three radiologists read each training image;
test images were read by consensus. Diagnoses of the whole image, such as pneumonia or tuberculosis, have no box and are only
in `image_labels_{train,test}.csv`; if that table exists, it decides which images are normal.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from monai_wscxr.data.collections.common import Box, Record, find_table, read_table
from monai_wscxr.data.datalist import DatalistError

_NOTHING = "no finding"


def read_vindr(root: Path, left_out: Counter[str], readers: int = 2) -> list[Record]:
    """Read images without findings and images with findings, with their boxes.

    Args:
        root: folder of the collection.
        left_out: counts the images left out, by reason.
        readers: how many of the three readers of a training image must have marked a finding for it to count, 1 to 3. An
            image whose findings were all marked by fewer readers is neither normal nor abnormal and is left out.

    Raises:
        DatalistError: for missing tables or columns, or readers out of range.
    """
    if not 1 <= readers <= 3:
        raise DatalistError(f"readers is {readers}; a training image has three, so allowed are 1, 2 and 3")
    annotations = root / "annotations"
    if annotations.is_dir():
        tables = {
            "training": find_table(annotations, "annotations_train.csv"),
            "test": find_table(annotations, "annotations_test.csv"),
        }
    else:
        tables = {"training": find_table(root, "train.csv")}
    records = []
    for part, table in tables.items():
        own = part if len(tables) > 1 else None
        folder = root / ("train" if part == "training" else "test")
        normal = _without_findings(
            find_table(table.parent, f"image_labels_{'train' if part == 'training' else 'test'}.csv")
        )
        suffixes = (".dicom", ".dcm", ".png", ".jpg")
        for name, rows in _by_image(table).items():
            needed = readers if part == "training" else 1
            marked = {finding: {reader for reader, _ in marks} for finding, marks in rows.items()}
            findings = tuple(sorted(f for f, who in marked.items() if len(who) >= needed))
            if rows and not findings:
                left_out["findings of too few readers"] += 1
                continue
            if not findings and normal is not None and name not in normal:
                left_out["diagnosis of the whole image without a box"] += 1
                continue
            image = next((p for s in suffixes if (p := folder / f"{name}{s}").is_file()), folder / f"{name}.dicom")
            boxes = tuple(box for finding in findings for _, box in rows[finding])
            records.append(Record(image, findings, name, own, boxes))
    return records


def _without_findings(table: Path) -> set[str] | None:
    """Return the images on which no reader found anything; None without the table."""
    if not table.is_file():
        return None
    answers: dict[str, list[bool]] = {}
    for row in read_table(table, ("image_id", "No finding")):
        answers.setdefault(row["image_id"], []).append(row["No finding"] in ("1", "1.0"))
    return {name for name, of_readers in answers.items() if all(of_readers)}


def _by_image(table: Path) -> dict[str, dict[str, list[tuple[str, Box]]]]:
    """Return {image: {finding: [(reader, box)]}}; the dictionary of an image without findings is empty."""
    found: dict[str, dict[str, list[tuple[str, Box]]]] = {}
    for row in read_table(table, ("image_id", "class_name", "x_min", "y_min", "x_max", "y_max")):
        marks = found.setdefault(row["image_id"], {})
        if row["class_name"].lower() == _NOTHING:
            continue
        try:
            left, top, right, bottom = (float(row[name]) for name in ("x_min", "y_min", "x_max", "y_max"))
        except ValueError as error:
            raise DatalistError(f"{table}: {row['image_id']} has a finding without a box ({error})") from error
        box = (left, top, right - left, bottom - top)
        marks.setdefault(row["class_name"], []).append((row.get("rad_id", "consensus"), box))
    return found
