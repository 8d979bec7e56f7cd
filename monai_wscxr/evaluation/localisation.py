"""Localisation of lesions by anomaly maps, against lesion masks or boxes, beside what a map that shows nothing would reach.

Lesions lie where the chest is, so a constant map, the same for every image, does well at pixel AUROC, region overlap and the
pointing game. Only what a map reaches above that says where. Nor does a high value inside a lesion say where if the whole
picture is high: the mirrored place, the same spot on the other side of the chest, tells the two apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from monai_wscxr.errors import InputError
from monai_wscxr.evaluation.metrics import auroc, pixel_auroc

Mask = NDArray[np.bool_]
Map = NDArray[np.floating]

_TIE = 1e-9  # of the largest map value: means over the same pixels in another order differ by rounding
_MASKS_AT_A_TIME = 32


def localisation_metrics(
    masks: Sequence[Mask], maps: Sequence[Map], findings: Sequence[str] | None = None
) -> dict[str, Any]:
    """Compute pixel AUROC, AUPRO, pointing game and percentiles over the same images, and the same for a constant map.

    Args:
        masks: lesion pixels [H, W] per image; all False for normal images.
        maps: anomaly maps [H, W] per image.
        findings: name of the finding per image; those of normal images are not used. None, or one name for all lesions, gives
            no figures by finding.

    Returns:
        `auroc`, `aupro`, `pointing_game`: over all images.
        `constant_map`: the same three for the mean of all maps in place of every map.
        `percentile`, `mirrored_percentile`, `gap`: see `place_percentiles`, means over the images with a lesion; None without
        normal images. The gap is the difference of the two.
        `findings`: by name, the number of `images` with a lesion and their pointing game, percentiles and gap.
    """
    _check(masks, maps)
    chosen = [n for n, mask in enumerate(masks) if np.any(mask)]
    inside, mirrored = place_percentiles(masks, maps)
    hits, constant_hits = pointing_hits(masks, maps), pointing_hits(masks, [constant_map(maps)] * len(maps))

    def of_lesions(numbers: Sequence[int]) -> dict[str, float | None]:
        """Return the figures of some images with lesions, by their positions in `chosen`."""
        here, there = (None if p is None else float(np.mean(p[numbers])) for p in (inside, mirrored))
        return {
            "percentile": here,
            "mirrored_percentile": there,
            "gap": None if here is None or there is None else here - there,
        }

    found: dict[str, Any] = {
        "auroc": pixel_auroc(masks, maps),
        "aupro": region_overlap(masks, maps),
        "pointing_game": float(np.mean(hits)),
        "constant_map": {**constant_map_metrics(masks, maps), "pointing_game": float(np.mean(constant_hits))},
        **of_lesions(range(len(chosen))),
    }
    names = [] if findings is None else [findings[n] for n in chosen]
    if len(set(names)) < 2:
        return found
    by_finding: dict[str, Any] = {}
    for name in sorted(set(names)):
        numbers = [n for n, other in enumerate(names) if other == name]
        by_finding[name] = {
            "images": len(numbers),
            "pointing_game": float(np.mean(hits[numbers])),
            "constant_map": {"pointing_game": float(np.mean(constant_hits[numbers]))},
            **of_lesions(numbers),
        }
    return {**found, "findings": by_finding}


def constant_map(maps: Sequence[Map]) -> NDArray[np.float64]:
    """Return the mean [H, W] of maps [H, W]: what a map shows that is the same for every image.

    Raises:
        InputError: when the maps differ in size.
    """
    _check_one_size(maps)
    total = np.zeros(np.shape(maps[0]), np.float64)
    for values in maps:
        total += values
    return total / len(maps)


def constant_map_metrics(masks: Sequence[Mask], maps: Sequence[Map]) -> dict[str, float]:
    """Compute pixel AUROC and AUPRO of the mean of all maps in place of every map.

    Args:
        masks, maps: see `localisation_metrics`.

    Raises:
        InputError: as `region_overlap`.
    """
    _check(masks, maps)
    values = constant_map(maps).ravel()
    # every image has the same value at a pixel, so the pixels are counted instead of repeated
    lesions, overlap, regions = np.zeros(len(values)), np.zeros(len(values)), 0
    for mask, (found, share) in zip(masks, _regions(masks), strict=True):
        lesions += np.asarray(mask, bool).ravel()
        overlap += share
        regions += found
    normal = len(masks) - lesions
    labels = np.repeat([1, 0], len(values))
    return {
        "auroc": auroc(labels, np.tile(values, 2), np.concatenate([lesions, normal])),
        "aupro": _overlap_area(values, overlap / regions, normal, 0.3),
    }


def place_percentiles(
    masks: Sequence[Mask], maps: Sequence[Map]
) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]:
    """Compute how high each lesion stands among normal images at the same place, and how high its mirrored place stands.

    The percentile of a place is the share of the images without a lesion whose map has a lower mean over these pixels; ties
    count one half. The mirrored place is the lesion's mask with left and right interchanged. A map that says how abnormal the
    picture is, but not where, is as high there as in the lesion. A lesion across the middle is partly its own mirror image.

    Args:
        masks: lesion pixels [H, W] per image, all of one size; all False for normal images.
        maps: anomaly maps [H, W] per image.

    Returns:
        percentiles [n] in [0, 1] of the n images with a lesion, in order, of the lesion and of its mirrored place; None for
        both without images that have no lesion.

    Raises:
        InputError: on sizes that differ, NaN or Inf, or no lesion.
    """
    _check(masks, maps)
    _check_one_size(maps)
    chosen = [n for n, mask in enumerate(masks) if np.any(mask)]
    normal = [n for n, mask in enumerate(masks) if not np.any(mask)]
    if not normal:
        return None, None
    reference = np.stack([np.asarray(maps[n], np.float64).ravel() for n in normal])  # [normals, H*W]
    tie = _TIE * max(float(np.abs(maps[n]).max()) for n in range(len(maps)))
    inside: list[NDArray[np.float64]] = []
    mirrored: list[NDArray[np.float64]] = []
    for start in range(0, len(chosen), _MASKS_AT_A_TIME):
        some = chosen[start : start + _MASKS_AT_A_TIME]
        own = np.stack([np.asarray(maps[n], np.float64).ravel() for n in some])
        for places, out in ((masks, inside), ([np.asarray(mask)[:, ::-1] for mask in masks], mirrored)):
            weights = np.stack([np.asarray(places[n], np.float64).ravel() for n in some])
            weights /= weights.sum(1, keepdims=True)
            difference = (own * weights).sum(1) - reference @ weights.T  # [normals, lesions]
            out.append((difference > tie).mean(0) + 0.5 * (np.abs(difference) <= tie).mean(0))
    return np.concatenate(inside), np.concatenate(mirrored)


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
    regions = list(_regions(masks))
    overlap = np.concatenate([share for _, share in regions]) / sum(found for found, _ in regions)
    outside = np.concatenate([~np.asarray(mask, bool).ravel() for mask in masks])
    values = np.concatenate([np.asarray(m, np.float64).ravel() for m in maps])
    return _overlap_area(values, overlap, outside, limit)


def _regions(masks: Sequence[Mask]) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Yield the number of regions of each mask, and what each pixel [H*W] counts in the overlap of its region."""
    for mask in masks:
        labels, found = ndimage.label(mask, structure=np.ones((3, 3), int))
        size = np.bincount(labels.ravel(), minlength=found + 1).astype(np.float64)
        size[0] = np.inf  # outside lesions: no overlap
        yield found, (1.0 / size)[labels].ravel()


