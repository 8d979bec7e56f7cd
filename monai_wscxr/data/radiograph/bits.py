"""Checks of stored integers against what their header says of bits, sign and byte order.

A header that names too few bits, the other sign or the other byte order still gives a picture: the values wrap, and edges
appear where grey values pass a power of two. Bits outside the named ones are counted. A wrong sign or byte order is recognised
by the roughness of the picture, its mean step from one pixel to the next: read in the right way neighbours are alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from monai_wscxr.data.radiograph.base import RadiographError
from monai_wscxr.data.radiograph.entries import whole_number

SIGN_RATIO = 1.05
"""Roughness, relative to that with the other sign, above which a sign counts as wrong: right ones of 800 radiographs of NIH
and ZhangLab reach 0.70, wrong ones begin at 1.06."""

SWAP_RATIO, SWAP_ROUGHNESS = 3.0, 0.2
"""Roughness, relative to that with swapped bytes and to the standard deviation, above which a byte order counts as wrong. On
700 of them in 12 and 16 bits right ones reach 0.13 and 0.1, wrong ones begin at 7.8 and 0.29."""

_SMALLEST_SIDE = 64  # pixels; smaller pictures are too rough to judge
_MOST_ROWS = 256  # rows that are compared


def used_range(ds: Any, width: int) -> tuple[int, int]:
    """Return the lowest used bit and the number of used bits of a DICOM header.

    An impossible HighBit (missing, below BitsStored - 1, above the highest bit) counts as BitsStored - 1.

    Args:
        ds: data set.
        width: bits of a stored value in memory.

    Raises:
        RadiographError: "bits_disagree" when BitsStored is not from 1 to BitsAllocated, BitsAllocated is neither 1 nor whole
            bytes, or PixelRepresentation is neither 0 nor 1.
    """
    allocated = whole_number(ds, "BitsAllocated", width)
    bits = whole_number(ds, "BitsStored", allocated)
    if allocated != 1 and (allocated <= 0 or allocated % 8):
        raise _disagree(f"the header allocates {allocated} bits, which is neither 1 nor whole bytes")
    if whole_number(ds, "PixelRepresentation", 0) not in (0, 1):
        raise _disagree("PixelRepresentation is neither 0 (unsigned) nor 1 (signed)")
    if not 1 <= bits <= allocated:
        raise _disagree(f"the header stores {bits} bits in {allocated} allocated ones")
    low = whole_number(ds, "HighBit", bits - 1) - bits + 1
    return (low if 0 <= low <= width - bits else 0), bits


def check_bits(ds: Any, stored: np.ndarray, padding: np.ndarray | None) -> None:
    """Check that no value uses bits outside the named ones.

    Allowed are planes of old overlays that the header declares (60xx,0102), copies of the sign, and padding.

    Args:
        ds: data set.
        stored: integers [H, W] with all allocated bits.
        padding: bool [H, W] or None.

    Raises:
        RadiographError: "bits_disagree".
    """
    width = 8 * stored.dtype.itemsize
    low, bits = used_range(ds, width)
    unsigned = stored.view(f"{stored.dtype.byteorder.replace('|', '=')}u{stored.dtype.itemsize}")
    if low == 0 and not int(unsigned.max()) >> bits:
        return
    below = (1 << low) - 1
    above = ((1 << width) - 1) ^ ((1 << (low + bits)) - 1)
    for plane in _overlay_planes(ds):
        below, above = below & ~(1 << plane), above & ~(1 << plane)
    if not int(np.bitwise_or.reduce(unsigned, axis=None)) & (below | above):
        return
    stray = (unsigned & unsigned.dtype.type(below | above)) != 0
    if stored.dtype.kind == "i":
        sign = (unsigned & unsigned.dtype.type(1 << (low + bits - 1))) != 0
        stray &= ~(sign & ((unsigned & unsigned.dtype.type(below | above)) == above))
    if padding is not None:
        stray &= ~padding
    count = int(np.count_nonzero(stray))
    if count:
        raise _disagree(
            f"{count} of {stored.size} values use bits outside the {bits} that the header names (BitsStored {bits}, lowest "
            f"bit {low})"
        )


def _overlay_planes(ds: Any) -> list[int]:
    """Return the bits of the pixels in which the header declares overlays (retired, PS3.3-2004 C.9.2)."""
    planes = []
    for group in range(0x6000, 0x6020, 2):
        position = ds.get((group, 0x0102))
        if position is not None and (group, 0x3000) not in ds and isinstance(position.value, int):
            planes.append(position.value)
    return planes


def check_sign(values: np.ndarray, bits: int, padding: np.ndarray | None = None) -> None:
    """Check that the picture is not much smoother when its values are read with the other sign.

    Args:
        values: integers [H, W] of `bits` bits, with the sign that the header names.
        bits: used bits.
        padding: bool [H, W] or None.

    Raises:
        RadiographError: "bits_disagree".
    """
    half = 1 << (bits - 1)
    signed = values.dtype.kind == "i"
    limit = 0 if signed else half
    if min(values.shape) < _SMALLEST_SIDE or int(values.max()) < limit or int(values.min()) >= limit:
        return
    rows = _thinned(values).astype(np.float64)
    other = np.where(rows < limit, rows + 2 * half, rows) if signed else np.where(rows < limit, rows, rows - 2 * half)
    valid = ~_saturated(rows, bits, signed) if padding is None else ~_thinned(padding) & ~_saturated(rows, bits, signed)
    if _roughness(rows, valid) > SIGN_RATIO * _roughness(other, valid):
        raise _disagree(
            f"the values are {'signed' if signed else 'unsigned'} by the header, but wrap around at {limit}: they seem to be "
            f"{'unsigned' if signed else 'signed'} (PixelRepresentation, or the data type)"
        )


def check_byte_order(values: np.ndarray, padding: np.ndarray | None = None) -> None:
    """Check that a picture of 2-byte values is not noise that swapped bytes turn into a smooth picture.

    Args:
        values: integers [H, W]; other than 2-byte ones pass.
        padding: bool [H, W] or None.

    Raises:
        RadiographError: "bits_disagree".
    """
    if values.dtype.kind not in "iu" or values.dtype.itemsize != 2 or min(values.shape) < _SMALLEST_SIDE:
        return
    valid = None if padding is None else ~_thinned(padding)
    rows = _thinned(values)
    found, swapped = (_relative_roughness(v.astype(np.float64), valid) for v in (rows, rows.byteswap()))
    if found > SWAP_ROUGHNESS and found > SWAP_RATIO * swapped > 0:
        raise _disagree("the values are noise as they are and a picture when the bytes of each are swapped")


def _saturated(rows: np.ndarray, bits: int, signed: bool) -> np.ndarray:
    """Return where values are the smallest or largest possible: lettering and collimators, not grey values that wrap."""
    low = -(1 << (bits - 1)) if signed else 0
    return (rows == low) | (rows == low + (1 << bits) - 1)


def _thinned(values: np.ndarray) -> np.ndarray:
    """Return every n-th row, so that a large picture costs no more than a small one."""
    return values[:: max(1, len(values) // _MOST_ROWS)]


def _roughness(rows: np.ndarray, valid: np.ndarray | None) -> float:
    steps = np.abs(np.diff(rows, axis=1))
    if valid is not None:
        steps = steps[valid[:, 1:] & valid[:, :-1]]
    return float(steps.mean()) if steps.size else 0.0


def _relative_roughness(rows: np.ndarray, valid: np.ndarray | None) -> float:
    spread = float((rows if valid is None else rows[valid]).std()) if valid is None or valid.any() else 0.0
    return _roughness(rows, valid) / spread if spread else 0.0


def _disagree(what: str) -> RadiographError:
    return RadiographError("bits_disagree", f"{what}. Correct the header, or export the image again.")
