"""Region overlap and pointing game against naive versions: every threshold by hand, regions by flood fill."""

import math
from itertools import pairwise

import numpy as np
import pytest

from monai_wscxr.errors import InputError
from monai_wscxr.evaluation.localisation import (
    boxes_to_mask,
    constant_map,
    constant_map_metrics,
    localisation_metrics,
    place_percentiles,
    pointing_game,
    region_overlap,
)
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


def with_normals(masks, maps):
    """Return masks and maps with two normal images behind them."""
    rng = np.random.default_rng(1)
    return [*masks, *[np.zeros((6, 7), bool)] * 2], [*maps, *rng.normal(size=(2, 6, 7))]


@pytest.mark.parametrize("name", ["random", "tied", "constant", "perfect"])
def test_constant_map_counts_pixels_as_repeated_maps_would(name):
    masks, maps = with_normals(*cases()[name])
    repeated = [constant_map(maps).astype(np.float32)] * len(masks)
    found = constant_map_metrics(masks, repeated)
    assert found["auroc"] == pytest.approx(pixel_auroc(masks, repeated), abs=1e-12)
    assert found["aupro"] == pytest.approx(naive_overlap(masks, repeated, 0.3), abs=1e-12)


def test_constant_map_by_hand():
    left, none = np.zeros((1, 4), bool), np.zeros((1, 4), bool)
    left[0, 0] = True
    maps = [np.array([[4.0, 1.0, 0.0, 0.0]]), np.array([[0.0, 3.0, 2.0, 0.0]])]
    assert constant_map(maps).tolist() == [[2.0, 2.0, 1.0, 0.0]]
    found = localisation_metrics([left, none], maps)
    # the lesion pixel has the value 2; of the seven others two have it as well, one in either image: once its own place
    assert found["constant_map"]["auroc"] == pytest.approx((4 + 3 / 2) / 7)
    assert found["auroc"] == 1.0
    assert found["pointing_game"] == found["constant_map"]["pointing_game"] == 1.0  # the first of equal values
    # overlap reaches 1 where three of seven normal pixels are above, so the line to 0.3 has the height 0.7
    assert found["constant_map"]["aupro"] == pytest.approx(0.35)


def test_place_percentiles_by_hand():
    lesion, none = np.zeros((2, 4), bool), np.zeros((2, 4), bool)
    lesion[0, :2] = True  # mean of the lesion's map: 3; of the mirrored place: 1
    image = np.array([[2.0, 4.0, 0.0, 2.0], [9.0, 9.0, 9.0, 9.0]])
    normals = [np.full((2, 4), value) for value in (0.0, 1.0, 2.0, 3.0, 5.0)]
    inside, mirrored = place_percentiles([none, lesion, *[none] * 4], [normals[0], image, *normals[1:]])
    assert inside.tolist() == [(3 + 0.5) / 5]
    assert mirrored.tolist() == [pytest.approx((1 + 0.5) / 5)]
    alike = place_percentiles([lesion, none, none], [0.1 * np.ones((2, 4))] * 3)
    assert [part.tolist() for part in alike] == [[0.5], [0.5]]
    assert place_percentiles([lesion], [image]) == (None, None)


def test_percentiles_of_many_images_equal_those_of_one_at_a_time():
    rng = np.random.default_rng(2)
    masks = [rng.random((6, 8)) < 0.2 for _ in range(40)]
    masks[0][:] = masks[39][:] = False
    maps = list(rng.normal(size=(40, 6, 8)).astype(np.float32))
    inside, mirrored = place_percentiles(masks, maps)
    chosen = [n for n, mask in enumerate(masks) if mask.any()]
    normals = [n for n, mask in enumerate(masks) if not mask.any()]
    for found, turned in ((inside, False), (mirrored, True)):
        expected = []
        for n in chosen:
            place = masks[n][:, ::-1] if turned else masks[n]
            expected.append(np.mean([maps[n][place].mean() > maps[m][place].mean() for m in normals]))
        assert found.tolist() == pytest.approx(expected)


def test_a_map_that_shows_only_how_abnormal_a_picture_is_has_no_gap():
    rng = np.random.default_rng(3)
    lesion, none = np.zeros((6, 8), bool), np.zeros((6, 8), bool)
    lesion[2:4, 1:3] = True
    normals = list(rng.normal(size=(120, 6, 8)))
    high, where = [2 + values for values in normals[:60]], [2 * lesion + values for values in normals[:60]]
    masks = [lesion] * 60 + [none] * 60
    everywhere, there = (localisation_metrics(masks, [*maps, *normals[60:]]) for maps in (high, where))
    assert everywhere["percentile"] > 0.9
    assert abs(everywhere["gap"]) < 0.1
    assert there["percentile"] > 0.9
    assert there["gap"] > 0.3


def test_all_figures_together():
    masks, maps = with_normals(*cases()["random"])
    inside, mirrored = place_percentiles(masks, maps)
    assert inside.shape == mirrored.shape == (2,)  # one of the three images shows no lesion
    found = localisation_metrics(masks, maps, ["b", "a", "normal", "normal", "normal"])
    findings = found.pop("findings")
    constant = constant_map(maps)
    assert found == {
        "auroc": pixel_auroc(masks, maps),
        "aupro": region_overlap(masks, maps),
        "pointing_game": pointing_game(masks, maps),
        "constant_map": {
            **constant_map_metrics(masks, maps),
            "pointing_game": pointing_game(masks, [constant] * 5),
        },
        "percentile": inside.mean(),
        "mirrored_percentile": mirrored.mean(),
        "gap": pytest.approx(inside.mean() - mirrored.mean()),
    }
    assert list(findings) == ["a", "b"]
    for number, name in enumerate("ba"):
        assert findings[name] == {
            "images": 1,
            "pointing_game": pointing_game(masks[number : number + 1], maps[number : number + 1]),
            "constant_map": {"pointing_game": pointing_game(masks[number : number + 1], [constant])},
            "percentile": inside[number],
            "mirrored_percentile": mirrored[number],
            "gap": inside[number] - mirrored[number],
        }
    assert "findings" not in localisation_metrics(masks, maps, ["a", "a", "normal", "normal", "normal"])
    alone = localisation_metrics(masks[:2], maps[:2])
    assert alone["percentile"] is alone["mirrored_percentile"] is alone["gap"] is None


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
    with pytest.raises(InputError, match=r"one size, not \(2, 2\) and \(3, 3\)"):
        localisation_metrics([mask, mask[:2, :2]], [values, values[:2, :2]])
    with pytest.raises(InputError, match="tolerance"):
        pointing_game([mask], [values], -1)
