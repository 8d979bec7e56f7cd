"""DICOM files to radiographs.

Values pass these steps: stored values (`decoders`), bits above HighBit dropped, modality LUT or rescale, VOI LUT or window or
percentiles to [0, 1] (`grey`), inversion where the header asks for it, padding set to 0.

Polarity: MONOCHROME1 is always inverted, MONOCHROME2 only when PresentationLUTShape is INVERSE. MONOCHROME1 normally comes
together with INVERSE, and both mean the same single inversion. A Presentation LUT Sequence is not applied.

Modality: a file that names one must name one of `PROJECTION_MODALITIES`. A slice of a CT or MR volume, a sonogram or a
photograph is a single grey frame as well, and only this entry distinguishes it from a radiograph. Mammograms and dental
X-rays are refused too. A file without a modality, or with an empty one, is read.

Messages quote only numbers and defined terms of the standard from the header: any other text may be patient data.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from monai_wscxr.data.radiograph import gates
from monai_wscxr.data.radiograph.base import (
    Radiograph,
    RadiographError,
    check_bytes,
    check_size,
    no_contrast,
)
from monai_wscxr.data.radiograph.bits import used_range
from monai_wscxr.data.radiograph.decoders import check_deflated, decode
from monai_wscxr.data.radiograph.entries import whole_number
from monai_wscxr.data.radiograph.grey import grey_values

PROJECTION_MODALITIES = (
    "CR",  # computed radiography
    "DX",  # digital radiography
    "DR",  # not in the standard, but written by some for DX
    "RG",  # digitised film
    "RF",  # fluoroscopy
    "XA",  # angiography; such units take plain exposures too
    "OT",  # other: what Secondary Capture and converters write
)
"""Values of Modality (0008,0060) that may be a chest radiograph."""

_OTHER_MODALITIES = frozenset(
    ("CT", "MR", "PT", "NM", "US", "MG", "IO", "PX", "XC", "SC", "ES", "GM", "SM", "OP", "OPT")
)
_PHOTOMETRIC = {"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR", "MONOCHROME1", "MONOCHROME2"}

_VIEWS = frozenset(("AP", "PA", "LL", "RL", "RLD", "LLD", "RLO", "LLO"))  # defined terms of View Position
_LONGEST_DEVICE = 128  # characters

_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")

_HEADER_TAGS = (
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "NumberOfFrames",
    "PhotometricInterpretation",
    "BitsAllocated",
    "Modality",
    *gates.HEADER_TAGS,
)


def has_preamble(head: bytes) -> bool:
    """Tell whether the first bytes of a file are those of DICOM part 10: 128 bytes of any content, then "DICM"."""
    return head[128:132] == b"DICM"


def is_bare_dicom(head: bytes) -> bool:
    """Tell whether a file without preamble starts like a DICOM data set: group 2 or 8 and a known VR or a short length."""
    if len(head) < 8 or head[:2] not in (b"\x08\x00", b"\x02\x00", b"\x00\x08"):
        return False
    explicit = head[4:6] in (b"UL", b"CS", b"UI", b"OB", b"DA", b"TM", b"LO", b"SH", b"US", b"SQ")
    return explicit or (head[0] != 0 and int.from_bytes(head[4:8], "little") <= 64)


def read_dicom(path: str | os.PathLike[str], max_pixels: int, allow: Collection[str] = ()) -> Radiograph:
    """Read a DICOM file.

    Args:
        path: of the file.
        max_pixels: largest number of pixels, checked before decoding.
        allow: names of gates that are not applied.

    Raises:
        RadiographError: when the header or the values rule the image out.
        Exception: any error of pydicom or a decoder, for a damaged file.
    """
    check_bytes(path, max_pixels)
    # Parsed from memory: reading from a file, pydicom would allocate the 4 GiB that a damaged element may claim.
    content = Path(path).read_bytes()
    check_deflated(content, max_pixels)
    header = pydicom.dcmread(io.BytesIO(content), force=True, stop_before_pixels=True, specific_tags=list(_HEADER_TAGS))
    _check_header(header, max_pixels)
    gates.check_header(header, allow)
    ds = pydicom.dcmread(io.BytesIO(content), force=True)
    del content
    if "Rows" not in ds:  # pydicom gives up everything that it has read when a file ends inside an element
        raise RadiographError("unreadable", "the file ends inside the pixels: it is truncated. Copy it again.")
    _check_header(ds, max_pixels)  # an entry may occur twice, and in the whole file the last one counts
    _check_pixels(ds)
    stored = decode(ds)
    ds.PixelData = None  # frees half of the memory
    image, intensity, padding = grey_values(ds, stored)
    inverted = ds.PhotometricInterpretation == "MONOCHROME1" or ds.get("PresentationLUTShape") == "INVERSE"
    if inverted:
        image = np.float32(1) - image
    shown = image if padding is None else image[~padding]
    if shown.min() == shown.max():  # a window outside all values; padding must not count as contrast
        raise no_contrast()
    if padding is not None:
        image[padding] = 0
    polarity = "inverted" if inverted else "as_stored"
    return Radiograph(image, "dicom", polarity, intensity, padding, acquisition(ds))


def acquisition(header: Any) -> dict[str, str]:
    """Return when and how an image was taken, see `Radiograph.acquired`; what a header does not tell properly is left out."""
    found = {}
    for name in ("AcquisitionDate", "ContentDate", "SeriesDate", "StudyDate"):
        with contextlib.suppress(ValueError, TypeError):
            year, week, _ = datetime.datetime.strptime(str(header.get(name)), "%Y%m%d").isocalendar()
            found["week"] = f"{year:04d}-W{week:02d}"
            break
    words = [str(header.get(name) or "") for name in ("Manufacturer", "ManufacturerModelName")]
    device = " ".join(" ".join(words).split())
    if device and len(device) <= _LONGEST_DEVICE and device.isprintable():
        found["device"] = device
    view = str(header.get("ViewPosition") or "").strip().upper()
    if view in _VIEWS:
        found["view"] = view
    return found


def _check_header(header: Any, max_pixels: int) -> None:
    """Check by the header that the image is a single grey projection and not too large."""
    if "Rows" not in header and "Columns" not in header:
        message = "this DICOM object holds no image (a report, a directory, ...). Give the image itself."
        raise RadiographError("not_a_projection", message)
    modality = str(header.get("Modality") or "").strip()
    if modality and modality.upper() not in PROJECTION_MODALITIES:
        raise RadiographError(
            "not_a_projection",
            f"the modality of this DICOM image is {_quoted(modality, _OTHER_MODALITIES)}; allowed are "
            f"{', '.join(PROJECTION_MODALITIES)} or none. Give a radiograph, or correct the entry if this is one.",
        )
    missing = [n for n in ("Rows", "Columns", "PhotometricInterpretation", "BitsAllocated") if header.get(n) is None]
    if missing:
        message = f"the DICOM header lacks {', '.join(missing)}, so its pixels cannot be decoded. Export it again."
        raise RadiographError("unreadable", message)
    rows, columns = whole_number(header, "Rows", 0), whole_number(header, "Columns", 0)
    samples = whole_number(header, "SamplesPerPixel", 1) or 1
    frames = whole_number(header, "NumberOfFrames", 1) or 1
    photometric = str(header.PhotometricInterpretation)
    if samples != 1 or frames != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise RadiographError(
            "not_a_projection",
            f"this DICOM image has {frames} frame(s), {samples} sample(s) per pixel and photometric interpretation "
            f"{_quoted(photometric, _PHOTOMETRIC)}; allowed is one frame of MONOCHROME1 or MONOCHROME2. "
            "Export a single grey projection.",
        )
    check_size(rows * columns * samples * frames, f"{columns} x {rows}", max_pixels)


def _check_pixels(ds: Any) -> None:
    """Check that there are pixels and that the header describes their bits."""
    found = [name for name in _PIXELS if name in ds]
    if not found:
        raise RadiographError(
            "unreadable",
            "the file has the header of an image but no pixels: PixelData is missing. Export or retrieve it again with pixels.",
        )
    if not ds[found[0]].value:
        raise RadiographError("unreadable", f"{found[0]} has zero bytes: the pixels are missing. Export it again.")
    if found[0] != "PixelData":
        return
    missing = [name for name in ("BitsStored", "PixelRepresentation") if ds.get(name) is None]
    if missing:
        message = f"the DICOM header lacks {', '.join(missing)}, so its pixels cannot be decoded. Export it again."
        raise RadiographError("unreadable", message)
    used_range(ds, whole_number(ds, "BitsAllocated", 0))


def _quoted(value: str, defined: Collection[str]) -> str:
    """Return a header entry for a message: its value if it is a defined term, else "something else"."""
    return repr(value.upper()) if value.upper() in defined else "something else"
