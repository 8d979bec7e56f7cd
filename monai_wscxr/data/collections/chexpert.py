"""CheXpert, full or small version: `train.csv`, `valid.csv` and their images."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from monai_wscxr.data.collections.common import Record, findings_of, read_table
from monai_wscxr.data.datalist import DatalistError

# the 14 observations except "No Finding" and "Support Devices", which is not a disease
FINDINGS = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
)
_PATIENT = re.compile(r"(patient\d+)/")


def read_chexpert(root: Path, left_out: Counter[str], uncertain: str = "exclude") -> list[Record]:
    """Read the frontal images that have one of the twelve findings, or "No Finding" and none of them.

    Patients are assigned to training or test at random, those of the 234 expert-labelled images in `valid.csv` included.

    Args:
        root: folder with `train.csv`.
        left_out: counts the images left out, by reason.
        uncertain: meaning of -1, see `findings_of`.

    Raises:
        DatalistError: for missing tables or columns.
    """
    records = []
    for table in ("train.csv", "valid.csv"):
        if table == "valid.csv" and not (root / table).is_file():
            continue
        columns = ("Path", "Frontal/Lateral", "No Finding", *FINDINGS)
        for row in read_table(root / table, columns):
            if row["Frontal/Lateral"] != "Frontal":
                left_out["lateral view"] += 1
                continue
            findings = findings_of(row, FINDINGS, uncertain)
            if findings is None:
                left_out["uncertain finding"] += 1
                continue
            if not findings and row["No Finding"] not in ("1", "1.0"):
                left_out["neither a finding nor No Finding"] += 1
                continue
            patient = _PATIENT.search(row["Path"])
            if patient is None:
                raise DatalistError(f"{root / table}: {row['Path']!r} names no patient; expected .../patientNNNNN/...")
            said = {"sex": row.get("Sex", ""), "age": row.get("Age", ""), "view": row.get("AP/PA", "")}
            records.append(Record(_locate(root, row["Path"]), findings, patient.group(1), description=said))
    return records


def _locate(root: Path, name: str) -> Path:
    """Return the file of a path in the table, which starts with the collection's name (`CheXpert-v1.0-small/train/...`)."""
    inside = Path(*Path(name).parts[1:])
    return root / inside if (root / inside).exists() or not (root.parent / name).exists() else root.parent / name
