"""Stored values of a DICOM image to grey values in [0, 1] before any inversion.

The first VOI LUT counts; without one the first window with its function (LINEAR, LINEAR_EXACT, SIGMOID); without a usable one
the percentile window. The standard leaves this choice to the reader (PS3.3 C.11.2). RescaleType, PixelIntensityRelationship,
overlays and presentation states have no effect.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from monai_wscxr.data.radiograph.base import (
    RadiographError,
    check_finite,
    clip_to_unit,
    no_contrast,
    percentile_window,
    writable_float64,
)
from monai_wscxr.data.radiograph.bits import check_bits, check_byte_order, check_sign, used_range
from monai_wscxr.data.radiograph.entries import numbers

_MOST_CLIPPED = 0.9
"""Largest share of the pixels that a window may turn black or white; a window that clips more belongs to another image."""


def grey_values(ds: Any, stored: np.ndarray) -> tuple[np.ndarray, str, np.ndarray | None]:
    """Map stored values to grey values before any inversion.

    Args:
        ds: data set with the header.
        stored: decoded values [H, W], integer or floating point.

    Returns:
        Grey values, float32 [H, W] in [0, 1]; how they were mapped (`Radiograph.intensity`); and the padding as bool [H, W],
        or None without padding.

    Raises:
        RadiographError: "no_contrast", "not_finite", "bits_disagree", or "unreadable" for an entry that is not a number.
    """
    check_finite(stored)
    used = _used_bits(ds, stored)
    padding = _padding(ds, stored, used)
    if stored.dtype.kind in "iu":
        check_bits(ds, stored, padding)
        check_byte_order(used, padding)
        check_sign(used, used_range(ds, 8 * stored.dtype.itemsize)[1], padding)
    values = _apply_modality(ds, used)
    check_finite(values)
    valid = values if padding is None else values[~padding]
    if valid.size == 0:
        raise no_contrast()
    image, intensity = _apply_voi(ds, values, valid)
    if intensity != "percentile":
        _check_clipped(image if padding is None else image[~padding])
    return image, intensity, padding


def _check_clipped(image: np.ndarray) -> None:
    """Refuse a window or lookup table that leaves almost no grey values."""
    clipped = float(np.mean((image <= 0) | (image >= 1)))
    if clipped > _MOST_CLIPPED:
        raise RadiographError(
            "no_contrast",
            f"the window or lookup table of the header makes {clipped:.0%} of the pixels black or white; it seems to belong "
            "to another image. Correct or remove it.",
        )


def _padding(ds: Any, stored: np.ndarray, used: np.ndarray) -> np.ndarray | None:
    """Return the mask [H, W] of padding pixels (PS3.3 C.7.5.1.1.2), or None without padding.

    The padding value is compared with all stored bits and with the used bits alone: it may lie outside the used bits on
    purpose, and under an old overlay a padding pixel has other bits set.
    """
    value = numbers(ds, "PixelPaddingValue")
    if not value or stored.dtype.kind not in "iu":
        return None
    other = numbers(ds, "PixelPaddingRangeLimit") or value
    low, high = sorted(_as_stored(int(v), stored.dtype) for v in (value[0], other[0]))
    mask = (stored >= low) & (stored <= high)
    if used is not stored:
        mask |= (used >= low) & (used <= high)
    return mask if mask.any() else None


def _as_stored(value: int, dtype: np.dtype) -> int:
    """Convert a value written with the other signedness (65535 for -1) to that of the pixels."""
    span = 2 ** (8 * dtype.itemsize)
    if dtype.kind == "i" and value >= span // 2:
        return value - span
    return value + span if dtype.kind == "u" and value < 0 else value


def _used_bits(ds: Any, stored: np.ndarray) -> np.ndarray:
    """Drop the bits above HighBit, where old overlays are stored, and extend the sign (PS3.5 8.1.1)."""
    if stored.dtype.kind not in "iu":
        return stored
    width = 8 * stored.dtype.itemsize
    low, bits = used_range(ds, width)
    return stored if bits == width else (stored << (width - bits - low)) >> (width - bits)


def _apply_modality(ds: Any, values: np.ndarray) -> np.ndarray:
    """Apply the modality LUT, or rescale to float64, or return the values unchanged (PS3.3 C.11.1)."""
    if ds.get("ModalityLUTSequence"):
        return _lookup(values, _table(ds, ds.ModalityLUTSequence[0]))
    slope, intercept = numbers(ds, "RescaleSlope"), numbers(ds, "RescaleIntercept")
    if not slope or not intercept:
        return values
    rescaled = values.astype(np.float64)
    rescaled *= slope[0]
    rescaled += intercept[0]
    return rescaled


def _apply_voi(ds: Any, values: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, str]:
    """Apply VOI LUT, window or percentiles (PS3.3 C.11.2).

    Args:
        ds: data set with the header.
        values: [H, W]; float64 values are overwritten.
        valid: the values that are not padding.

    Returns:
        float32 [H, W] in [0, 1], and how it was mapped (`Radiograph.intensity`).
    """
    if ds.get("VOILUTSequence"):
        first, entries = _table(ds, ds.VOILUTSequence[0])
        if first >= 2**15 and values.min() < 0:  # a negative value read as unsigned: implicit VR stores no type
            first -= 2**16
        top = float(entries.max())  # the largest entry: tables of 12-bit entries that claim 16 bits are common
        if top > 0:
            return clip_to_unit(_lookup(np.rint(values), (first, entries)) / top), "voi_lut"
    window = _window(ds)
    if window is None:
        return percentile_window(values, valid), "percentile"
    center, width, function = window
    x = writable_float64(values)  # in place from here on, or a large image would be in memory four times
    x -= center
    if function == "SIGMOID":  # 1 / (1 + exp(-4 x / width)), without overflow
        x *= 2
        x /= width
        np.tanh(x, out=x)
        x *= 0.5
    elif function == "LINEAR":
        x += 0.5
        x /= max(width - 1, 1e-6)
    else:
        x /= width
    x += 0.5
    return clip_to_unit(x), "voi_window"


def _window(ds: Any) -> tuple[float, float, str] | None:
    """Return the first window as (center, width, function), or None without a usable one."""
    function = str(ds.get("VOILUTFunction") or "LINEAR").strip().upper()
    center, width = numbers(ds, "WindowCenter"), numbers(ds, "WindowWidth")
    if not center or not width or not np.isfinite([center[0], width[0]]).all():
        return None
    narrowest = 1.0 if function == "LINEAR" else 1e-6
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID") or width[0] < narrowest:
        return None
    return center[0], width[0], function


def _table(ds: Any, item: Any) -> tuple[int, np.ndarray]:
    """Return the first value mapped and the entries, int64 [n], of an item of a LUT sequence."""
    count, first, _ = (int(v) for v in item.LUTDescriptor)
    count = count & 0xFFFF or 2**16  # 0 stands for 65536; in a signed entry counts above 32767 are negative
    data = item.LUTData
    if isinstance(data, bytes):
        order = "<" if ds.file_meta.TransferSyntaxUID.is_little_endian else ">"
        entries = np.frombuffer(data, dtype=np.uint8 if len(data) < 2 * count else f"{order}u2")
    else:
        entries = np.atleast_1d(np.asarray(data, dtype=np.int64)) & 0xFFFF
    if entries.size < count:
        raise ValueError(f"the lookup table has {entries.size} entries instead of {count}")
    return first, entries[:count].astype(np.int64)


def _lookup(values: np.ndarray, table: tuple[int, np.ndarray]) -> np.ndarray:
    """Map whole numbers through a table; values outside take its first or last entry (PS3.3 C.11.1.1.1)."""
    first, entries = table
    if values.dtype.kind == "f" or values.dtype == np.uint64:  # limited first: int64 may not hold them
        values = np.clip(values.astype(np.float64), first, first + entries.size - 1)
    return entries[np.clip(values.astype(np.int64) - first, 0, entries.size - 1)]
