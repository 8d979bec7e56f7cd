"""MIMIC-CXR-JPG: the tables `mimic-cxr-2.0.0-{metadata,chexpert,split}.csv(.gz)` and `files/p10/p10000032/s.../*.jpg`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from monai_wscxr.data.collections.chexpert import FINDINGS
from monai_wscxr.data.collections.common import Record, find_table, findings_of, read_table

_STEM = "mimic-cxr-2.0.0"
_PARTS = {"train": "training", "validate": "training", "test": "test"}


def read_mimic(root: Path, left_out: Counter[str], uncertain: str = "exclude") -> list[Record]:
    """Read the frontal images (AP and PA) that have one of CheXpert's twelve findings or "No Finding"; the split is official.

    Args:
        root: folder with the tables and `files/`.
        left_out: counts the images left out, by reason.
        uncertain: meaning of -1, see `findings_of`.

    Raises:
        DatalistError: for missing tables or columns.
    """
    columns = ("subject_id", "study_id", "No Finding", *FINDINGS)
    studies = {
        (row["subject_id"], row["study_id"]): (findings_of(row, FINDINGS, uncertain), row["No Finding"] in ("1", "1.0"))
        for row in read_table(find_table(root, f"{_STEM}-chexpert.csv"), columns)
    }
    split = {
        row["dicom_id"]: _PARTS.get(row["split"])
        for row in read_table(find_table(root, f"{_STEM}-split.csv"), ("dicom_id", "split"))
    }
    records = []
    table = find_table(root, f"{_STEM}-metadata.csv")
    for row in read_table(table, ("dicom_id", "subject_id", "study_id", "ViewPosition")):
        if row["ViewPosition"] not in ("AP", "PA"):
            left_out["not a frontal view"] += 1
            continue
        key = row["subject_id"], row["study_id"]
        if key not in studies:
            left_out["study without labels"] += 1
            continue
        findings, nothing = studies[key]
        if findings is None:
            left_out["uncertain finding"] += 1
            continue
        if not findings and not nothing:
            left_out["neither a finding nor No Finding"] += 1
            continue
        subject, study, name = row["subject_id"], row["study_id"], row["dicom_id"]
        image = root / "files" / f"p{subject[:2]}" / f"p{subject}" / f"s{study}" / f"{name}.jpg"
        records.append(Record(image, findings, subject, split.get(name), description={"view": row["ViewPosition"]}))
    return records
