"""NIfTI files to radiographs.

Intensity: unscaled uint8 values are divided by 255; all other values pass slope, intercept and the percentile window.

Orientation: an array [x, y] (all other axes of length one) becomes [row = y, column = x] in storage order, first y on top.
Signs of the affine are ignored in this plane on purpose: nibabel and MONAI write +x +y and ITK writes -x -y for the same
image. Where the affine puts one of the two axes along the body, as in a projection computed from a CT volume, it is
followed: the head is on top and the patient's right is on the left of the image (in a lateral view: anterior on the left).

A header without a form matrix (sform and qform code 0, or a matrix that is no matrix) does not say which way the rows run, and
writers differ: dcm2niix starts at the bottom, nibabel and MONAI pass on an array whose first row is on top. Such a file is
refused as "orientation_unknown"; where that is allowed, the first row is on top.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Collection
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np

from monai_wscxr.data.radiograph.base import (
    Radiograph,
    RadiographError,
    check_bytes,
    check_finite,
    check_size,
    percentile_window,
)
from monai_wscxr.data.radiograph.bits import check_byte_order, check_sign


def is_nifti(head: bytes) -> bool:
    """Tell whether the first bytes of an unpacked file are a NIfTI-1 or NIfTI-2 header of a single file (not .hdr and .img)."""
    return head[344:348] == b"n+1\0" or head[4:8] == b"n+2\0"


def read_nifti(path: str | os.PathLike[str], max_pixels: int, allow: Collection[str] = ()) -> Radiograph:
    """Read a NIfTI file, plain or compressed by gzip.

    Args:
        path: of the file.
        max_pixels: largest number of pixels, checked before reading them.
        allow: names of gates that are not applied.

    Raises:
        RadiographError: when the header or the values rule the image out.
        Exception: any error of nibabel or gzip, for a damaged file.
    """
    check_bytes(path, max_pixels)
    with open(path, "rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    opener: Any = gzip.open if packed else open
    with opener(path, "rb") as file:
        header_class: Any = nib.Nifti1Header if _is_nifti1(file) else nib.Nifti2Header
        image_class: Any = nib.Nifti1Image if header_class is nib.Nifti1Header else nib.Nifti2Image
        header = header_class.from_fileobj(file)
        axes = _image_axes(header, max_pixels)
        end = int(header["vox_offset"]) + int(np.prod(header.get_data_shape())) * header.get_data_dtype().itemsize
        if not packed and end > os.path.getsize(path):
            message = f"the header claims {end} bytes, the file has {os.path.getsize(path)}. Copy it again."
            raise RadiographError("unreadable", message)
        codes = _axis_codes(header, axes)
        if codes is None and "orientation_unknown" not in allow:
            raise RadiographError(
                "orientation_unknown",
                "the header has no usable form matrix (sform or qform), so it does not say whether the first row is on top or "
                "at the bottom. Convert it again with a form matrix or as PNG or DICOM, or allow orientation_unknown if the "
                "first row is on top.",
            )
        file.seek(0)
        image = image_class.from_stream(file)
        values = np.asarray(image.dataobj)
    values = _upright(values.reshape([values.shape[axis] for axis in axes]), codes or (None, None))
    if values.dtype.kind in "iu":
        check_byte_order(values)
        check_sign(values, 8 * values.dtype.itemsize)
    if values.dtype == np.uint8:  # a slope other than 1 or an intercept other than 0 makes it floating point
        grey, intensity = values.astype(np.float32) / np.float32(255), "full_range_8"
    else:
        check_finite(values)
        grey, intensity = percentile_window(values, values), "percentile"
    return Radiograph(np.ascontiguousarray(grey), "nifti", "as_stored", intensity)


def _is_nifti1(file: BinaryIO) -> bool:
    head = file.read(348)
    file.seek(0)
    return head[344:348] == b"n+1\0"


def _image_axes(header: Any, max_pixels: int) -> tuple[int, int]:
    """Check the header and return the two axes of the image in ascending order."""
    shape = tuple(int(n) for n in header.get_data_shape())
    text = " x ".join(map(str, shape)) or "no axes"
    dtype = header.get_data_dtype()
    long_axes = [axis for axis, length in enumerate(shape) if length != 1]
    if len(long_axes) > 2 or len(shape) < 2 or dtype.kind not in "iuf":
        raise RadiographError(
            "not_a_projection",
            f"this NIfTI holds {text} values of type {dtype}; allowed is one grey image: two axes, all others of "
            "length one, integer or floating point. Export the projection, not the volume.",
        )
    pixels = 1
    for length in shape:
        pixels *= length
    check_size(pixels, text, max_pixels)
    spare = [axis for axis in range(len(shape)) if axis not in long_axes]
    first, second = sorted((long_axes + spare)[:2])
    return first, second


def _axis_codes(header: Any, axes: tuple[int, int]) -> tuple[str | None, str | None] | None:
    """Return the directions to which the two image axes run (R, L, A, P, S, I), or None without a usable form matrix.

    Only the two columns of the image axes have to be usable: a two-dimensional image may have zeros in the third.
    """
    if int(header["sform_code"]) <= 0 and int(header["qform_code"]) <= 0:
        return None
    affine = np.array(header.get_best_affine(), dtype=np.float64)
    columns = [axis for axis in axes if axis < 3]
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine[:3, columns]) < len(columns):
        return None
    for axis in set(range(3)) - set(columns):
        if np.linalg.matrix_rank(affine[:3, :3]) < 3:  # complete the matrix at right angles to the image
            affine[:3, axis] = np.cross(affine[:3, axis - 1], affine[:3, axis - 2])
    if np.linalg.matrix_rank(affine) < 4:
        return None
    codes = nib.orientations.aff2axcodes(affine)
    first, second = (codes[axis] if axis < 3 else None for axis in axes)
    return first, second


def _upright(values: np.ndarray, codes: tuple[str | None, str | None]) -> np.ndarray:
    """Turn an array [first axis, second axis] into [row, column] by the rule in the module's docstring."""
    first, second = codes
    if first in ("S", "I"):
        values, first, second = values.T, second, first
    if second not in ("S", "I"):
        return values.T
    image = values.T
    if second == "S":
        image = image[::-1]
    if first in ("R", "A"):  # the axis runs towards the patient's right or front, which belongs on the left
        image = image[:, ::-1]
    return image
