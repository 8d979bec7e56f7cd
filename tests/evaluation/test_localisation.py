"""Region overlap and pointing game against naive versions: every threshold by hand, regions by flood fill."""

import math
from itertools import pairwise

import numpy as np
import pytest

from monai_wscxr.errors import InputError
from monai_wscxr.evaluation.localisation import boxes_to_mask, localisation_metrics, pointing_game, region_overlap
from monai_wscxr.evaluation.metrics import pixel_auroc


def flood_regions(mask):
    """Find 8-connected regions by flood fill, as sets of pixels."""
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)}
    regions = []
    while left:
        open_, region = [left.pop()], set()
        while open_:
            y, x = open_.pop()
            region.add((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            open_ += near
        regions.append(region)
    return regions


def naive_overlap(masks, maps, limit):
    """Compute the curve over all distinct values, then the area by fine steps between points."""
    regions = [(n, region) for n, mask in enumerate(masks) for region in flood_regions(mask)]
    outside = [(n, y, x) for n, mask in enumerate(masks) for y, x in zip(*np.nonzero(~mask), strict=True)]
    points = [(0.0, 0.0)]
    for t in sorted({float(v) for m in maps for v in m.ravel()}, reverse=True):
        share = [sum(maps[n][p] >= t for p in region) / len(region) for n, region in regions]
        rate = sum(maps[n][y, x] >= t for n, y, x in outside) / len(outside)
        points.append((rate, sum(share) / len(share)))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 >= limit:
            break
        if x1 > limit:
            y1 = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            x1 = limit
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


def cases():
    rng = np.random.default_rng(0)
    masks = [np.zeros((6, 7), bool) for _ in range(3)]
    masks[0][0:2, 0:2] = masks[0][4, 5] = True
    masks[1][2, 2] = masks[1][3, 3] = masks[1][5, 0:4] = True  # joined at a corner, and a second region
    smooth = [rng.normal(size=(6, 7)) + 1.5 * mask for mask in masks]
    return {
        "random": (masks, smooth),
        "tied": (masks, [np.round(m) for m in smooth]),
        "constant": (masks, [np.ones((6, 7)) for _ in masks]),
        "perfect": (masks, [mask.astype(float) for mask in masks]),
        "upside down": (masks, [-m for m in smooth]),
        "huge": (masks, [1e300 * m for m in smooth]),
    }


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("name", cases())
def test_region_overlap_equals_the_naive_one(name, limit):
    masks, maps = cases()[name]
    assert region_overlap(masks, maps, limit) == pytest.approx(naive_overlap(masks, maps, limit), abs=1e-12)


def test_region_overlap_by_hand():
    masks, maps = cases()["perfect"]
    assert region_overlap(masks, maps) == 1.0
    masks, maps = cases()["constant"]
    assert region_overlap(masks, maps, 0.3) == pytest.approx(0.15)  # a straight line from (0, 0) to (1, 1)
    small, large = np.zeros((4, 10), bool), np.zeros((4, 10), bool)
    small[0, 0], large[:, :5] = True, True
    found_small = [small.astype(float), np.zeros((4, 10))]
    assert region_overlap([small, large], found_small) == pytest.approx(
        0.5 + 0.5 * 0.15
    )  # one region of two, however small


def test_pointing_game_takes_the_first_maximum():
    mask = np.zeros((5, 5), bool)
    mask[2, 3] = True
    hit, miss, near = np.zeros((5, 5)), np.zeros((5, 5)), np.zeros((5, 5))
    hit[2, 3], miss[0, 0], near[3, 4] = 1, 1, 1
    normal = np.zeros((5, 5), bool)
    assert pointing_game([mask, mask, mask, normal], [hit, miss, near, miss]) == pytest.approx(1 / 3)
    assert pointing_game([mask, mask, mask], [hit, miss, near], tolerance=1.5) == pytest.approx(2 / 3)
    assert pointing_game([mask], [np.zeros((5, 5))]) == 0.0  # all equal: the first pixel
    both = hit.copy()
    both[0, 0] = 1
    assert pointing_game([mask], [both]) == 0.0


def test_boxes_become_masks_by_pixel_centres():
    mask = boxes_to_mask([(10, 20, 20, 10), (90, 90, 30, 30)], (100, 100), (10, 10))
    expected = np.zeros((10, 10), bool)
    expected[2, 1:3] = expected[9, 9] = True
    assert (mask == expected).all()
    wide = boxes_to_mask([(0, 0, 100, 50)], (100, 200), (4, 4))
    assert wide.tolist() == [[True, True, False, False]] * 2 + [[False] * 4] * 2
    for box in [(10, 10, 0, 5), (-20, 0, 10, 10), (100, 0, 5, 5), (0, 0, math.nan, 5)]:
        with pytest.raises(InputError, match="no area in an image"):
            boxes_to_mask([box], (100, 100), (10, 10))


def test_all_figures_together():
    masks, maps = cases()["random"]
    assert localisation_metrics(masks, maps) == {
        "auroc": pixel_auroc(masks, maps),
        "aupro": region_overlap(masks, maps),
        "pointing_game": pointing_game(masks, maps),
    }


def test_what_cannot_be_judged_is_refused():
    mask, values = np.eye(3, dtype=bool), np.ones((3, 3))
    with pytest.raises(InputError, match="no mask shows a lesion"):
        pointing_game([~np.ones((3, 3), bool)], [values])
    with pytest.raises(InputError, match="needs normal pixels"):
        region_overlap([np.ones((3, 3), bool)], [values])
    with pytest.raises(InputError, match="does not fit"):
        region_overlap([mask], [np.ones((2, 2))])
    with pytest.raises(InputError, match="1 masks but 2"):
        pointing_game([mask], [values, values])
    with pytest.raises(InputError, match="NaN or Inf"):
        region_overlap([mask], [np.full((3, 3), np.nan)])
    for limit in (0, -1, 1.1, math.nan):
        with pytest.raises(InputError, match="limit must lie"):
            region_overlap([mask], [values], limit)
    with pytest.raises(InputError, match="tolerance"):
        pointing_game([mask], [values], -1)
