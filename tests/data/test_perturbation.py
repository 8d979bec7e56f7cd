"""Perturbations: shape, range and repeatability, and what each of them changes."""

import random

import pytest
import torch

from monai_wscxr.data.perturbation import PERTURBATIONS


def picture():
    return torch.rand(1, 96, 80, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_shape_range_and_repetition(name):
    image = picture()
    before = image.clone()
    result = PERTURBATIONS[name](image, random.Random(1))
    assert result.shape == image.shape
    assert result.dtype == torch.float32
    assert 0 <= float(result.min()) <= float(result.max()) <= 1
    assert not torch.equal(result, image)
    assert torch.equal(image, before)
    assert torch.equal(result, PERTURBATIONS[name](image, random.Random(1)))


@pytest.mark.parametrize("name", ["collimated", "lettered", "shifted"])
def test_random_ones_differ_between_images(name):
    rng = random.Random(1)
    results = [PERTURBATIONS[name](picture(), rng) for _ in range(4)]
    assert any(not torch.equal(results[0], other) for other in results[1:])


def test_borders_and_letters_leave_the_middle():
    image = picture()
    middle = (..., slice(10, -10), slice(12, -12))
    for name in ("collimated", "lettered"):
        changed = (PERTURBATIONS[name](image, random.Random(2)) - image).abs() > 0.01
        assert not changed[middle].any()
        assert changed.any()
    assert torch.equal(PERTURBATIONS["flip"](image, random.Random(0))[..., 0], image[..., -1])
