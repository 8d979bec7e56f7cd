"""Reading of one radiograph in any format.

Training, inference, reports and viewers all read through `read_radiograph`, so a file gives the same numbers everywhere,
no matter which other readers are installed. The content of a file decides its format. Sizes are taken from the header and
checked before any pixel is decoded.

The modules of this package describe how stored values become grey values in [0, 1]: `raster` (PNG, JPEG, TIFF, BMP), `nifti`,
and for DICOM `dicom` (header, modality, polarity), `decoders` and `codestream` (compression) and `grey` (lookup tables,
windows, padding). `whole` refuses pictures of which a part is missing, and `bits` values that contradict their header. `gates`
refuses images that could be read but are not frontal chest radiographs. `read_radiograph` checks every finished picture once
more.

Reading one file adds at most `base.MEMORY_LIMIT` bytes to the memory of the process.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection

from monai_wscxr.data.radiograph.base import MAX_PIXELS, Radiograph, RadiographError, check_picture, quiet
from monai_wscxr.data.radiograph.dicom import read_dicom
from monai_wscxr.data.radiograph.formats import sniff_format
from monai_wscxr.data.radiograph.gates import check_allowed, check_polarity, check_shape
from monai_wscxr.data.radiograph.nifti import read_nifti
from monai_wscxr.data.radiograph.raster import read_raster

READER_CHAIN = "3"
"""Version of this package's chain from file to grey values. It changes whenever a file may give other numbers; trained models
record it."""


def read_radiograph(
    path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS, allow: Collection[str] = ()
) -> Radiograph:
    """Read one radiograph.

    Args:
        path: a PNG, JPEG, TIFF, BMP, NIfTI or DICOM file with any name.
        max_pixels: largest number of pixels that a header may claim, checked before decoding. Pillow's own limit for
            decompression bombs applies as well.
        allow: names of `GATES` that are not applied.

    Returns:
        The image, float32 [H, W] in [0, 1], with its format, polarity and intensity mapping.

    Raises:
        RadiographError: when the file cannot be used; `code` is the reason. The message names no path: the caller adds it
            where the error is shown. An error of a decoding library is its `__cause__`.
        ValueError: when `allow` holds a name that is not a gate.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from PIL import Image
        >>> file = Path(tempfile.mkdtemp()) / "ramp.png"
        >>> Image.fromarray(np.linspace(0, 255, 64 * 64).reshape(64, 64).astype(np.uint8)).save(file)
        >>> radiograph = read_radiograph(file)
        >>> radiograph.image.shape, radiograph.image.dtype, float(radiograph.image.max())
        ((64, 64), dtype('float32'), 1.0)
    """
    allow = check_allowed(allow)
    try:
        with quiet:
            result = _read(path, max_pixels, allow)
    except RadiographError:
        raise
    except MemoryError as error:
        raise RadiographError(
            "too_large", "decoding needs more memory than there is. Export it smaller or free memory."
        ) from error
    except Exception as error:  # decoding libraries raise errors of every type, and their text may quote the header
        raise RadiographError(
            "unreadable",
            f"decoding failed with {type(error).__name__}: the file is truncated, damaged or violates its standard. "
            "Export or copy it again.",
        ) from error
    check_picture(result.image, max_pixels)
    check_shape(result.image, allow)
    check_polarity(result.image, allow)
    return result


def _read(path: str | os.PathLike[str], max_pixels: int, allow: Collection[str]) -> Radiograph:
    kind = sniff_format(path)
    if kind is None:
        allowed = "PNG, JPEG, TIFF, BMP, NIfTI (.nii, .nii.gz) and single-frame grey DICOM"
        raise RadiographError("unknown_format", f"the content is in none of the known formats. Allowed: {allowed}.")
    if kind == "dicom":
        return read_dicom(path, max_pixels, allow)
    if kind == "nifti":
        return read_nifti(path, max_pixels, allow)
    return read_raster(path, kind, max_pixels)


def file_digest(path: str | os.PathLike[str]) -> str:
    """Return the BLAKE2b-128 of a file's bytes as 32 hexadecimal digits, read 1 MiB at a time.

    Raises:
        OSError: when the file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
