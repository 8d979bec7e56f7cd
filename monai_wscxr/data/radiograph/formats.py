"""Format of a file by its content; names and extensions do not matter."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

from monai_wscxr.data.radiograph.base import RadiographError
from monai_wscxr.data.radiograph.dicom import has_preamble, is_bare_dicom
from monai_wscxr.data.radiograph.nifti import is_nifti

_HEAD_BYTES = 600
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)  # lengths of the header that follows the 14 bytes of the file header


def sniff_format(path: str | os.PathLike[str]) -> str | None:
    """Return the format of a file by its first bytes.

    Args:
        path: any file.

    Returns:
        "png", "jpeg", "tiff", "bmp", "nifti" or "dicom"; None for anything else.

    Raises:
        RadiographError: "not_found" or "empty".
        OSError, EOFError, zlib.error: when the file cannot be read, or is compressed by gzip and damaged.
    """
    if not Path(path).is_file():
        what = "this is a folder" if Path(path).is_dir() else "there is no such file"
        raise RadiographError("not_found", f"{what}. Give the path of one image file.")
    with open(path, "rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        raise RadiographError("empty", "the file has zero bytes. Copy or export it again.")
    if has_preamble(head):
        return "dicom"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    if head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "bmp"
    if head.startswith(b"\x1f\x8b"):
        with gzip.open(path) as unpacked:
            head = unpacked.read(_HEAD_BYTES)
        return "nifti" if is_nifti(head) else None
    if is_nifti(head):
        return "nifti"
    return "dicom" if is_bare_dicom(head) else None
