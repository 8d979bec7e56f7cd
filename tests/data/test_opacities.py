"""Synthetic opacities: inside the lungs, brighter only, and determined by the seed."""

import random

import numpy as np
import pytest
import torch

from monai_wscxr.data.opacities import lung_fields, with_opacity
from monai_wscxr.data.phantom import make_phantom

SIZE = 128


@pytest.fixture(scope="module")
def chest():
    """A normal phantom [1, S, S]."""
    return torch.from_numpy(np.array(make_phantom(0, size=SIZE).image, dtype=np.float32))[None]


def test_lungs_are_two_dark_regions_on_either_side(chest):
    lungs = lung_fields(chest)
    assert lungs.shape == (160, 160)
    left, right = lungs[:, :80].mean(), lungs[:, 80:].mean()
    assert 0.05 < left < 0.6
    assert 0.05 < right < 0.6
    assert not lungs[0].any()
    assert not lungs[:, 0].any()
    small = torch.nn.functional.interpolate(chest[None], size=(160, 160), mode="area")[0, 0].numpy()
    middle = small[20:140, 20:140]
    assert small[lungs].mean() < np.median(middle)


def test_a_picture_without_lungs_is_lung_everywhere():
    assert lung_fields(torch.full((1, 64, 64), 0.5)).all()
    assert lung_fields(torch.zeros(1, 40, 70)).all()


def test_opacities_brighten_the_lungs_and_little_else(chest):
    lungs = torch.from_numpy(lung_fields(chest)).float()[None, None]
    near = torch.nn.functional.max_pool2d(lungs, 25, 1, 12)
    away = torch.nn.functional.interpolate(near, size=(SIZE, SIZE))[0] == 0
    changed = []
    for seed in range(40):
        picture = with_opacity(chest, random.Random(seed))
        assert picture.shape == chest.shape
        assert picture.dtype == torch.float32
        assert float(picture.min()) >= 0
        assert float(picture.max()) <= 1
        difference = picture - chest
        assert float(difference.min()) >= -1e-6
        assert float(difference[away].max()) < 0.02
        changed.append(float((difference > 0.02).float().mean()))
    assert min(changed) < 0.02  # a spot
    assert max(changed) > 0.15  # whole lungs
    assert np.median(changed) > 0.01


def test_the_seed_determines_the_opacity(chest):
    first, again, other = (with_opacity(chest, random.Random(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("image", [torch.zeros(1, 64, 64), torch.ones(1, 64, 64), torch.full((1, 33, 90), 0.3)])
def test_pictures_without_contrast_stay_as_they_are(image):
    for seed in range(10):
        torch.testing.assert_close(with_opacity(image, random.Random(seed)), image)
