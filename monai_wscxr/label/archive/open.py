"""Which studies a server opens, and where it keeps what it makes."""

from __future__ import annotations

from pathlib import Path

from monai_wscxr.errors import InputError
from monai_wscxr.label.archive.studies import FolderStudies, Studies

MODALITIES = ("DX", "CR")


def is_address(studies: str) -> bool:
    """Whether studies are a DICOMweb server."""
    return studies.startswith(("http://", "https://"))


def open_studies(studies: str, work: str | None = None, modalities: str | None = None) -> tuple[Studies, Path]:
    """Studies and work folder.

    Args:
        studies: folder of radiographs, or address of a DICOMweb server.
        work: folder for labels, models and results; None: `.wscxr` in the studies folder.
        modalities: of a DICOMweb server, separated by commas; None: DX and CR.

    Raises:
        InputError: when the studies cannot be opened, or a DICOMweb server comes without a work folder.
    """
    if not is_address(studies):
        kept = Path(work) if work else Path(studies) / ".wscxr"
        if not Path(studies).is_dir():
            raise InputError(f"the studies folder {studies} does not exist; make it and put radiographs there")
        return FolderStudies(studies, kept), kept
    if not work:
        raise InputError("studies on a DICOMweb server need a folder for models and copies of images: give --work DIR")
    from monai_wscxr.label.archive.dicomweb import DicomWebStudies

    wanted = tuple(m.strip().upper() for m in modalities.split(",")) if modalities else MODALITIES
    return DicomWebStudies(studies, work, wanted), Path(work)
