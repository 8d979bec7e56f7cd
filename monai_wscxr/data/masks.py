"""Lesion masks: pictures that are 0 outside of lesions and anything else inside.

Masks from other programs break this rule in ways that can be told apart, so they are read as they were meant, or refused:

* the mask is in the alpha channel of a picture of one colour: alpha is taken;
* the background has the value 1 or more and lesions one higher value: the lower value is the background;
* compression with loss left small values around the lesions (JPEG, also if saved as PNG later): half of the largest value
  separates the two;
* EXIF orientation: applied, as it is to the image;
* background and lesion are interchanged, or nothing is marked, or more than `LARGEST_SHARE`: refused.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from monai_wscxr.data.datalist import DatalistError, few

logger = logging.getLogger("monai_wscxr")

LARGEST_SHARE = 0.9
"""Largest share of the picture that a mask may mark. The lesion boxes of NIH ChestX-ray14 mark 0.1 % to 56 %."""

_FRAME_SHARE = 0.75  # marked share of the outermost pixels from which on the background must be what is marked
_BETWEEN_SHARE = 0.02  # share of pixels that lossy compression may leave half-way between background and lesion
_RATIO_TOLERANCE = 0.02
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "GIF")


def read_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a lesion mask, bool [H, W], True inside lesions; upright.

    Raises:
        DatalistError: when the file is no picture, its meaning is unclear, it marks nothing, or more than `LARGEST_SHARE`.
    """
    values, lossy = _values(path)
    low, high = values.min().item(), values.max().item()
    if low < 0 or low == high:
        if low == high:
            raise _refused(path, "marks nothing" if low == 0 else "marks everything", "all its pixels are equal")
        raise _refused(path, "has negative values", f"they go down to {low:g}")
    if lossy or _is_noisy(values):
        between = np.mean((values > low + (high - low) / 3) & (values < high - (high - low) / 3))
        if between > _BETWEEN_SHARE:
            raise _refused(path, "is no mask", f"{between:.0%} of its pixels are neither background nor lesion")
        lesion = values > low + (high - low) / 2
    elif low > 0 and np.any((values != low) & (values != high)):
        raise _refused(path, "has no background", f"its values go from {low:g} to {high:g}, and 0 is the background")
    else:
        lesion = values > low
    frame = np.concatenate([lesion[0], lesion[-1], lesion[:, 0], lesion[:, -1]]).mean()
    share = lesion.mean()
    if frame > _FRAME_SHARE:
        what = f"it marks {share:.0%} of the picture and {frame:.0%} of its outermost pixels"
        raise _refused(path, "seems to be inverted", what)
    if not 0 < share <= LARGEST_SHARE:
        what = f"it marks {share:.0%} of the picture; allowed are more than nothing and at most {LARGEST_SHARE:.0%}"
        raise _refused(path, "marks nothing" if share == 0 else "marks nearly everything", what)
    return np.ascontiguousarray(lesion)


def resize_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """Resize a mask to bool [size, size] by nearest neighbour; lesions that would vanish mark the pixels that they lie in."""
    resized = np.asarray(Image.fromarray(mask.astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST)) > 0
    if mask.any() and not resized.any():
        rows, columns = np.nonzero(mask)
        resized[rows * size // mask.shape[0], columns * size // mask.shape[1]] = True
    return resized


def check_masks(items: Sequence[Mapping[str, Any]]) -> None:
    """Read the masks of datalist items once, so that a run does not end at them; warn of masks of another shape.

    Raises:
        DatalistError: for masks that cannot be used, with their number and the first reasons.
    """
    problems, stretched = [], []
    for item in items:
        if not item.get("mask"):
            continue
        try:
            height, width = read_mask(item["mask"]).shape
        except DatalistError as error:
            problems.append(str(error))
            continue
        size = upright_size(item["image"])
        if size is not None and abs(width * size[1] / (height * size[0]) - 1) > _RATIO_TOLERANCE:
            stretched.append(f"{item['mask']} with {width} x {height} for {size[0]} x {size[1]}")
    if problems:
        raise DatalistError(f"{len(problems)} lesion mask(s) cannot be used: {few(problems)}")
    if stretched:
        logger.warning(
            "%d lesion mask(s) have another ratio of their sides than the image and are stretched to fit: %s",
            *(len(stretched), few(stretched)),
        )


def upright_size(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Return (width, height) of a picture by its header, EXIF orientation applied; None for other formats and damaged files."""
    try:
        with Image.open(path, formats=_FORMATS) as picture:
            turned = picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return picture.size[::-1] if turned else picture.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None


def _values(path: str | os.PathLike[str]) -> tuple[np.ndarray, bool]:
    """Return the values [H, W] that tell lesion from background, and whether the format loses information."""
    try:
        with Image.open(path, formats=_FORMATS) as opened:
            if getattr(opened, "n_frames", 1) > 1:
                raise _refused(path, "has several frames", "a mask is one picture")
            lossy = opened.format == "JPEG"
            picture = ImageOps.exif_transpose(opened)
    except DatalistError:
        raise
    except Exception as error:  # Pillow raises errors of every type for damaged files
        raise _refused(path, "cannot be read", f"{type(error).__name__}; allowed are {', '.join(_FORMATS)}") from error
    if "A" in picture.mode or "a" in picture.mode or "transparency" in picture.info:
        return _from_alpha(path, np.asarray(picture.convert("RGBA"))), lossy
    if picture.mode not in ("1", "L", "I", "F", "P", "RGB") and not picture.mode.startswith("I;"):
        raise _refused(path, f"has the colour mode {picture.mode}", "allowed are grey, RGB, palette and alpha")
    values = np.asarray(picture.convert("RGB") if picture.mode == "P" else picture)
    if values.ndim == 3:
        values = values.max(axis=2)  # a dark blue has no luminance, but marks a lesion as well
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise _refused(path, "has values that are no numbers", "NaN or infinity")
    return values, lossy


def _from_alpha(path: str | os.PathLike[str], rgba: np.ndarray) -> np.ndarray:
    """Return the channel that holds the mask: the colours if alpha is the same everywhere, or else alpha."""
    colour, alpha = rgba[..., :3].max(axis=2), rgba[..., 3]
    if alpha.min() == alpha.max():
        return colour
    visible = rgba[alpha > 0][:, :3]
    if (visible == visible[0]).all() or np.array_equal(colour > 0, alpha > 0):
        return alpha
    raise _refused(path, "is ambiguous", "both its colours and its alpha channel differ from pixel to pixel")


def _is_noisy(values: np.ndarray) -> bool:
    """Tell whether small values around the lesions come from compression with loss, not from labels or smooth edges."""
    high = values.max()
    distinct = np.count_nonzero(np.bincount(values.ravel())) if values.dtype == np.uint8 else len(np.unique(values))
    if high < 128 or distinct <= 16:
        return False
    small = np.count_nonzero((values > 0) & (values < 0.12 * high))
    return bool(small > np.count_nonzero((values >= 0.12 * high) & (values <= 0.88 * high)))


def _refused(path: str | os.PathLike[str], what: str, found: str) -> DatalistError:
    return DatalistError(
        f"{os.fspath(path)}: this lesion mask {what} ({found}). Save it as a grey PNG that is 0 outside of lesions and 255 "
        "inside."
    )
