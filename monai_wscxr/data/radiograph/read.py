"""The one loader: a PNG, JPEG, NIfTI or DICOM file becomes a float32 picture in [0, 1] with dark air.

Training, inference, reports and viewers read through :func:`read_radiograph`, so that a file gives the same numbers
everywhere, whichever other readers are installed. The content of a file decides its format, never its name. Sizes are
taken from the header and checked before any pixel is decoded.

How stored values become grey values in [0, 1]:

* PNG, JPEG: 8 bit divided by 255, 16 bit grey by 65535, 1 bit as it is. Colour, CMYK and palette pictures become
  8-bit ITU-R 601 luminance (a 16-bit *colour* PNG keeps its upper 8 bits); an alpha channel is ignored, colour profiles
  too. EXIF orientation is applied. These formats carry no polarity: the picture is taken as air dark.
* NIfTI: unscaled ``uint8`` divided by 255; everything else after slope and intercept through the percentile window.
* DICOM: bits above HighBit dropped -> modality LUT or rescale -> first VOI LUT, or first window with its function (LINEAR,
  LINEAR_EXACT, SIGMOID), or the percentile window -> [0, 1] -> inversion where the header asks for it -> padding set to 0.

The percentile window sends the 0.5 and 99.5 percentile to 0 and 1 and clips outside; where the two coincide it takes
the smallest and largest value. Padding pixels do not count.

The top row of a NIfTI picture: see `radiograph_nifti`. Of a DICOM file polarity and modality: `radiograph_dicom`, decoders:
`radiograph_decoders`, lookup tables, windows and padding: `radiograph_grey`. What is refused although it can be read:
`radiograph_gates`.

Reading one file takes at most `MEMORY_LIMIT` bytes beyond what the process holds.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import threading
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile

from monai_wscxr.data.radiograph.base import (
    GATES,
    MAX_PIXELS,
    MEMORY_LIMIT,
    REASON_CODES,
    Radiograph,
    RadiographError,
    check_bytes,
    check_size,
    no_contrast,
    quiet,
)
from monai_wscxr.data.radiograph.dicom import is_bare_dicom, read_dicom
from monai_wscxr.data.radiograph.gates import check_allowed, check_polarity
from monai_wscxr.data.radiograph.nifti import is_nifti, read_nifti

__all__ = [
    "GATES",
    "MAX_PIXELS",
    "MEMORY_LIMIT",
    "READER_CHAIN",
    "REASON_CODES",
    "Radiograph",
    "RadiographError",
    "file_digest",
    "quiet",
    "read_radiograph",
    "sniff_format",
]

READER_CHAIN = "3"
"""Version of everything above and of the `radiograph_*` modules. It changes whenever a file may give other
numbers, and artefacts record it."""

_SNIFF_BYTES = 600
_ALLOWED = "Allowed: PNG, JPEG, NIfTI (.nii, .nii.gz) and single-frame grey DICOM."
_truncation_lock = threading.Lock()


def read_radiograph(
    path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS, allow: Collection[str] = ()
) -> Radiograph:
    """Reads one radiograph.

    Args:
        path: a PNG, JPEG, NIfTI or DICOM file, under any name.
        max_pixels: refuse pictures whose header claims more than this, before decoding. Pillow's own limit for
            decompression bombs stays in force as well.
        allow: gates (see `GATES`) that stay open.

    Returns:
        The picture, float32 ``[H, W]`` in [0, 1], with its format, polarity and intensity chain.

    Raises:
        RadiographError: with a reason code, whatever is wrong with the file. An error of a decoding library is its
            ``__cause__``.
        ValueError: when ``allow`` names something that is no gate.
    """
    allow = check_allowed(allow)
    try:
        with quiet:
            result = _read(path, max_pixels, allow)
    except RadiographError:
        raise
    except MemoryError as error:
        raise RadiographError(
            "too_large", path, "decoding needs more memory than there is. Export it smaller or free memory."
        ) from error
    except Exception as error:  # whatever a decoding library throws; its text may quote the header, so it stays out
        raise RadiographError(
            "unreadable",
            path,
            f"decoding failed with {type(error).__name__}: truncated, damaged or not to the standard. "
            "Export or copy the file again.",
        ) from error
    if float(result.image.min()) == float(result.image.max()):
        raise no_contrast(path)
    check_polarity(path, result.image, allow)
    return result


def _read(path: Any, max_pixels: int, allow: Collection[str]) -> Radiograph:
    kind = sniff_format(path)
    if kind is None:
        raise RadiographError("unknown_format", path, f"the content is none of the known formats. {_ALLOWED}")
    if kind == "dicom":
        return read_dicom(path, kind, max_pixels, allow)
    return (read_nifti if kind == "nifti" else _read_pillow)(path, kind, max_pixels)


def sniff_format(path: str | os.PathLike[str]) -> str | None:
    """Names the format of a file by its content.

    Args:
        path: any file.

    Returns:
        ``png``, ``jpeg``, ``nifti`` or ``dicom``; None for anything else.

    Raises:
        RadiographError: ``not_found`` or ``empty``.
        OSError: when the file cannot be opened.
    """
    if not Path(path).is_file():
        what = "this is a folder" if Path(path).is_dir() else "there is no such file"
        raise RadiographError("not_found", path, f"{what}. Give the path of one image file.")
    with open(path, "rb") as file:
        head = file.read(_SNIFF_BYTES)
    if not head:
        raise RadiographError("empty", path, "the file has zero bytes. Copy or export it again.")
    if head[128:132] == b"DICM":
        return "dicom"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(b"\x1f\x8b"):
        with gzip.open(path) as file:
            head = file.read(_SNIFF_BYTES)
        return "nifti" if is_nifti(head) else None
    if is_nifti(head):
        return "nifti"
    return "dicom" if is_bare_dicom(head) else None


def file_digest(path: str | os.PathLike[str]) -> str:
    """BLAKE2b-128 of the bytes of a file, as 32 hexadecimal digits; reads 1 MiB at a time.

    Raises:
        OSError: when the file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


