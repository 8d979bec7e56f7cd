"""Changes of a radiograph that say nothing about disease: what a score must hardly react to.

Each function takes a float image [1, H, W] in [0, 1], air dark, and a random generator, and returns the same shape and range.
`altered` makes the copies that training learns from; the others serve cross-validation and tests, training never sees them.
"""

from __future__ import annotations

import math
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


def rotated(image: Tensor, rng: random.Random) -> Tensor:
    """Turned by 3 to 7 degrees either way; the edge repeats."""
    return _turned(image, rng.choice((-1, 1)) * rng.uniform(3, 7))


def widened(image: Tensor, rng: random.Random) -> Tensor:
    """A field of view wider by 5 to 12 % on every side, on its own, with air beyond what was seen before."""
    height, width = image.shape[-2:]
    top, bottom, left, right = (rng.uniform(0.05, 0.12) for _ in range(4))
    sides = [round(left * width), round(right * width), round(top * height), round(bottom * height)]
    return TF.resize(F.pad(image, sides), [height, width], antialias=True)


def reframed(image: Tensor, rng: random.Random) -> Tensor:
    """Up to 12 % cut off on every side, on its own, then back to the old size, which changes the proportions."""
    height, width = image.shape[-2:]
    top, bottom, left, right = (rng.uniform(0, 0.12) for _ in range(4))
    rows = slice(round(top * height), height - round(bottom * height))
    columns = slice(round(left * width), width - round(right * width))
    return TF.resize(image[..., rows, columns], [height, width], antialias=True)


def processed(image: Tensor, rng: random.Random) -> Tensor:
    """Another detector and its software: noise, sharpened edges (unsharp mask), another gamma."""
    sigma = max(0.5, 0.008 * image.shape[-2])
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(rng.randrange(2**31)))
    noisy = image + 0.02 * noise
    sharp = noisy + rng.uniform(0.5, 1.5) * (noisy - TF.gaussian_blur(noisy, [9, 9], [sigma, sigma]))
    return sharp.clamp(0, 1) ** rng.uniform(0.65, 1.5)


def reacquired(image: Tensor, rng: random.Random) -> Tensor:
    """Another framing, another angle and another detector at once."""
    return processed(reframed(rotated(image, rng), rng), rng)


def altered(image: Tensor, rng: random.Random) -> Tensor:
    """The same chest as another examination might have shown it: a bit of everything, less of each than `SHIFTS` have.

    Mirrored or not; every side moved by -6 to 10 % of the image (outwards there is air) and turned by up to 5 degrees;
    sometimes collimated; softer or sharper; noise; gamma 0.7 to 1.4.
    """
    height, width = image.shape[-2:]
    if rng.random() < 0.5:
        image = image.flip(-1)
    moved = [round(rng.uniform(-0.06, 0.10) * side) for side in (height, height, width, width)]
    top, bottom, left, right = moved
    outwards = [max(0, -side) for side in (left, right, top, bottom)]
    image = F.pad(image, outwards)
    rows = slice(max(0, top), image.shape[-2] - max(0, bottom))
    columns = slice(max(0, left), image.shape[-1] - max(0, right))
    image = TF.resize(image[..., rows, columns], [height, width], antialias=True)
    image = _turned(image, rng.uniform(-5, 5))
    if rng.random() < 0.3:
        image = collimated(image, rng)
    sigma = max(0.5, 0.006 * height)
    soft = TF.gaussian_blur(image, [9, 9], [sigma, sigma])
    image = image + rng.uniform(-0.6, 1.0) * (image - soft)
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(rng.randrange(2**31)))
    image = image + rng.uniform(0, 0.02) * noise
    return image.clamp(0, 1) ** math.exp(rng.uniform(-0.35, 0.35))


def _turned(image: Tensor, degrees: float) -> Tensor:
    reach = max(1, round(0.1 * max(image.shape[-2:])))
    padded = F.pad(image[None], [reach] * 4, mode="replicate")
    turned = TF.rotate(padded, degrees, TF.InterpolationMode.BILINEAR)[0]
    return turned[..., reach:-reach, reach:-reach].clamp(0, 1)


PERTURBATIONS: dict[str, Perturbation] = {
    function.__name__: function
    for function in (flip, brighter, darker, flatter, harder, cropped, collimated, lettered, shifted, blurred)
}
# stronger ones and mixtures, which nothing was ever chosen or trained with: the stand-in for images of another hospital
SHIFTS: dict[str, Perturbation] = {
    function.__name__: function for function in (rotated, widened, reframed, processed, reacquired)
}
