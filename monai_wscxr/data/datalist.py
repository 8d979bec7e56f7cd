"""Datalists from folders, JSON and CSV files.

An item is a dictionary: `image` (path), `label` (0 normal, 1 abnormal), `class` ("normal" or the name of the abnormal class),
`patient` and, for an image with a lesion mask, `mask` (path). Pixels are not read here.

A folder holds `train/normal`, `train/abnormal[/CLASS]`, `test/normal` and `test/abnormal[/CLASS]`. `training`, `testing` and,
for `abnormal`, `PNEUMONIA` are other names for the same, in upper or lower case; `val` is ignored. `listing` decides which
files are images. The lesion mask of `test/abnormal/CLASS/NAME.ext` is `masks/test/abnormal/CLASS/NAME.png`.

Patients are taken from file names of the ZhangLab (Kermany) collection: `person63_bacteria_306` belongs to
`person63_bacteria`, `BACTERIA-1008087-0001` to `BACTERIA-1008087` and `NORMAL2-IM-0381-0001` to `NORMAL2-IM-0381`. The class
is part of the patient, because the classes seem to be numbered independently: `person63_bacteria` and `person63_virus` are
two children. Any other file counts as a patient of its own unless the datalist names the patient.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_wscxr.data.listing import IMAGE_SUFFIXES, Listing, is_hidden_folder, is_image, list_images
from monai_wscxr.errors import InputError

logger = logging.getLogger("monai_wscxr")

Item = dict[str, Any]

COLUMNS = ("image", "split", "label", "class", "patient", "mask")
_SPLITS = {"train": "training", "training": "training", "test": "test", "testing": "test"}
_IGNORED_SPLITS = ("val", "valid", "validation")
_LAYOUT = "Expected: train/normal, train/abnormal[/CLASS], test/normal, test/abnormal[/CLASS]."
_ZHANGLAB_PATIENT = re.compile(
    r"(person\d+_(?:bacteria|virus))_\d+"  # the copy with class folders
    r"|((?:NORMAL\d*-)?IM-\d+)-\d+"
    r"|((?:BACTERIA|VIRUS|NORMAL)-\d+)-\d+$",  # the renamed release: class, patient, image of the patient
    re.IGNORECASE,
)
_ZHANGLAB_CLASS = re.compile(r"person\d+_(bacteria|virus)_\d+|(BACTERIA|VIRUS)-\d+-\d+$", re.IGNORECASE)


class DatalistError(InputError):
    """A datalist that cannot be used; the message gives what was found, what is allowed and what to do."""


def load_datalist(source: str | os.PathLike[str]) -> dict[str, list[Item]]:
    """Load a datalist from a folder, a JSON file or a CSV file.

    Files of a folder that are left out are counted by reason in one line of the log.

    Args:
        source: a folder in the layout of the module's docstring; or a MONAI datalist {"training": [..], "test": [..]} whose
            items have `image`, `label` and optionally `class`, `patient`, `mask`; or a CSV file with the columns `image`,
            `split`, `label` and optionally `class`, `patient`, `mask`. Relative paths in a file start at the folder of that
            file.

    Returns:
        {"training": items, "test": items}, in the order of the file, or sorted by path for a folder; "test" may be empty.

    Raises:
        DatalistError: for a missing or empty source, no normal training image, a label other than 0 and 1, unknown columns,
            paths that do not exist, or a file listed twice.
    """
    path = Path(source)
    if path.is_dir():
        datalist = _from_folder(path)
    elif not path.exists():
        raise DatalistError(f"{path}: no such folder or file. Give a dataset folder, a datalist .json or a .csv.")
    elif path.suffix.lower() == ".json":
        datalist = _from_json(path)
    elif path.suffix.lower() == ".csv":
        datalist = _from_csv(path)
    else:
        raise DatalistError(f"{path}: a datalist is a folder, a .json or a .csv file. {_LAYOUT}")
    _check_paths(path, datalist)
    for split, items in datalist.items():
        _check_duplicates(path, split, items)
    if not any(item["label"] == 0 for item in datalist["training"]):
        raise DatalistError(
            f"{path}: no normal training image among {len(datalist['training'])} training images. The normal bank "
            "needs them: put them into train/normal, or give them split train and label 0."
        )
    return datalist


def patient_of(name: str) -> str | None:
    """Return the patient in a ZhangLab file name, with the class, or None for any other name.

    Args:
        name: a file name, with or without folders and extension.
    """
    found = _ZHANGLAB_PATIENT.match(_stem(Path(name).name))
    return next((group for group in found.groups() if group), None) if found else None


# ---- sources


def _from_folder(root: Path) -> dict[str, list[Item]]:
    datalist: dict[str, list[Item]] = {"training": [], "test": []}
    left_out: list[tuple[Path, str]] = []
    found: dict[str, Path] = {}
    for folder in _folders(root):
        split = _SPLITS.get(folder.name.lower())
        if split is None:
            continue
        if split in found:
            raise DatalistError(f"{root}: {found[split].name} and {folder.name} both mean {split}. Keep one of them.")
        found[split] = folder
        datalist[split] = _from_split(root, folder, split, left_out)
    if not found:
        names = ", ".join(folder.name for folder in _folders(root)[:8]) or "no folders"
        raise DatalistError(f"{root}: neither train nor test in this folder; it holds {names}. {_LAYOUT}")
    if not any(datalist.values()):
        everything = list_images([root])
        files = [*everything.images, *(path for path, _ in everything.left_out if path.is_file())]
        others = Counter(path.suffix.lower() or "no extension" for path in files).most_common(5)
        held = ", ".join(f"{count} x {suffix}" for suffix, count in others) or "no files"
        raise DatalistError(f"{root}: no images; it holds {held}. Allowed: {', '.join(IMAGE_SUFFIXES)}. {_LAYOUT}")
    if left_out:
        logger.info("%s: %s", root, Listing((), tuple(left_out)).summary())
    return datalist


def _from_split(root: Path, folder: Path, split: str, left_out: list[tuple[Path, str]]) -> list[Item]:
    """Return the items of `train` or `test`, sorted by path, and append what is left out to `left_out`."""
    items = []
    kinds = {"normal": 0, "abnormal": 1, "pneumonia": 1}
    unknown = [child.name for child in _folders(folder) if child.name.lower() not in kinds]
    loose = [path.name for path in sorted(folder.iterdir()) if path.is_file() and is_image(path)]
    if unknown or loose:
        raise DatalistError(
            f"{folder}: {few(unknown + loose)} is not allowed here; allowed are the folders normal, abnormal and "
            f"PNEUMONIA. {_LAYOUT}"
        )
    for child in _folders(folder):
        label = kinds[child.name.lower()]
        listing = list_images([child])
        left_out += listing.left_out
        for path in listing.images:
            name = "normal" if label == 0 else _folder_class(child, path)
            item = _item(str(path), label, name, patient_of(path.name) or path.relative_to(root).as_posix())
            mask = _mask_of(root, path) if split == "test" and label == 1 else None
            items.append(item if mask is None else {**item, "mask": str(mask)})
    return sorted(items, key=by_path)


def _folder_class(kind: Path, path: Path) -> str:
    """Return the class of an abnormal image: its class folder, else the class in a ZhangLab name, else "abnormal"."""
    inner = path.relative_to(kind).parts
    if len(inner) > 1:
        if inner[0].lower() == "normal":
            raise DatalistError(
                f"{kind / inner[0]}: normal cannot be the name of an abnormal class. Rename the folder."
            )
        return inner[0]
    if kind.name.lower() != "pneumonia":
        return "abnormal"
    found = _ZHANGLAB_CLASS.match(_stem(path.name))
    return (found.group(1) or found.group(2)).lower() if found else "pneumonia"


def _mask_of(root: Path, path: Path) -> Path | None:
    for folder in _folders(root):
        if folder.name.lower() == "masks":
            relative = path.relative_to(root)
            mask = folder / relative.parent / f"{_stem(path.name)}.png"
            return mask if mask.is_file() else None
    return None


def _from_json(path: Path) -> dict[str, list[Item]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DatalistError(f"{path}: not valid JSON ({error}). Correct the file.") from error
    if not isinstance(content, dict) or not isinstance(content.get("training"), list):
        raise DatalistError(f'{path}: expected {{"training": [...], "test": [...]}}, a list of items under each key.')
    datalist: dict[str, list[Item]] = {"training": [], "test": []}
    for split in datalist:
        entries = content.get(split, [])
        if not isinstance(entries, list):
            raise DatalistError(f"{path}: {split!r} is {type(entries).__name__}; expected a list of items.")
        for number, entry in enumerate(entries):
            where = f"{path}: item {number} of {split}"
            if not isinstance(entry, dict):
                raise DatalistError(f"{where} is {type(entry).__name__}; expected an object with image and label.")
            _check_keys(where, entry, [name for name in COLUMNS if name != "split"], ["image", "label"])
            datalist[split].append(_entry(where, path.parent, entry))
    return datalist


def _from_csv(path: Path) -> dict[str, list[Item]]:
    datalist: dict[str, list[Item]] = {"training": [], "test": []}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatalistError(f"{path}: not a UTF-8 CSV file ({error}). Save it again.") from error
    header = [name.strip() for name in rows[0]] if rows else []
    if "image" not in header:
        raise DatalistError(
            f"{path}: the first line has no column image, so there is no header: {','.join(header)[:80]!r}. "
            f"Start the file with image,split,label[,class][,patient][,mask], separated by commas."
        )
    if len(set(header)) < len(header):
        raise DatalistError(f"{path}: a column is named twice: {', '.join(header)}. Keep one of each.")
    _check_keys(f"{path}: the header", dict.fromkeys(header), COLUMNS, ["image", "split", "label"])
    for number, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        where = f"{path}: row {number}"
        if len(row) != len(header):
            raise DatalistError(f"{where} has {len(row)} cells, the header {len(header)}. Quote commas inside cells.")
        entry = {name: cell.strip() for name, cell in zip(header, row, strict=True)}
        split = entry.pop("split").lower()
        if split in _IGNORED_SPLITS:
            continue
        if split not in _SPLITS:
            raise DatalistError(f"{where}: split is {split!r}; allowed are train and test (val is ignored).")
        datalist[_SPLITS[split]].append(_entry(where, path.parent, entry))
    return datalist


def _entry(where: str, base: Path, entry: Mapping[str, Any]) -> Item:
    """Check one entry of a JSON or CSV file and return its item; empty optional values count as missing."""
    image, label, name = entry["image"], entry["label"], entry.get("class")
    if not isinstance(image, str) or not image:
        raise DatalistError(f"{where}: image is {image!r}; expected a path.")
    if isinstance(label, bool) or label not in (0, 1, "0", "1"):
        raise DatalistError(f"{where}: label is {label!r}; allowed are 0 (normal) and 1 (abnormal).")
    label = int(label)
    name = str(name) if name not in (None, "") else ("normal", "abnormal")[label]
    if (name.lower() == "normal") != (label == 0):
        raise DatalistError(f"{where}: class {name!r} contradicts label {label}. Label 0 goes with class normal only.")
    patient = entry.get("patient")
    if patient in (None, ""):
        patient = patient_of(image) or Path(image).as_posix()
    item = _item(str(base / image), label, "normal" if label == 0 else name, str(patient))
    mask = entry.get("mask")
    return item if mask in (None, "") else {**item, "mask": str(base / str(mask))}


def _item(image: str, label: int, name: str, patient: str) -> Item:
    return {"image": image, "label": label, "class": name, "patient": patient}


# ---- checks


def _check_keys(where: str, keys: Iterable[str], allowed: Sequence[str], needed: Sequence[str]) -> None:
    unknown = [key for key in keys if key not in allowed]
    missing = [key for key in needed if key not in keys]
    if unknown or missing:
        what = [f"unknown: {', '.join(map(repr, unknown))}"] if unknown else []
        what += [f"missing: {', '.join(map(repr, missing))}"] if missing else []
        raise DatalistError(
            f"{where} has {'; '.join(what)}. Needed: {', '.join(needed)}; allowed: {', '.join(allowed)}."
        )


def _check_paths(source: Path, datalist: Mapping[str, list[Item]]) -> None:
    paths = [item[key] for items in datalist.values() for item in items for key in ("image", "mask") if key in item]
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise DatalistError(
            f"{source}: {len(missing)} of {len(paths)} files do not exist: {few(missing)}. Relative paths start at "
            f"{source if source.is_dir() else source.parent}; correct the paths."
        )


def _check_duplicates(source: Path, split: str, items: Iterable[Item]) -> None:
    counts = Counter(os.path.abspath(item["image"]) for item in items)
    double = [path for path, count in counts.items() if count > 1]
    if double:
        raise DatalistError(f"{source}: {len(double)} image(s) listed more than once in {split}: {few(double)}.")


# ---- small helpers


def by_path(item: Item) -> str:
    """Return the sort key of an item, the same on every system."""
    return Path(item["image"]).as_posix()


def few(texts: Sequence[str], limit: int = 3) -> str:
    """Join the first `limit` texts and the number of the others, for messages."""
    rest = len(texts) - limit
    return "; ".join(texts[:limit]) + (f"; and {rest} more" if rest > 0 else "")


def _stem(name: str) -> str:
    lower = name.lower()
    suffix = next((suffix for suffix in (".nii.gz", *IMAGE_SUFFIXES) if lower.endswith(suffix)), "")
    return name[: len(name) - len(suffix)]


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden_folder(path))