# ---- PNG and JPEG


def _read_pillow(path: Any, kind: str, max_pixels: int) -> Radiograph:
    check_bytes(path, max_pixels)
    try:
        opened = Image.open(path, formats=("PNG", "JPEG"))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        message = "the header claims more pixels than Pillow's limit for decompression bombs. Export it smaller."
        raise RadiographError("too_large", path, message) from error
    with opened as image:
        width, height = image.size
        check_size(path, width * height, f"{width} x {height}", max_pixels)
        if kind == "png" and getattr(image, "n_frames", 1) > 1:
            raise RadiographError("not_a_projection", path, "this PNG is an animation. Export one still picture.")
        with _whole_files_only():
            image.load()
        values, intensity = _grey(image)
        values = _turn(values, image.getexif().get(0x0112, 1))
    return Radiograph(np.ascontiguousarray(values, dtype=np.float32), kind, "as_stored", intensity)


@contextlib.contextmanager
def _whole_files_only() -> Iterator[None]:
    """Keeps Pillow from filling the missing part of a truncated file with grey, even if other code asked for it."""
    if not ImageFile.LOAD_TRUNCATED_IMAGES:
        yield
        return
    with _truncation_lock:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = True


def _grey(image: Image.Image) -> tuple[np.ndarray, str]:
    """Grey values ``[H, W]`` in [0, 1] and the name of the chain."""
    if image.mode == "1":
        return np.asarray(image, dtype=np.float32), "full_range_1"
    if image.mode.startswith("I"):  # Pillow's modes for 16-bit grey: I;16 and, in older versions, I
        return np.asarray(image).astype(np.float32) / np.float32(65535), "full_range_16"
    if image.mode != "L":
        image = image.convert("RGB").convert("L")
    return np.asarray(image, dtype=np.float32) / np.float32(255), "full_range_8"


def _turn(values: np.ndarray, orientation: int) -> np.ndarray:
    """Applies EXIF orientation 1..8 (TIFF 6.0, tag 274); any other value means upright."""
    if orientation in (5, 6, 7, 8):
        values = values.T
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values
