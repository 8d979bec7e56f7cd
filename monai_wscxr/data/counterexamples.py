"""Images that are no upright frontal chest radiographs, made from one that is, or from random numbers alone.

The check of `model.chest_check` learns from them. Each function takes a radiograph [1, S, S] in [0, 1] and a random generator
and returns an image of the same shape and range.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_wscxr.data.perturbation import Perturbation

_FINE = 3  # enlargement before the low byte is taken: a detector has about this many pixels per pixel of the network
_LARGEST = 4095.0  # of 12 bits


def inverted(image: Tensor, rng: random.Random) -> Tensor:
    """Exchange black and white."""
    return 1 - image


def upside_down(image: Tensor, rng: random.Random) -> Tensor:
    """Exchange top and bottom."""
    return image.flip(-2)


def turned_left(image: Tensor, rng: random.Random) -> Tensor:
    """Rotate by 90 degrees, counterclockwise."""
    return image.rot90(1, (-2, -1))


def turned_right(image: Tensor, rng: random.Random) -> Tensor:
    """Rotate by 90 degrees, clockwise."""
    return image.rot90(-1, (-2, -1))


def low_byte(image: Tensor, rng: random.Random) -> Tensor:
    """Keep the lower 8 of 12 bits."""
    size = image.shape[-1]
    fine = F.interpolate(image[None], size=_FINE * size, mode="bicubic", align_corners=False).clamp(0, 1) * _LARGEST
    kept = (fine + 4 * torch.randn(fine.shape, generator=_generator(rng))).clamp(0, _LARGEST).floor() % 256
    return F.interpolate(kept / 255, size=size, mode="area")[0]


def white_noise(image: Tensor, rng: random.Random) -> Tensor:
    """Return noise without correlation between pixels."""
    return torch.rand(image.shape, generator=_generator(rng))


def gradient(image: Tensor, rng: random.Random) -> Tensor:
    """Return a linear gradient in a random direction."""
    angle, size = rng.uniform(0, 2 * math.pi), image.shape[-1]
    axis = torch.linspace(-1, 1, size)
    return _stretched(math.cos(angle) * axis + math.sin(angle) * axis[:, None])[None]


def clouds(image: Tensor, rng: random.Random) -> Tensor:
    """Return smooth noise: random values on a coarse grid, interpolated."""
    grid = torch.rand(1, 1, *2 * (rng.choice((4, 8, 16, 32)),), generator=_generator(rng))
    return F.interpolate(grid, size=image.shape[-2:], mode="bicubic", align_corners=False)[0].clamp(0, 1)


def pink_noise(image: Tensor, rng: random.Random) -> Tensor:
    """Return noise whose amplitude falls with the frequency, as that of photographs does."""
    size = image.shape[-1]
    frequency = torch.fft.fftfreq(size)
    distance = torch.hypot(frequency[:, None], frequency).clamp(min=1 / size)
    spectrum = torch.fft.fft2(torch.randn(size, size, generator=_generator(rng)))
    return _stretched(torch.fft.ifft2(spectrum / distance ** rng.uniform(0.7, 2.0)).real)[None]


CHEST_COUNTEREXAMPLES: Mapping[str, Perturbation] = {
    function.__name__: function for function in (inverted, upside_down, turned_left, turned_right, low_byte)
}
"""Counterexamples that show a chest, by name."""

OTHER_COUNTEREXAMPLES: Mapping[str, Perturbation] = {
    function.__name__: function for function in (white_noise, gradient, clouds, pink_noise)
}
"""Counterexamples that do not depend on the radiograph, by name."""


def _generator(rng: random.Random) -> torch.Generator:
    return torch.Generator().manual_seed(rng.getrandbits(48))


def _stretched(image: Tensor) -> Tensor:
    """Map the smallest value to 0 and the largest to 1."""
    low, high = image.min(), image.max()
    return (image - low) / (high - low)
