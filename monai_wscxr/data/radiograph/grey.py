"""Stored values of a DICOM image to grey values in [0, 1], up to polarity: bits, padding, modality LUT, VOI LUT or window.

Of several VOI LUTs or windows the first counts, and a VOI LUT goes before a window; the standard leaves the choice to the
reader (PS3.3 C.11.2), so it is made here once. RescaleType, PixelIntensityRelationship, overlays and presentation states change
nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pydicom

from monai_wscxr.data.radiograph.base import RadiographError, check_finite, no_contrast, own_float64, stretch, unit

_MOST_CLIPPED = 0.9
"""Share of the pixels that a window may turn black or white; beyond it is the window of another image."""


def grey_values(path: Any, ds: Any, stored: np.ndarray) -> tuple[np.ndarray, str, np.ndarray | None]:
    """Stored values as grey values before any inversion.

    Args:
        path: for messages.
        ds: the data set.
        stored: values ``[H, W]`` as they were decoded, integer or floating point.

    Returns:
        Grey values, float32 ``[H, W]`` in [0, 1]; the name of the chain; where padding is, bool ``[H, W]``, or None.

    Raises:
        RadiographError: ``no_contrast`` or ``not_finite``.
    """
    check_finite(path, stored)
    used = _used_bits(ds, stored)
    padding = _padding(ds, stored, used)
    values = _modality(ds, used)
    check_finite(path, values)
    valid = values if padding is None else values[~padding]
    if valid.size == 0:
        raise no_contrast(path)
    image, intensity = _voi(ds, path, values, valid)
    if intensity != "percentile":
        _check_clipped(path, image if padding is None else image[~padding])
    return image, intensity, padding


def _check_clipped(path: Any, image: np.ndarray) -> None:
    """Refuses a picture of which the header's window leaves almost nothing."""
    clipped = float(np.mean((image <= 0) | (image >= 1)))
    if clipped > _MOST_CLIPPED:
        raise RadiographError(
            "no_contrast",
            path,
            f"the window or lookup table of the header makes {clipped:.0%} of the pixels black or white; it seems to belong "
            "to another image. Correct or remove it.",
        )


def _padding(ds: Any, stored: np.ndarray, used: np.ndarray) -> np.ndarray | None:
    """Where values ``[H, W]`` are padding (PS3.3 C.7.5.1.1.2), as a mask; None where there is none.

    The value is looked for as it is stored and among the used bits: it may lie outside of these on purpose, and a pixel under
    an old overlay has other bits set.
    """
    value = ds.get("PixelPaddingValue")
    if value is None or stored.dtype.kind not in "iu":
        return None
    other = ds.get("PixelPaddingRangeLimit")
    low, high = sorted(_as_stored(int(v), stored.dtype) for v in (value, value if other is None else other))
    mask = (stored >= low) & (stored <= high)
    if used is not stored:
        mask |= (used >= low) & (used <= high)
    return mask if mask.any() else None


def _as_stored(value: int, dtype: np.dtype) -> int:
    """Reads a value that was written with the other signedness (65535 for -1) the way the pixels are stored."""
    span = 2 ** (8 * dtype.itemsize)
    if dtype.kind == "i" and value >= span // 2:
        return value - span
    return value + span if dtype.kind == "u" and value < 0 else value


def _used_bits(ds: Any, stored: np.ndarray) -> np.ndarray:
    """Drops the bits above HighBit (old overlays live there) and extends the sign, as PS3.5 8.1.1 defines them."""
    bits = int(ds.get("BitsStored") or ds.BitsAllocated)
    high = ds.get("HighBit")
    width = 8 * stored.dtype.itemsize
    left = width - 1 - (bits - 1 if high is None else int(high))
    if stored.dtype.kind not in "iu" or bits >= width or not 0 <= left <= width - bits:
        return stored
    return (stored << left) >> (width - bits)


def _modality(ds: Any, values: np.ndarray) -> np.ndarray:
    """Modality LUT, or rescale to float64, or the values as they are (PS3.3 C.11.1)."""
    if ds.get("ModalityLUTSequence"):
        return _lookup(values, _table(ds, ds.ModalityLUTSequence[0]))
    slope, intercept = ds.get("RescaleSlope"), ds.get("RescaleIntercept")
    if slope is None or intercept is None:
        return values
    rescaled = values.astype(np.float64)
    rescaled *= float(slope)
    rescaled += float(intercept)
    return rescaled


def _voi(ds: Any, path: Any, values: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, str]:
    """VOI LUT, window or percentiles (PS3.3 C.11.2): float32 ``[H, W]`` in [0, 1] and the name of the chain.

    Floating-point ``values`` do not survive it.
    """
    if ds.get("VOILUTSequence"):
        first, entries = _table(ds, ds.VOILUTSequence[0])
        if first >= 2**15 and values.min() < 0:  # written without a sign, meant with one: implicit VR cannot tell
            first -= 2**16
        top = float(entries.max())  # the table's own range; a descriptor of 16 bits over 12-bit entries is common
        if top > 0:
            return unit(_lookup(np.rint(values).astype(np.int64), (first, entries)) / top), "voi_lut"
    window = _window(ds)
    if window is None:
        return stretch(path, values, valid), "percentile"
    center, width, function = window
    x = own_float64(values)  # in place from here on: a large picture must not be in memory four times
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
    return unit(x), "voi_window"


def _window(ds: Any) -> tuple[float, float, str] | None:
    """The first window as (center, width, function); None when there is none or it cannot be used."""
    function = str(ds.get("VOILUTFunction") or "LINEAR").strip().upper()
    first = []
    for name in ("WindowCenter", "WindowWidth"):
        value = ds.get(name)
        value = value[0] if isinstance(value, (list, pydicom.multival.MultiValue)) and value else value
        if value is None or value == "" or not np.isfinite(float(value)):
            return None
        first.append(float(value))
    narrowest = 1.0 if function == "LINEAR" else 1e-6
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID") or first[1] < narrowest:
        return None
    return first[0], first[1], function


def _table(ds: Any, item: Any) -> tuple[int, np.ndarray]:
    """(first value mapped, entries int64 ``[n]``) of a LUT sequence item."""
    count, first, _ = (int(v) for v in item.LUTDescriptor)
    count = count & 0xFFFF or 2**16  # a count above 32767 reads as negative where the entry is signed
    data = item.LUTData
    if isinstance(data, bytes):
        order = "<" if ds.file_meta.TransferSyntaxUID.is_little_endian else ">"
        entries = np.frombuffer(data, dtype=np.uint8 if len(data) < 2 * count else f"{order}u2")
    else:
        entries = np.atleast_1d(np.asarray(data, dtype=np.int64)) & 0xFFFF
    if entries.size < count:
        raise ValueError(f"lookup table of {entries.size} entries where {count} are claimed")
    return first, entries[:count].astype(np.int64)


def _lookup(values: np.ndarray, table: tuple[int, np.ndarray]) -> np.ndarray:
    """Maps integers through a table; values outside take its first or last entry (PS3.3 C.11.1.1.1)."""
    first, entries = table
    return entries[np.clip(values.astype(np.int64) - first, 0, entries.size - 1)]
