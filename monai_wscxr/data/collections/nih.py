"""NIH ChestX-ray14: `Data_Entry_2017*.csv`, the official lists, and the 984 lesion boxes of `BBox_List_2017.csv`."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from monai_wscxr.data.collections.common import Box, Record, find_table, read_table
from monai_wscxr.data.datalist import DatalistError
from monai_wscxr.data.radiograph.read import file_digest

_BOX_SIZE = (1024, 1024)  # of the published PNG files, in whose pixels the boxes are; not `OriginalImage[Width,Height]`
_BOX_NAMES = {"Infiltrate": "Infiltration"}  # the table of boxes uses another name


def read_nih(root: Path, left_out: Counter[str], view: str = "all") -> list[Record]:
    """Read all images with the 14 findings as classes; the split is official if its lists exist.

    Args:
        root: folder with the tables and `images/` or `images_001/images/` to `images_012/images/`.
        left_out: counts the images left out, by reason.
        view: "all", "PA" or "AP".

    Raises:
        DatalistError: for missing tables or columns, another view, or two different files of one name.
    """
    if view not in ("all", "PA", "AP"):
        raise DatalistError(f"view {view!r} is not allowed; allowed are all, PA and AP")
    parts = _lists(root)
    boxes = read_boxes(root / "BBox_List_2017.csv")
    folders = [p for p in (root / "images", *sorted(root.glob("images_*/images"))) if p.is_dir()]
    where = _by_name(folders)
    table = find_table(root, "Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
    records = []
    for row in read_table(table, ("Image Index", "Finding Labels", "Patient ID", "View Position")):
        name, labels = row["Image Index"], row["Finding Labels"]
        if view not in ("all", row["View Position"]):
            left_out[f"view is not {view}"] += 1
            continue
        if parts and name not in parts:
            left_out["in neither official list"] += 1
            continue
        findings = () if labels == "No Finding" else tuple(labels.split("|"))
        records.append(
            Record(
                where.get(name, root / "images" / name),
                findings,
                row["Patient ID"],
                parts.get(name),
                tuple(box for _, box in boxes.get(name, ())) if findings else (),
                _BOX_SIZE,
                {
                    "sex": row.get("Patient Sex") or row.get("Patient Gender", ""),
                    "age": row.get("Patient Age", ""),
                    "view": row["View Position"],
                },
            )
        )
    return records


def read_boxes(path: Path) -> dict[str, list[tuple[str, Box]]]:
    """Read the lesion boxes by image; none without the file.

    Columns are taken by position, because commas split the last name of the header `Image Index,Finding Label,Bbox
    [x,y,w,h],,,`.

    Returns:
        Lists of (finding, (x, y, width, height)) in pixels of the image of 1,024 x 1,024 pixels.

    Raises:
        DatalistError: for a row without four numbers.
    """
    found: dict[str, list[tuple[str, Box]]] = {}
    if not path.is_file():
        return found
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.reader(file))
    for number, row in enumerate(rows[1:], start=2):
        if not any(row):
            continue
        try:
            x, y, w, h = (float(cell) for cell in row[2:6])
        except ValueError as error:
            raise DatalistError(
                f"{path}, row {number}: expected an image, a finding and four numbers ({error})"
            ) from error
        found.setdefault(row[0], []).append((_BOX_NAMES.get(row[1], row[1]), (x, y, w, h)))
    return found


def _by_name(folders: Sequence[Path]) -> dict[str, Path]:
    """Return the files by name, the tables' only key; of equal copies in two folders the first.

    Raises:
        DatalistError: when two folders hold different files of one name.
    """
    where: dict[str, Path] = {}
    for path in (path for folder in folders for path in sorted(folder.iterdir())):
        first = where.setdefault(path.name, path)
        if first is not path and file_digest(first) != file_digest(path):
            raise DatalistError(
                f"{first} and {path} have one name but different content; keep the file that the tables mean"
            )
    return where


def _lists(root: Path) -> dict[str, str]:
    parts: dict[str, str] = {}
    for name, part in (("train_val_list.txt", "training"), ("test_list.txt", "test")):
        path = root / name
        if path.is_file():
            parts.update(dict.fromkeys(path.read_text(encoding="utf-8").split(), part))
    if parts and len(set(parts.values())) < 2:
        raise DatalistError(f"{root} has only one of train_val_list.txt and test_list.txt; give both or none")
    return parts
