"""The defects of CutPaste (Li et al., CVPR 2021): parts of a radiograph, pasted elsewhere in it."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF


def cut(image: Tensor, generator: torch.Generator) -> Tensor:
    """Cut out a rectangle of 2 to 15 % of the area, its sides in a log-uniform ratio from 0.3 to 3.3; jittered.

    Args:
        image: [1, H, W] in [0, 1].
        generator: source of all random choices.

    Returns:
        The patch [1, h, w].
    """
    height, width = image.shape[1:]
    area = uniform(0.02, 0.15, generator) * height * width
    ratio = math.exp(uniform(math.log(0.3), math.log(3.3), generator))
    h = min(max(1, round(math.sqrt(area * ratio))), height)
    w = min(max(1, round(math.sqrt(area / ratio))), width)
    y, x = place(height - h, generator), place(width - w, generator)
    return jitter(image[:, y : y + h, x : x + w], generator)


def cutpaste(image: Tensor, generator: torch.Generator) -> Tensor:
    """Cut out a rectangle of 2 to 15 % of the area and paste it elsewhere, with jittered brightness and contrast.

    Args:
        image: [1, H, W] in [0, 1].
        generator: source of all random choices.
    """
    height, width = image.shape[1:]
    patch = cut(image, generator)
    h, w = patch.shape[1:]
    y, x = place(height - h, generator), place(width - w, generator)
    out = image.clone()
    out[:, y : y + h, x : x + w] = patch
    return out


def scar(image: Tensor, generator: torch.Generator) -> Tensor:
    """Cut out a thin rectangle and paste it elsewhere, jittered and rotated by up to 45 degrees.

    In an image of 256 pixels the rectangle is 2 to 16 pixels wide and 10 to 25 pixels long, as published; its size scales with
    that of the image.

    Args:
        image: [1, H, W] in [0, 1].
        generator: source of all random choices.
    """
    height, width = image.shape[1:]
    scale = min(height, width) / 256
    w = max(1, round(uniform(2, 16, generator) * scale))
    h = max(2, round(uniform(10, 25, generator) * scale))
    y, x = place(height - h, generator), place(width - w, generator)
    patch = jitter(image[:, y : y + h, x : x + w], generator)
    angle = uniform(-45, 45, generator)
    both = TF.rotate(torch.cat([patch, torch.ones_like(patch)]), angle, TF.InterpolationMode.BILINEAR, expand=True)
    patch, cover = both[:1, :height, :width], both[1:, :height, :width]
    h, w = patch.shape[1:]
    y, x = place(height - h, generator), place(width - w, generator)
    out = image.clone()
    out[:, y : y + h, x : x + w] = patch * (cover > 0.5) + out[:, y : y + h, x : x + w] * (cover <= 0.5)
    return out


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """Draw a number from [low, high)."""
    return low + (high - low) * float(torch.rand((), generator=generator))


def place(room: int, generator: torch.Generator) -> int:
    """Draw a whole number from 0 to `room`."""
    return int(torch.randint(room + 1, (), generator=generator)) if room > 0 else 0


def jitter(image: Tensor, generator: torch.Generator) -> Tensor:
    """Jitter brightness and contrast by up to 10 % each; radiographs have no hue or saturation."""
    brightness, contrast = (uniform(0.9, 1.1, generator) for _ in range(2))
    bright = image * brightness
    return ((bright - bright.mean()) * contrast + bright.mean()).clamp(0, 1)
