"""Perturbations: shape, range and repeatability, and what each of them changes."""

import random

import pytest
import torch

from monai_wscxr.data.perturbation import PERTURBATIONS, SHIFTS

ALL = {**PERTURBATIONS, **SHIFTS}


def picture():
    return torch.rand(1, 96, 80, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", [*PERTURBATIONS, *SHIFTS])
def test_shape_range_and_repetition(name):
    image = picture()
    before = image.clone()
    result = ALL[name](image, random.Random(1))
    assert result.shape == image.shape
    assert result.dtype == torch.float32
    assert 0 <= float(result.min()) <= float(result.max()) <= 1
    assert not torch.equal(result, image)
    assert torch.equal(image, before)
    assert torch.equal(result, ALL[name](image, random.Random(1)))


@pytest.mark.parametrize("name", ["collimated", "lettered", "shifted", *SHIFTS])
def test_random_ones_differ_between_images(name):
    rng = random.Random(1)
    results = [ALL[name](picture(), rng) for _ in range(4)]
    assert any(not torch.equal(results[0], other) for other in results[1:])


def test_borders_and_letters_leave_the_middle():
    image = picture()
    middle = (..., slice(10, -10), slice(12, -12))
    for name in ("collimated", "lettered"):
        changed = (PERTURBATIONS[name](image, random.Random(2)) - image).abs() > 0.01
        assert not changed[middle].any()
        assert changed.any()
    assert torch.equal(PERTURBATIONS["flip"](image, random.Random(0))[..., 0], image[..., -1])


def test_what_the_shifts_do():
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(80.0), indexing="ij")
    ramp = (x / 79)[None]
    wide = SHIFTS["widened"](torch.ones(1, 96, 80), random.Random(2))
    assert float(wide[..., 0, :].max()) < 0.05  # air beyond the old field of view
    assert 0.6 < float(wide.mean()) < 0.85
    framed = SHIFTS["reframed"](ramp, random.Random(2))[0, 48]
    assert 0 <= float(framed[0]) <= 0.125
    assert 0.875 <= float(framed[-1]) <= 1
    assert bool((framed.diff() > 0).all())
    turned = SHIFTS["rotated"](ramp, random.Random(2))[0]
    angle = torch.atan2(turned[60, 40] - turned[36, 40], turned[48, 52] - turned[48, 28]).rad2deg().abs()
    assert 3 <= float(angle) <= 7
    disc = (((y - 48) ** 2 + (x - 40) ** 2) < 400).float()[None]
    assert float(SHIFTS["processed"](0.3 + 0.3 * disc, random.Random(2)).std()) > float((0.3 * disc).std())