def _overlap_area(
    values: NDArray[np.float64], overlap: NDArray[np.float64], outside: NDArray[Any], limit: float
) -> float:
    """Compute the area under overlap against false-positive rate, divided by the limit.

    Args:
        values: [n] map values.
        overlap: [n] what each contributes to the mean overlap; the sum is 1.
        outside: [n] number of pixels outside lesions behind each value, or whether there is one.
        limit: highest false-positive rate, in (0, 1].
    """
    if not outside.any():
        raise InputError("every pixel lies in a lesion; a false-positive rate needs normal pixels")
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
    return float(np.mean(pointing_hits(masks, maps, tolerance)))


def pointing_hits(masks: Sequence[Mask], maps: Sequence[Map], tolerance: float = 0.0) -> NDArray[np.bool_]:
    """Return for every image with a lesion, in order, whether its map points at it [n]; arguments of `pointing_game`."""
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise InputError(f"the tolerance must be 0 pixels or more, got {tolerance}")
    _check(masks, maps)
    hits = []
    for mask, values in zip(masks, maps, strict=True):
        if np.any(mask):
            y, x = np.unravel_index(int(np.argmax(values)), values.shape)
            rows, columns = np.nonzero(mask)
            hits.append(float(((rows - y) ** 2 + (columns - x) ** 2).min()) <= tolerance**2)
    return np.array(hits)


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


def _check_one_size(maps: Sequence[Map]) -> None:
    """Raise InputError unless all maps have one size."""
    sizes = sorted({np.shape(values) for values in maps})
    if len(sizes) > 1:
        raise InputError(
            f"the same place of different images is compared, so all maps must have one size, not {sizes[0]} and {sizes[1]}"
        )
