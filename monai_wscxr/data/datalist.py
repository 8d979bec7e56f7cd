"""Datalists from folders, JSON and CSV files.

An item is a dictionary: `image` (path), `label` (0 normal, 1 abnormal), `class` ("normal" or the name of the abnormal class),
`patient`, for an image with a lesion mask, `mask` (path), and what a file says of the columns in `columns.DESCRIPTIONS`. Pixels
are not read here; `patients` says which images are of one patient, for which headers of DICOM files may be read.

A folder holds `train/normal`, `train/abnormal[/CLASS]`, `test/normal` and `test/abnormal[/CLASS]`. `training`, `testing` and,
for `abnormal`, `PNEUMONIA` are other names for the same, in upper or lower case; `val` is left out. `listing` decides which
files are images. The lesion mask of `test/abnormal/CLASS/NAME.ext` is `masks/test/abnormal/CLASS/NAME.png`.
"""

from __future__ import annotations

import csv
import difflib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_wscxr.data.columns import COLUMNS, DESCRIPTIONS, mistaken
from monai_wscxr.data.listing import (
    HIDDEN,
    IMAGE_SUFFIXES,
    NOT_AN_IMAGE,
    Listing,
    is_hidden_folder,
    is_image,
    list_images,
)
from monai_wscxr.data.patients import Mention, identify
from monai_wscxr.data.patients import patient_of as patient_of
from monai_wscxr.errors import InputError

logger = logging.getLogger("monai_wscxr")

Item = dict[str, Any]

VALIDATION_PART = "validation_part"
"""A folder, list or row of a validation part, which no run uses."""
NOT_A_PART = "not_a_part"
"""A folder or file beside `train` and `test` that belongs to neither."""
MASK_WITHOUT_IMAGE = "mask_without_image"
"""A mask whose name is that of no abnormal test image."""

_SPLITS = {"train": "training", "training": "training", "test": "test", "testing": "test"}
_IGNORED_SPLITS = ("val", "valid", "validation")
_DESCRIPTIVE = frozenset(  # keys of a MONAI datalist that list no images
    (
        *("name", "description", "reference", "licence", "license", "release", "version", "date", "modality", "labels"),
        *("channel_names", "numtraining", "numtest", "tensorimagesize", "file_ending"),
    )
)
_EXPECTED = (HIDDEN, NOT_AN_IMAGE, VALIDATION_PART)  # reasons that need no warning
_LAYOUT = "Expected: train/normal, train/abnormal[/CLASS], test/normal, test/abnormal[/CLASS]."
_ZHANGLAB_CLASS = re.compile(r"person\d+_(bacteria|virus)_\d+|(BACTERIA|VIRUS)-\d+-\d+$", re.IGNORECASE)


class DatalistError(InputError):
    """A datalist that cannot be used; the message gives what was found, what is allowed and what to do."""


@dataclass(frozen=True)
class LoadedDatalist:
    """A datalist and what it does not use.

    Attributes:
        parts: {"training": items, "test": items}.
        left_out: files, folders and rows that are in no part, each with its reason: a code of `listing`, `VALIDATION_PART`,
            `NOT_A_PART` or `MASK_WITHOUT_IMAGE`.
    """

    parts: dict[str, list[Item]]
    left_out: tuple[tuple[Path, str], ...]

    def summary(self) -> str:
        """Return how much was left out and why, in one line; empty when nothing was."""
        return Listing((), self.left_out).summary()


