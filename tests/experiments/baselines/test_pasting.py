"""The defects of CutPaste and AnatPaste: their sizes as published, and where they lie."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from monai_wscxr.data.phantom import make_phantom
from monai_wscxr.experiments.baselines.anatpaste import anatpaste, equalised, lung_mask
from monai_wscxr.experiments.baselines.pasting import cut, cutpaste, scar


def changed(function, seed, size=256):
    image = torch.rand(1, size, size, generator=torch.Generator().manual_seed(99))
    out = function(image, torch.Generator().manual_seed(seed))
    assert out.shape == image.shape
    assert 0 <= out.min() <= out.max() <= 1
    return image, out, (out != image)[0]


@pytest.mark.parametrize("seed", range(20))
def test_cutpaste_changes_one_rectangle_of_the_published_size(seed):
    _, _, where = changed(cutpaste, seed)
    rows, columns = where.any(dim=1).nonzero(), where.any(dim=0).nonzero()
    height, width = int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1
    assert 0.018 <= height * width / 256**2 <= 0.155
    assert 0.28 <= height / width <= 3.6
    assert where.float().sum() > 0.95 * height * width


@pytest.mark.parametrize("seed", range(20))
def test_a_scar_is_thin_and_small(seed):
    _, _, where = changed(scar, seed)
    rows, columns = where.any(dim=1).nonzero(), where.any(dim=0).nonzero()
    assert max(int(rows.max() - rows.min()), int(columns.max() - columns.min())) < 32
    assert 10 <= int(where.sum()) <= 16 * 25 + 80


def test_what_is_pasted_comes_from_the_image():
    image = torch.zeros(1, 64, 64)
    image[:, :, 32:] = 0.5
    for seed in range(10):
        out = cutpaste(image, torch.Generator().manual_seed(seed))
        assert out.max() <= 0.5 * 1.1 * 1.1 + 0.06  # brightness, then contrast about the mean
        assert torch.equal(image[:, :, 32:], torch.full((1, 64, 32), 0.5))  # the input is unchanged


def test_areas_and_ratios_are_spread_as_published():
    """Areas uniform in 2 to 15 %, the logarithm of the ratio uniform between those of 0.3 and 3.3."""
    image, generator = torch.zeros(1, 512, 512), torch.Generator().manual_seed(0)
    shapes = np.array([cut(image, generator).shape[1:] for _ in range(600)], dtype=float)
    areas = shapes.prod(1) / 512**2
    ratios = np.log(shapes[:, 0] / shapes[:, 1])
    low, high = math.log(0.3), math.log(3.3)
    assert stats.kstest(areas, stats.uniform(0.02, 0.13).cdf).pvalue > 0.01
    assert stats.kstest(ratios, stats.uniform(low, high - low).cdf).pvalue > 0.01
    assert stats.kstest(ratios, stats.uniform(math.log(0.5), math.log(4)).cdf).pvalue < 1e-6  # the test can fail


@pytest.fixture(scope="module")
def chests():
    """Six normal phantoms [1, 256, 256]."""
    return [torch.from_numpy(np.asarray(make_phantom(n, size=256).image, dtype=np.float32))[None] for n in range(6)]


def test_equalisation_is_that_of_the_definition():
    """Against the definition pixel by pixel: the mappings of the four nearest tiles, by the distance of their centres."""
    image, tiles, bins, clip = np.random.default_rng(0).random((24, 36)) ** 2, 3, 16, 0.1
    high, wide = 24 / tiles, 36 / tiles

    def mapped(row, column, value):
        row, column = min(max(row, 0), tiles - 1), min(max(column, 0), tiles - 1)
        tile = image[int(row * high) : int((row + 1) * high), int(column * wide) : int((column + 1) * wide)]
        counts = [sum(int(v * bins) == b for v in tile.ravel()) / tile.size for b in range(bins)]
        excess = sum(max(c - clip, 0) for c in counts)
        return sum(min(c, clip) + excess / bins for c in counts[: int(value * bins) + 1])

    found = equalised(image, clip, tiles, bins)
    for y, x in [(0, 0), (3, 5), (4, 6), (11, 18), (12, 17), (20, 35), (23, 30), (7, 29)]:
        down, right = (y + 0.5) / high - 0.5, (x + 0.5) / wide - 0.5
        row, column = math.floor(down), math.floor(right)
        v, u = down - row, right - column
        expected = sum(
            weight * mapped(row + i, column + j, image[y, x])
            for i, j, weight in ((0, 0, (1 - v) * (1 - u)), (0, 1, (1 - v) * u), (1, 0, v * (1 - u)), (1, 1, v * u))
        )
        assert found[y, x] == pytest.approx(expected, abs=1e-9), (y, x)


def test_lungs_are_dark_and_apart_from_the_border(chests):
    for chest in chests:
        image = chest[0].double().numpy()
        lungs = lung_mask(image).astype(bool)
        assert 0.1 < lungs.mean() < 0.6
        assert not lungs[[0, -1]].any()
        assert not lungs[:, [0, -1]].any()
        assert min(lungs[:, :128].mean(), lungs[:, 128:].mean()) > 0.1
        assert image[lungs].mean() < 0.75 * image[32:-32, 32:-32][~lungs[32:-32, 32:-32]].mean()


def test_a_picture_without_lungs_is_lung_everywhere():
    assert lung_mask(np.full((64, 64), 0.5)).all()


def test_anatpaste_stays_within_the_lungs(chests):
    for seed, chest in enumerate(chests * 3):
        lungs = torch.from_numpy(lung_mask(chest[0].double().numpy())) > 0
        before = chest.clone()
        out = anatpaste(chest, lungs, torch.Generator().manual_seed(seed))
        where = (out != chest)[0]
        assert where.any()
        assert not (where & ~lungs).any()
        assert 0 <= out.min() <= out.max() <= 1
        assert torch.equal(chest, before)
        again = anatpaste(chest, lungs, torch.Generator().manual_seed(seed))
        assert torch.equal(out, again)


def test_anatpaste_pastes_with_the_published_strength():
    """A patch of 1 on a picture that is 0 where lungs are: the pasted values are the strength, 150 to 254 of 255."""
    image = torch.zeros(1, 256, 256)
    image[:, :, 128:] = 1
    lungs = torch.zeros(256, 256, dtype=torch.bool)
    lungs[40:216, 20:110] = True
    strengths, sizes = [], []
    for seed in range(300):
        out = anatpaste(image, lungs, torch.Generator().manual_seed(seed))
        strengths.append(float(out[:, :, :128].max()))
        sizes.append(int((out[0, :, :128] > 0.01).sum()))
    # pasted values also depend on the patch's jitter (0.9 to 1) and on where it was cut from
    assert max(strengths) <= 254 / 255
    assert max(strengths) > 0.9
    assert 0.15 < np.mean([strength > 0.5 for strength in strengths]) < 0.9
    assert max(sizes) < 0.15 * 256**2
