"""Opening an archive by its folder or address."""

from __future__ import annotations

from pathlib import Path

from monai_wscxr.errors import InputError
from monai_wscxr.label.archive.folder import FolderStudies
from monai_wscxr.label.archive.studies import Studies

MODALITIES = ("DX", "CR")


def is_address(studies: str) -> bool:
    """Tell whether studies are on a DICOMweb server."""
    return studies.startswith(("http://", "https://"))


def open_studies(studies: str, work: str | None = None, modalities: str | None = None) -> tuple[Studies, Path]:
    """Open an archive; return it with its work folder.

    Args:
        studies: folder of radiographs, or address of a DICOMweb server.
        work: folder for labels, models and results; None takes `.wscxr` in the studies folder.
        modalities: modalities to list from a DICOMweb server, separated by commas; None takes DX and CR.

    Raises:
        InputError: when the studies cannot be opened, or a DICOMweb server comes without a work folder.
    """
    if not is_address(studies):
        kept = Path(work) if work else Path(studies) / ".wscxr"
        return FolderStudies(studies, kept), kept
    if not work:
        raise InputError("studies on a DICOMweb server need a folder for models and copies of images: give --work DIR")
    from monai_wscxr.label.archive.dicomweb import DicomWebStudies

    wanted = tuple(m.strip().upper() for m in modalities.split(",")) if modalities else MODALITIES
    return DicomWebStudies(studies, work, wanted), Path(work)
