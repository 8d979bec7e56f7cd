"""What an evaluation reports by: findings, sex, age band, view, site and device of images.

A datalist says them in the columns `columns.DESCRIPTIONS`; for sex, age, view and device the header of a DICOM file is asked
where the datalist says nothing. What neither says is "unknown", a group of its own.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from monai_wscxr.data.radiograph.base import quiet
from monai_wscxr.data.radiograph.dicom import acquisition
from monai_wscxr.data.radiograph.head import read_head

UNKNOWN = "unknown"
GROUPINGS = ("sex", "age", "view", "site", "device")
"""By what images are grouped, in the order of reports."""
AGE_BANDS = ("0-17", "18-39", "40-64", "65+")
"""Bands of the age in whole years."""

_SEXES = {"m": "male", "male": "male", "f": "female", "female": "female", "o": "other", "other": "other"}
_AGE = re.compile(r"(\d{1,3})(?:\.\d+)?([YMWD]?)", re.IGNORECASE)
_YEARS = {"": 1.0, "Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
_OLDEST = 120
_HEADER = ("Manufacturer", "ManufacturerModelName", "PatientSex", "PatientAge", "ViewPosition")
_UNSAID = frozenset(("", "unknown", "n/a", "na", "nan", "none", "null", "-", "?"))
_NO_FINDING = frozenset(("no finding", "no findings", "normal"))
_THREADS = 8


def findings_of_item(item: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the findings of an abnormal image: those of the datalist, else its class; "unknown" where that says nothing."""
    found = [name for name in item.get("findings", ()) if name.lower() not in _NO_FINDING | _UNSAID]
    if found:
        return tuple(dict.fromkeys(found))
    name = str(item["class"])
    return (UNKNOWN,) if name == "abnormal" else (name,)


def groups_of_items(items: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the group of each item, by the names of `GROUPINGS`.

    Args:
        items: datalist items; `file` or `image` is the path, of which DICOM headers are read.
    """
    files = [str(item.get("file") or item["image"]) for item in items]
    asked = [any(name not in item for name in ("sex", "age", "view", "device")) for item in items]
    with quiet, ThreadPoolExecutor(_THREADS) as pool:
        headers = list(pool.map(lambda pair: _header(pair[0]) if pair[1] else {}, zip(files, asked, strict=True)))
    said = [{**header, **item} for header, item in zip(headers, items, strict=True)]
    rules = {"sex": _sex, "age": age_band, "view": _view, "site": _text, "device": _text}
    return {name: [rule(str(one.get(name, ""))) for one in said] for name, rule in rules.items()}


def age_band(text: str) -> str:
    """Return the band of an age: a number of years, or as in DICOM ("045Y", "006M"); "unknown" for anything else."""
    match = _AGE.fullmatch(text.strip())
    if match is None:
        return UNKNOWN
    years = float(match.group(1)) * _YEARS[match.group(2).upper()]
    if years > _OLDEST:
        return UNKNOWN
    return next(band for band, end in zip(AGE_BANDS, (18, 40, 65, _OLDEST + 1), strict=True) if years < end)


def _sex(text: str) -> str:
    return _SEXES.get(text.strip().lower(), UNKNOWN)


def _view(text: str) -> str:
    return _text(text) if _text(text) == UNKNOWN else text.strip().upper()


def _text(text: str) -> str:
    plain = " ".join(text.split())
    return UNKNOWN if plain.lower() in _UNSAID else plain


def _header(file: str) -> dict[str, str]:
    """Return sex, age, view and device as the header of a DICOM file says; empty for other files."""
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):  # opening a pipe would wait for its writer
            return {}
        header = read_head(file, _HEADER)
        if header is None:
            return {}
        found = {name: value for name, value in acquisition(header).items() if name in GROUPINGS}
        sex, age = str(header.get("PatientSex") or ""), str(header.get("PatientAge") or "")
        return {**found, **({"sex": sex} if sex else {}), **({"age": age} if age else {})}
    except Exception:  # a damaged header fails in many ways; the image itself was read
        return {}
