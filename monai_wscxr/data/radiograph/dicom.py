"""DICOM to a radiograph.

DICOM polarity. MONOCHROME1 is inverted, whatever PresentationLUTShape says; MONOCHROME2 is inverted when
PresentationLUTShape is INVERSE. MONOCHROME1 normally comes *with* INVERSE, and both mean the same single inversion. A
Presentation LUT Sequence is not applied.

Modality. A file that names one must name one of :data:`PROJECTION_MODALITIES`. A slice of a CT or MR volume, a sonogram
or a photograph is a single grey frame as well, and nothing but this entry tells it from a radiograph. Mammograms and
dental X-rays are refused too. A file without a modality, or with an empty one, is read.

Messages quote from the header only numbers and defined terms of the standard: any other text could be a patient's.
"""

from __future__ import annotations

import io
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from monai_wscxr.data.radiograph import gates as radiograph_gates
from monai_wscxr.data.radiograph.base import (
    Radiograph,
    RadiographError,
    check_bytes,
    check_finite,
    check_size,
    no_contrast,
)
from monai_wscxr.data.radiograph.decoders import check_deflated, decode
from monai_wscxr.data.radiograph.grey import grey_values

PROJECTION_MODALITIES = (
    "CR",  # computed radiography
    "DX",  # digital radiography
    "DR",  # not in the standard, but written by some for DX
    "RG",  # scanned film
    "RF",  # fluoroscopy
    "XA",  # angiography units take plain exposures too
    "OT",  # other: what Secondary Capture and converters write
)
"""Values of Modality (0008,0060) that may be a chest radiograph."""

_OTHER_MODALITIES = frozenset(
    ("CT", "MR", "PT", "NM", "US", "MG", "IO", "PX", "XC", "SC", "ES", "GM", "SM", "OP", "OPT")
)
_MEANINGS = {"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR", "MONOCHROME1", "MONOCHROME2"}

_HEADER_TAGS = [
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "NumberOfFrames",
    "PhotometricInterpretation",
    "BitsAllocated",
    "Modality",
    *radiograph_gates.HEADER_TAGS,
]


def is_bare_dicom(head: bytes) -> bool:
    """DICOM without preamble: the data set opens with group 2 or 8 and a known VR or a short length."""
    if len(head) < 8 or head[:2] not in (b"\x08\x00", b"\x02\x00", b"\x00\x08"):
        return False
    explicit = head[4:6] in (b"UL", b"CS", b"UI", b"OB", b"DA", b"TM", b"LO", b"SH", b"US", b"SQ")
    return explicit or (head[0] != 0 and int.from_bytes(head[4:8], "little") <= 64)


def read_dicom(path: Any, kind: str, max_pixels: int, allow: Collection[str] = ()) -> Radiograph:
    """Reads a file whose content is DICOM; `radiograph.read_radiograph` turns what libraries throw."""
    check_bytes(path, max_pixels)
    # From memory, where reading ends at the last byte: from a file, an element that claims 4 GiB would allocate them first.
    content = Path(path).read_bytes()
    check_deflated(path, content, max_pixels)
    header = pydicom.dcmread(io.BytesIO(content), force=True, stop_before_pixels=True, specific_tags=list(_HEADER_TAGS))
    _check_header(path, header, max_pixels)
    radiograph_gates.check_header(path, header, allow)
    ds = pydicom.dcmread(io.BytesIO(content), force=True)
    del content
    _check_header(path, ds, max_pixels)  # the whole file may hold an entry twice, and the later one wins
    stored = decode(path, ds)
    ds.PixelData = None  # half of the memory is not needed any more
    check_finite(path, stored)
    image, intensity, padding = grey_values(path, ds, stored)
    inverted = ds.PhotometricInterpretation == "MONOCHROME1" or ds.get("PresentationLUTShape") == "INVERSE"
    if inverted:
        image = np.float32(1) - image
    shown = image if padding is None else image[~padding]
    if shown.min() == shown.max():  # a window that misses all values; padding would pass for contrast
        raise no_contrast(path)
    if padding is not None:
        image[padding] = 0
    return Radiograph(image, kind, "inverted" if inverted else "as_stored", intensity, padding)


def _check_header(path: Any, header: Any, max_pixels: int) -> None:
    """Refuses what is no grey single-frame projection, or too large, by the header alone."""
    if "Rows" not in header and "Columns" not in header:
        message = "this DICOM object holds no image (a report, a directory, ...). Give the image itself."
        raise RadiographError("not_a_projection", path, message)
    modality = str(header.get("Modality") or "").strip()
    if modality and modality.upper() not in PROJECTION_MODALITIES:
        raise RadiographError(
            "not_a_projection",
            path,
            f"the modality of this DICOM image is {_quoted(modality, _OTHER_MODALITIES)}; allowed are "
            f"{', '.join(PROJECTION_MODALITIES)} or none. Give a radiograph, or correct the entry if it is one.",
        )
    missing = [n for n in ("Rows", "Columns", "PhotometricInterpretation", "BitsAllocated") if header.get(n) is None]
    if missing:
        message = f"the DICOM header lacks {', '.join(missing)}, without which pixels mean nothing. Export it again."
        raise RadiographError("unreadable", path, message)
    rows, columns = int(header.Rows), int(header.Columns)
    samples, frames = int(header.get("SamplesPerPixel") or 1), int(header.get("NumberOfFrames") or 1)
    meaning = str(header.PhotometricInterpretation)
    if samples != 1 or frames != 1 or meaning not in ("MONOCHROME1", "MONOCHROME2"):
        raise RadiographError(
            "not_a_projection",
            path,
            f"this DICOM image has {frames} frame(s), {samples} sample(s) per pixel and photometric interpretation "
            f"{_quoted(meaning, _MEANINGS)}; allowed is one frame of MONOCHROME1 or MONOCHROME2. "
            "Export a single grey projection.",
        )
    check_size(path, rows * columns * samples * frames, f"{columns} x {rows}", max_pixels)


def _quoted(value: str, defined: Collection[str]) -> str:
    """A header entry for a message: the value if it is a defined term, else words that tell nothing."""
    return repr(value.upper()) if value.upper() in defined else "something else"
