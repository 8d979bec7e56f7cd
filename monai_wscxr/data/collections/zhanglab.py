"""ZhangLab (Kermany) paediatric radiographs: the copies on Mendeley Data and Kaggle, and that of the WSCXR authors.

Mendeley: `chest_xray/{train,test}/{NORMAL,PNEUMONIA}/*.jpeg`. Kaggle adds a nested second copy, `val` and `__MACOSX`; the
outer copy is read. The authors' copy has `samples/{train,test}.json`, one JSON object per line (filename, label, clsname),
and `images/`.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from monai_wscxr.data.collections.common import Record
from monai_wscxr.data.datalist import DatalistError, load_datalist, patient_of

_PARTS = {"train": "training", "test": "test"}


def read_zhanglab(root: Path, left_out: Counter[str]) -> list[Record]:
    """Read a copy in any of the three layouts; the file name tells bacterial from viral pneumonia.

    Args:
        root: folder of the collection, or the folder that holds `chest_xray`.
        left_out: counts the images left out, by reason.

    Raises:
        DatalistError: when the folder has none of the layouts.
    """
    if (root / "samples" / "train.json").is_file():
        return _read_samples(root)
    for folder in (root, root / "chest_xray", root / "chest_xray" / "chest_xray"):
        if (folder / "train").is_dir() and (folder / "test").is_dir():
            datalist = load_datalist(folder)
            if (folder / "val").is_dir():
                left_out["in the folder val, whose patients are also in train"] += sum(
                    path.is_file() for path in (folder / "val").rglob("*.jp*g")
                )
            return [
                Record(Path(item["image"]), (item["class"],) if item["label"] else (), item["patient"], part)
                for part, items in datalist.items()
                for item in items
            ]
    raise DatalistError(f"{root} holds neither chest_xray/train and chest_xray/test nor samples/train.json and images/")


def _read_samples(root: Path) -> list[Record]:
    records = []
    for name, part in _PARTS.items():
        path = root / "samples" / f"{name}.json"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                file, label, kind = str(entry["filename"]), int(entry["label"]), str(entry.get("clsname", ""))
            except (ValueError, KeyError, TypeError) as error:
                raise DatalistError(f"{path}, line {number}: expected filename, label and clsname ({error})") from error
            findings = (_class(file, kind),) if label else ()
            records.append(Record(root / "images" / file, findings, patient_of(file) or file, part))
    return records


def _class(file: str, kind: str) -> str:
    """Return the class in the sample list, or, where that is no specific one, the class in the file name."""
    if kind and kind.lower() not in ("abnormal", "zhanglab", "pneumonia"):
        return kind.lower()
    name = Path(file).name.lower()
    return next((word for word in ("bacteria", "virus") if word in name), "pneumonia")
