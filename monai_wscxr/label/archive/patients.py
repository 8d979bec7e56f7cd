"""Pseudonyms that tell whether images are of the same patient, without showing a patient's name or number."""

from __future__ import annotations

from pathlib import Path

import pydicom

from monai_wscxr.data.patients import is_placeholder, patient_digest
from monai_wscxr.data.radiograph.base import quiet
from monai_wscxr.data.radiograph.formats import sniff_format


def hashed_patient(number: str) -> str | None:
    """Return a pseudonym for a PatientID in any spelling, see `patient_key`; None for an empty one or a placeholder."""
    return None if is_placeholder(number) else patient_digest(number)  # as known normal images are named


def dicom_patient(path: Path) -> str | None:
    """Return the pseudonym of a DICOM file's patient; None for other formats and without a PatientID."""
    try:
        if sniff_format(path) != "dicom":
            return None
        with quiet:
            header = pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=["PatientID"])
        return hashed_patient(str(header.get("PatientID") or ""))
    except Exception:  # a damaged header fails in many ways, and none of them names the patient
        return None