def load_datalist(source: str | os.PathLike[str]) -> dict[str, list[Item]]:
    """Load a datalist from a folder, a JSON file or a CSV file.

    What is left out is counted by reason in one line of the log, a warning unless it is hidden, no image, or for validation.

    Args:
        source: a folder in the layout of the module's docstring; or a MONAI datalist {"training": [..], "test": [..]} whose
            items have `image`, `label` and optionally `class`, `patient`, `mask`, `findings`, `sex`, `age`, `view`, `site`,
            `device`; or a CSV file with the column `split` besides these. Additional columns are named in the log and not
            read. Relative paths in a file start at the folder of that file.

    Returns:
        {"training": items, "test": items}, in the order of the file, or sorted by path for a folder; "test" may be empty.

    Raises:
        DatalistError: for a missing or empty source, no normal training image, a label other than 0 and 1, mistyped columns,
            unknown keys of a JSON file, paths that do not exist, or a file listed twice.

    Example:
        >>> import json, tempfile
        >>> from monai_wscxr.data import write_phantoms
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_phantoms(folder / "phantoms", 2, 1, 1, 1, size=32, lesions=("nodule",), progress=False)
        >>> parts = load_datalist(folder / "phantoms")
        >>> [(item["label"], Path(item["image"]).parent.name) for item in parts["training"]]
        [(1, 'nodule'), (0, 'normal'), (0, 'normal')]
    """
    return load_with_rest(source).parts


def load_with_rest(source: str | os.PathLike[str]) -> LoadedDatalist:
    """Load a datalist together with what it leaves out, see `load_datalist`."""
    path = Path(source)
    left_out: list[tuple[Path, str]] = []
    if path.is_dir():
        datalist = _from_folder(path, left_out)
    elif not path.exists():
        raise DatalistError(f"{path}: no such folder or file. Give a dataset folder, a datalist .json or a .csv.")
    elif not path.is_file():
        raise DatalistError(f"{path}: a pipe, socket or device is no datalist. {_LAYOUT}")
    elif path.suffix.lower() == ".json":
        datalist = _from_json(path, left_out)
    elif path.suffix.lower() == ".csv":
        datalist = _from_csv(path, left_out)
    else:
        raise DatalistError(f"{path}: a datalist is a folder, a .json or a .csv file. {_LAYOUT}")
    loaded = LoadedDatalist(datalist, tuple(left_out))
    if left_out:
        unexpected = [(file, reason) for file, reason in left_out if reason not in _EXPECTED]
        examples = few([f"{file} ({reason})" for file, reason in unexpected])
        logger.log(
            logging.WARNING if unexpected else logging.INFO,
            "%s: %s%s",
            *(path, loaded.summary(), f"; {examples}" if unexpected else ""),
        )
    _check_paths(path, datalist)
    for split, items in datalist.items():
        _check_duplicates(path, split, items)
    if not any(item["label"] == 0 for item in datalist["training"]):
        raise DatalistError(
            f"{path}: no normal training image among {len(datalist['training'])} training images. The normal bank "
            "needs them: put them into train/normal, or give them split train and label 0."
        )
    items = [item for part in datalist.values() for item in part]
    mentions = [Mention(item["image"], item["patient"], item.pop("own")) for item in items]
    for item, patient in zip(items, identify(mentions, str(path)), strict=True):
        item["patient"] = patient
    return loaded


# ---- sources


def _from_folder(root: Path, left_out: list[tuple[Path, str]]) -> dict[str, list[Item]]:
    datalist: dict[str, list[Item]] = {"training": [], "test": []}
    found: dict[str, Path] = {}
    for folder in _folders(root, left_out):
        name = folder.name.lower()
        split = _SPLITS.get(name)
        if split is None:
            if name != "masks":
                left_out.append((folder, VALIDATION_PART if name in _IGNORED_SPLITS else NOT_A_PART))
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
    loose = [path for path in _entries(root) if path.is_file() and not path.name.startswith(".")]
    left_out += [(path, NOT_A_PART if is_image(path) else NOT_AN_IMAGE) for path in loose]
    left_out += _unused_masks(root, datalist["test"])
    return datalist


def _from_split(root: Path, folder: Path, split: str, left_out: list[tuple[Path, str]]) -> list[Item]:
    """Return the items of `train` or `test`, sorted by path, and append what is left out to `left_out`."""
    items = []
    kinds = {"normal": 0, "abnormal": 1, "pneumonia": 1}
    folders = _folders(folder, left_out)
    unknown = [child.name for child in folders if child.name.lower() not in kinds]
    loose = [path.name for path in _entries(folder) if path.is_file() and is_image(path)]
    if unknown or loose:
        raise DatalistError(
            f"{folder}: {few(unknown + loose)} is not allowed here; allowed are the folders normal, abnormal and "
            f"PNEUMONIA. {_LAYOUT}"
        )
    left_out += [(path, NOT_AN_IMAGE) for path in _entries(folder) if path.is_file() and not path.name.startswith(".")]
    for child in folders:
        label = kinds[child.name.lower()]
        listing = list_images([child])
        left_out += listing.left_out
        for path in listing.images:
            name = "normal" if label == 0 else _folder_class(child, path)
            item = _item(str(path), label, name, None, path.relative_to(root).as_posix())
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


