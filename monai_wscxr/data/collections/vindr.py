"""VinDr-CXR: boxes of radiologists in `annotations/annotations_{train,test}.csv` (PhysioNet) or `train.csv` (Kaggle).

The collection names no patients, so every image counts as a patient of its own. Three radiologists read each training image;
test images were read by consensus. Diagnoses of the whole image, such as pneumonia or tuberculosis, have no box and are only
in `image_labels_{train,test}.csv`; if that table exists, it decides which images are normal.

Boxes are in pixels of the original DICOM files, whose sizes differ. For copies in PNG or JPEG, the size of each original comes
from columns `width` and `height` of the table of boxes, or from `{train,test}_meta.csv` (`image_id, dim0, dim1`, which are
height and width) beside it or in the collection's folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from monai_wscxr.data.collections.common import Box, Record, Size, find_image, find_table, read_table
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
        sizes = _sizes(table, (table.parent, root), f"{folder.name}_meta.csv")
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
            boxes = tuple(box for finding in findings for _, box in rows[finding])
            records.append(Record(find_image(folder, name), findings, name, own, boxes, sizes.get(name)))
    return records


def _without_findings(table: Path) -> set[str] | None:
    """Return the images on which no reader found anything; None without the table."""
    if not table.is_file():
        return None
    answers: dict[str, list[bool]] = {}
    for row in read_table(table, ("image_id", "No finding")):
        answers.setdefault(row["image_id"], []).append(row["No finding"] in ("1", "1.0"))
    return {name for name, of_readers in answers.items() if all(of_readers)}


def _sizes(table: Path, folders: Sequence[Path], meta: str) -> dict[str, Size]:
    """Return (width, height) of the originals by image, from the table of boxes or else from `meta`; empty without both.

    Raises:
        DatalistError: for a size that is no whole number of at least 1, or two sizes of one image.
    """
    beside = next((p for folder in folders if (p := find_table(folder, meta)).is_file()), None)
    for source, columns in ((table, ("width", "height")), (beside, ("dim1", "dim0"))):
        if source is None or not all(name in _header(source) for name in columns):
            continue
        found: dict[str, Size] = {}
        for row in read_table(source, ("image_id", *columns)):
            width, height = (row[name].removesuffix(".0") for name in columns)
            if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
                raise DatalistError(
                    f"{source}: {row['image_id']} has size {width!r} x {height!r}; expected whole numbers"
                )
            size = int(width), int(height)
            if found.setdefault(row["image_id"], size) != size:
                raise DatalistError(f"{source}: {row['image_id']} has two sizes, {found[row['image_id']]} and {size}")
        return found
    return {}


def _header(table: Path) -> tuple[str, ...]:
    row = next(read_table(table, ()), None)
    return tuple(row or ())


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
