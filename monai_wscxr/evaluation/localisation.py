"""Localisation of lesions by anomaly maps: region overlap and pointing game, against lesion masks or boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from monai_wscxr.errors import InputError
from monai_wscxr.evaluation.metrics import pixel_auroc

Mask = NDArray[np.bool_]
Map = NDArray[np.floating]


def localisation_metrics(masks: Sequence[Mask], maps: Sequence[Map]) -> dict[str, float]:
    """Compute pixel AUROC, AUPRO and pointing game over the same images.

    Args:
        masks: lesion pixels [H, W] per image; all False for normal images.
        maps: anomaly maps [H, W] per image.
    """
    return {
        "auroc": pixel_auroc(masks, maps),
        "aupro": region_overlap(masks, maps),
        "pointing_game": pointing_game(masks, maps),
    }


def region_overlap(masks: Sequence[Mask], maps: Sequence[Map], limit: float = 0.3) -> float:
    """Compute AUPRO: the area under the curve of per-region overlap against false-positive rate, up to a limit.

    At a threshold t, the overlap of a lesion region is the share of its pixels with map >= t, and the curve shows the mean
    over all regions of all images, so a small lesion counts as much as a large one. The false-positive rate is the share of
    pixels outside lesions with map >= t. Every distinct map value is a threshold, with linear interpolation between them.
    Regions are 8-connected. The area is divided by the limit, so it lies in [0, 1] (Bergmann et al., The MVTec Anomaly
    Detection Dataset, 2021).

    Args:
        masks: lesion pixels [H, W] per image; all False for normal images.
        maps: anomaly maps [H, W] per image.
        limit: highest false-positive rate, in (0, 1].

    Raises:
        InputError: on a limit out of range, sizes that differ, NaN or Inf, no lesion, or no pixel outside lesions.
    """
    if not 0 < limit <= 1:
        raise InputError(f"the false-positive limit must lie in (0, 1], got {limit}")
    _check(masks, maps)
    regions = []
    for mask in masks:
        labels, found = ndimage.label(mask, structure=np.ones((3, 3), int))
        size = np.bincount(labels.ravel(), minlength=found + 1).astype(np.float64)
        size[0] = np.inf  # outside lesions: no overlap
        regions.append((found, (1.0 / size)[labels].ravel()))
    n_regions = sum(found for found, _ in regions)
    overlap = np.concatenate([share for _, share in regions]) / n_regions
    outside = np.concatenate([~np.asarray(mask, bool).ravel() for mask in masks])
    if not outside.any():
        raise InputError("every pixel lies in a lesion; a false-positive rate needs normal pixels")
    values = np.concatenate([np.asarray(m, np.float64).ravel() for m in maps])
    order = np.argsort(-values, kind="stable")
    last = np.append(np.flatnonzero(np.diff(values[order])), len(order) - 1)  # last pixel of each distinct value
    rate = np.append(0.0, np.cumsum(outside[order])[last] / outside.sum())
    height = np.append(0.0, np.cumsum(overlap[order])[last])
    inside = rate <= limit
    rates, heights = rate[inside], height[inside]
    if rates[-1] < limit:
        rates = np.append(rates, limit)
        heights = np.append(heights, np.interp(limit, rate, height))
    return float(np.trapezoid(heights, rates) / limit)


def pointing_game(masks: Sequence[Mask], maps: Sequence[Map], tolerance: float = 0.0) -> float:
    """Compute the share of images whose highest map value lies in a lesion, or at most `tolerance` pixels from one.

    Among equal values the first in row-major order counts. Images without a lesion are left out (Zhang et al., Top-down
    Neural Attention by Excitation Backprop, 2018).

    Args:
        masks: lesion pixels [H, W] per image.
        maps: anomaly maps [H, W] per image.
        tolerance: distance in pixels, >= 0.

    Raises:
        InputError: on a negative tolerance, sizes that differ, NaN or Inf, or no lesion.
    """
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise InputError(f"the tolerance must be 0 pixels or more, got {tolerance}")
    _check(masks, maps)
    hits = []
    for mask, values in zip(masks, maps, strict=True):
        if np.any(mask):
            y, x = np.unravel_index(int(np.argmax(values)), values.shape)
            rows, columns = np.nonzero(mask)
            hits.append(float(((rows - y) ** 2 + (columns - x) ** 2).min()) <= tolerance**2)
    return float(np.mean(hits))


def boxes_to_mask(
    boxes: Sequence[tuple[float, float, float, float]], image_size: tuple[int, int], mask_size: tuple[int, int]
) -> Mask:
    """Draw boxes as a mask, at another size than the image; a pixel is inside if its centre is.

    Args:
        boxes: (left, top, width, height) in pixels of the original image, as NIH ChestX-ray14 gives them.
        image_size: height and width of the original image.
        mask_size: height and width of the mask.

    Raises:
        InputError: on a box without area or outside the image.
    """
    height, width = image_size
    y = (np.arange(mask_size[0]) + 0.5) * height / mask_size[0]
    x = (np.arange(mask_size[1]) + 0.5) * width / mask_size[1]
    mask = np.zeros(mask_size, bool)
    for left, top, wide, high in boxes:
        if not (wide > 0 and high > 0 and left < width and top < height and left + wide > 0 and top + high > 0):
            raise InputError(f"box {(left, top, wide, high)} has no area in an image of {width} x {height} pixels")
        inside_y, inside_x = (y >= top) & (y < top + high), (x >= left) & (x < left + wide)
        mask |= inside_y[:, None] & inside_x[None, :]
    return mask


def _check(masks: Sequence[Mask], maps: Sequence[Map]) -> None:
    """Raise InputError unless masks and maps fit, all maps are finite and there is a lesion."""
    if len(masks) != len(maps):
        raise InputError(f"there are {len(masks)} masks but {len(maps)} anomaly maps")
    for mask, values in zip(masks, maps, strict=True):
        if np.shape(mask) != np.shape(values) or np.ndim(mask) != 2:
            raise InputError(f"a mask of {np.shape(mask)} does not fit an anomaly map of {np.shape(values)}")
        if not np.isfinite(values).all():
            raise InputError("an anomaly map holds NaN or Inf; a metric computed from it would be meaningless")
    if not any(np.any(mask) for mask in masks):
        raise InputError("no mask shows a lesion; localisation needs at least one")