def _unused_masks(root: Path, test: Sequence[Item]) -> list[tuple[Path, str]]:
    """Return the files in `masks/test` that are the mask of no image; masks of training images are not used at all."""
    used = {item["mask"] for item in test if "mask" in item}
    folders = [child for folder in _folders(root) if folder.name.lower() == "masks" for child in _folders(folder)]
    masks = list_images([folder for folder in folders if _SPLITS.get(folder.name.lower()) == "test"]).images
    return [(mask, MASK_WITHOUT_IMAGE) for mask in masks if str(mask) not in used]


def _from_json(path: Path, left_out: list[tuple[Path, str]]) -> dict[str, list[Item]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_without_repeated_keys)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DatalistError(f"{path}: not valid JSON ({error}). Correct the file.") from error
    except _RepeatedKeyError as error:
        raise DatalistError(
            f"{path}: the key {error.args[0]!r} occurs twice in one object. Keep one of them."
        ) from error
    expected = f'{path}: expected {{"training": [...], "test": [...]}}, a list of items under each key.'
    if not isinstance(content, dict):
        raise DatalistError(expected)
    lists: dict[str, list[Any]] = {}
    for key, entries in content.items():
        split = _SPLITS.get(key.lower())
        if split is None and key.lower() not in _IGNORED_SPLITS:
            _check_description(path, key)
            continue
        if not isinstance(entries, list):
            raise DatalistError(f"{path}: {key!r} is {type(entries).__name__}; expected a list of items.")
        if split is None:
            left_out += [(path / f"{key}[{number}]", VALIDATION_PART) for number in range(len(entries))]
        elif split in lists:
            raise DatalistError(f"{path}: two keys mean {split}, one of them is {key!r}. Keep one of them.")
        else:
            lists[split] = entries
    if "training" not in lists:
        raise DatalistError(expected)
    datalist: dict[str, list[Item]] = {"training": [], "test": []}
    allowed = [name for name in COLUMNS if name != "split"]
    additional: dict[str, None] = {}
    present: set[str] = set()
    for split, entries in lists.items():
        for number, entry in enumerate(entries):
            where = f"{path}: item {number} of {split}"
            if not isinstance(entry, dict):
                raise DatalistError(f"{where} is {type(entry).__name__}; expected an object with image and label.")
            if "split" in entry:
                raise DatalistError(f"{where} has the key 'split'; the lists training and test decide. Remove it.")
            additional.update(dict.fromkeys(_check_keys(where, entry, allowed, ["image", "label"], additional)))
            present.update(entry)
            datalist[split].append(_entry(where, path.parent, entry))
    _log_additional(path, additional, present)
    return datalist


class _RepeatedKeyError(ValueError):
    """A key that occurs twice in one JSON object, of which Python would keep the last one without a word."""


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _RepeatedKeyError(key)
        found[key] = value
    return found


