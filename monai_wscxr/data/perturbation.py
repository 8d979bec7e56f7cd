"""Changes of a radiograph that say nothing about disease: what a score must hardly react to.

Each function takes a float image [1, H, W] in [0, 1], air dark, and a random generator, and returns the same shape and range.
They serve cross-validation on training images and tests; training never sees them.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

Perturbation = Callable[[Tensor, random.Random], Tensor]


def flip(image: Tensor, rng: random.Random) -> Tensor:
    """Left and right exchanged."""
    return image.flip(-1)


def brighter(image: Tensor, rng: random.Random) -> Tensor:
    """Gamma 0.7."""
    return image**0.7


def darker(image: Tensor, rng: random.Random) -> Tensor:
    """Gamma 1.4."""
    return image**1.4


def flatter(image: Tensor, rng: random.Random) -> Tensor:
    """Contrast times 0.7: a wide window."""
    return 0.15 + 0.7 * image


def harder(image: Tensor, rng: random.Random) -> Tensor:
    """Contrast times 1.3, clipped: a narrow window."""
    return (0.5 + 1.3 * (image - 0.5)).clamp(0, 1)


def cropped(image: Tensor, rng: random.Random) -> Tensor:
    """7 % cut off on every side, then back to the old size."""
    height, width = image.shape[-2:]
    top, left = round(0.07 * height), round(0.07 * width)
    return TF.resize(image[..., top : height - top, left : width - left], [height, width], antialias=True)


def collimated(image: Tensor, rng: random.Random) -> Tensor:
    """Black borders of up to 9 % on every side."""
    height, width = image.shape[-2:]
    top, bottom, left, right = (rng.uniform(0, 0.09) for _ in range(4))
    shuttered = torch.zeros_like(image)
    rows = slice(int(top * height), height - int(bottom * height))
    columns = slice(int(left * width), width - int(right * width))
    shuttered[..., rows, columns] = image[..., rows, columns]
    return shuttered


def lettered(image: Tensor, rng: random.Random) -> Tensor:
    """A white side marker in an upper corner and a five-letter mark in a lower one."""
    height, width = image.shape[-2:]
    picture = Image.fromarray((image[0].numpy() * 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    on_left = rng.random() < 0.5
    marker = int(width * (0.03 if on_left else 0.88)), int(height * 0.04)
    mark = int(width * (0.70 if on_left else 0.03)), int(height * 0.92)
    draw.text(marker, rng.choice("RL"), fill=255, font=ImageFont.load_default(size=max(6, height // 14)))
    letters = "".join(rng.choice("ABDK0123456789") for _ in range(5))
    draw.text(mark, letters, fill=230, font=ImageFont.load_default(size=max(6, height // 22)))
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)[None]


def shifted(image: Tensor, rng: random.Random) -> Tensor:
    """Moved by up to 5 % in each direction; the edge repeats."""
    height, width = image.shape[-2:]
    reach = max(1, round(0.05 * max(height, width)))
    padded = F.pad(image[None], [reach] * 4, mode="replicate")[0]
    top, left = rng.randint(0, 2 * reach), rng.randint(0, 2 * reach)
    return padded[..., top : top + height, left : left + width]


def blurred(image: Tensor, rng: random.Random) -> Tensor:
    """Gaussian of 0.4 % of the image's height: a coarser detector."""
    sigma = max(0.3, 0.004 * image.shape[-2])
    return TF.gaussian_blur(image, [7, 7], [sigma, sigma])


PERTURBATIONS: dict[str, Perturbation] = {
    function.__name__: function
    for function in (flip, brighter, darker, flatter, harder, cropped, collimated, lettered, shifted, blurred)
}
