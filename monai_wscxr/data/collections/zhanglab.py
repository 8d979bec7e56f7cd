"""ZhangLab (Kermany) paediatric radiographs: the copies on Mendeley Data and Kaggle, and that of the WSCXR authors.

Mendeley: `chest_xray/{train,test}/{NORMAL,PNEUMONIA}/*.jpeg`, 1,349 and 3,883 images to train, 234 and 390 to test. Kaggle has
8 and 8 of the training images in a third part, `val`, which belongs to training here, so that both copies give the published
split; it also adds a nested second copy and `__MACOSX`. The outer copy is read. The authors' copy has
`samples/{train,test}.json`, one JSON object per line (filename, label, clsname), and `images/`.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from monai_wscxr.data.collections.common import Record
from monai_wscxr.data.datalist import DatalistError, load_datalist, patient_of
from monai_wscxr.data.listing import list_images

_PARTS = {"train": "training", "test": "test"}


def read_zhanglab(root: Path, left_out: Counter[str]) -> list[Record]:
    """Read a copy in any of the three layouts; the file name tells bacterial from viral pneumonia.

    Args:
        root: folder of the collection, or the folder that holds `chest_xray`.
        left_out: not used: all images are read.

    Raises:
        DatalistError: when the folder has none of the layouts, or `val` another one than published.
    """
    if (root / "samples" / "train.json").is_file():
        return _read_samples(root)
    for folder in (root, root / "chest_xray", root / "chest_xray" / "chest_xray"):
        if (folder / "train").is_dir() and (folder / "test").is_dir():
            datalist = load_datalist(folder)
            return [
                Record(Path(item["image"]), (item["class"],) if item["label"] else (), item["patient"], part)
                for part, items in datalist.items()
                for item in items
            ] + _read_validation(folder / "val")
    raise DatalistError(f"{root} holds neither chest_xray/train and chest_xray/test nor samples/train.json and images/")


def _read_validation(folder: Path) -> list[Record]:
    """Read the validation part, where there is one, as training images."""
    records = []
    for path in list_images([folder]).images if folder.is_dir() else ():
        kind = path.relative_to(folder).parts[0].lower()
        if kind not in ("normal", "pneumonia"):
            raise DatalistError(f"{path}: val must hold the folders NORMAL and PNEUMONIA, as it was published")
        findings = () if kind == "normal" else (_class(path.name, ""),)
        records.append(Record(path, findings, patient_of(path.name) or str(path), "training"))
    return records


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