def _check_description(path: Path, key: str) -> None:
    """Check that a key of a JSON file that holds no part is one of those that describe a data set."""
    if key.lower() not in _DESCRIPTIVE:
        close = difflib.get_close_matches(key.lower(), _SPLITS, 1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise DatalistError(
            f"{path}: unknown key {key!r}.{hint} Allowed are training and test, validation, which is left out, and texts like "
            "name and description. Rename or remove it."
        )


def _from_csv(path: Path, left_out: list[tuple[Path, str]]) -> dict[str, list[Item]]:
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
    _log_additional(path, _check_keys(f"{path}: the header", header, COLUMNS, ["image", "split", "label"]), header)
    for number, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        where = f"{path}: row {number}"
        if len(row) != len(header):
            raise DatalistError(f"{where} has {len(row)} cells, the header {len(header)}. Quote commas inside cells.")
        entry = {name: cell.strip() for name, cell in zip(header, row, strict=True)}
        split = entry.pop("split").lower()
        if split in _IGNORED_SPLITS:
            left_out.append((path.parent / entry["image"], VALIDATION_PART))
            continue
        if split not in _SPLITS:
            raise DatalistError(f"{where}: split is {split!r}; allowed are train and test (val is left out).")
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
    if isinstance(patient, bool) or not isinstance(patient, str | int | float | None):
        raise DatalistError(f"{where}: patient is {type(patient).__name__}; expected a text or a number.")
    stated = None if patient is None else str(patient)
    item = _item(str(base / image), label, "normal" if label == 0 else name, stated, Path(image).as_posix())
    mask = entry.get("mask")
    item = item if mask in (None, "") else {**item, "mask": str(base / str(mask))}
    return {**item, **_description(where, entry)}


def _description(where: str, entry: Mapping[str, Any]) -> Item:
    """Return what an entry says of `DESCRIPTIONS`: `findings` as a list of texts, others as texts; empty ones are left out."""
    found: Item = {}
    for name in DESCRIPTIONS:
        value = entry.get(name)
        if name == "findings" and isinstance(value, list) and all(isinstance(part, str) for part in value):
            value = "|".join(value)
        if isinstance(value, bool) or not isinstance(value, str | int | float | None):
            expected = (
                "a list of texts, or one text with | between findings" if name == "findings" else "a text or a number"
            )
            raise DatalistError(f"{where}: {name} is {type(value).__name__}; expected {expected}.")
        text = "" if value is None else str(value).strip()
        if text:
            found[name] = [part.strip() for part in text.split("|") if part.strip()] if name == "findings" else text
    return found


def _item(image: str, label: int, name: str, patient: str | None, own: str) -> Item:
    """Return an item whose patient is still what the datalist states; `own` is the patient of an image without any."""
    return {"image": image, "label": label, "class": name, "patient": patient, "own": own}


# ---- checks


def _check_keys(
    where: str, keys: Iterable[str], allowed: Sequence[str], needed: Sequence[str], known: Iterable[str] = ()
) -> list[str]:
    """Check the names of columns or keys and return the additional ones.

    Raises:
        DatalistError: when a needed one is missing, or an unknown one is probably a mistyped one of ours.
    """
    keys = list(keys)
    known = set(known)
    unknown = [key for key in keys if key not in allowed and key not in DESCRIPTIONS and key not in known]
    meant = {key: column for key in unknown if (column := mistaken(key, keys, allowed)) is not None}
    missing = [key for key in needed if key not in keys]
    if meant or missing:
        what = [f"unknown: {key!r} (did you mean {column!r}?)" for key, column in meant.items()]
        what += [f"missing: {', '.join(map(repr, missing))}"] if missing else []
        raise DatalistError(
            f"{where} has {'; '.join(what)}. Needed: {', '.join(needed)}; allowed: {', '.join((*allowed, *DESCRIPTIONS))}, and "
            "additional ones with clearly other names."
        )
    return unknown


def _log_additional(path: Path, names: Iterable[str], present: Iterable[str]) -> None:
    """Log the columns that are not read; a warning where one was probably meant to describe the images."""
    names = list(names)
    meant = {name: column for name in names if (column := mistaken(name, present, DESCRIPTIONS)) is not None}
    listed = ", ".join(f"{name!r} (did you mean {meant[name]!r}?)" if name in meant else repr(name) for name in names)
    if listed:
        level = logging.WARNING if meant else logging.INFO
        logger.log(level, "%s: additional columns that are not read: %s", path, listed)


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


def _folders(folder: Path, left_out: list[tuple[Path, str]] | None = None) -> list[Path]:
    """Return the folders in a folder, sorted; append hidden ones to `left_out`."""
    folders = [path for path in _entries(folder) if path.is_dir()]
    if left_out is not None:
        left_out += [(path, HIDDEN) for path in folders if is_hidden_folder(path)]
    return [path for path in folders if not is_hidden_folder(path)]


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DatalistError(f"{folder}: cannot be opened ({error.strerror}). Check its permissions.") from error
