"""Changes of a radiograph that are unrelated to disease, so a score should hardly react to them.

Each function takes a float image [1, H, W] in [0, 1] with dark air and a random generator, and returns the same shape and
range. Training learns from copies made by `altered`; the others are for cross-validation and tests and never used in training.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from monai_wscxr.system.lazy import LazyModule

if TYPE_CHECKING:
    from torchvision.transforms.v2 import functional as TF
else:
    TF = LazyModule("torchvision.transforms.v2.functional")

Perturbation = Callable[[Tensor, random.Random], Tensor]


def flip(image: Tensor, rng: random.Random) -> Tensor:
    """Exchange left and right."""
    return image.flip(-1)


def brighter(image: Tensor, rng: random.Random) -> Tensor:
    """Brighten by gamma 0.7."""
    return image**0.7


def darker(image: Tensor, rng: random.Random) -> Tensor:
    """Darken by gamma 1.4."""
    return image**1.4


def flatter(image: Tensor, rng: random.Random) -> Tensor:
    """Multiply the contrast by 0.7, as a wider window does."""
    return 0.15 + 0.7 * image


def harder(image: Tensor, rng: random.Random) -> Tensor:
    """Multiply the contrast by 1.3 and clip, as a narrower window does."""
    return (0.5 + 1.3 * (image - 0.5)).clamp(0, 1)


def cropped(image: Tensor, rng: random.Random) -> Tensor:
    """Cut off 7 % on every side and resize to the original size."""
    height, width = image.shape[-2:]
    top, left = round(0.07 * height), round(0.07 * width)
    return TF.resize(image[..., top : height - top, left : width - left], [height, width], antialias=True)


def collimated(image: Tensor, rng: random.Random) -> Tensor:
    """Blacken up to 9 % on every side."""
    height, width = image.shape[-2:]
    top, bottom, left, right = (rng.uniform(0, 0.09) for _ in range(4))
    shuttered = torch.zeros_like(image)
    rows = slice(int(top * height), height - int(bottom * height))
    columns = slice(int(left * width), width - int(right * width))
    shuttered[..., rows, columns] = image[..., rows, columns]
    return shuttered


def lettered(image: Tensor, rng: random.Random) -> Tensor:
    """Write a white side marker into an upper corner and a mark of five characters into a lower one."""
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
    """Shift by up to 5 % in each direction and repeat the edge."""
    height, width = image.shape[-2:]
    reach = max(1, round(0.05 * max(height, width)))
    padded = F.pad(image[None], [reach] * 4, mode="replicate")[0]
    top, left = rng.randint(0, 2 * reach), rng.randint(0, 2 * reach)
    return padded[..., top : top + height, left : left + width]


def blurred(image: Tensor, rng: random.Random) -> Tensor:
    """Blur by a Gaussian with a standard deviation of 0.4 % of the height, as a coarser detector does."""
    sigma = max(0.3, 0.004 * image.shape[-2])
    return TF.gaussian_blur(image, [7, 7], [sigma, sigma])


def rotated(image: Tensor, rng: random.Random) -> Tensor:
    """Rotate by 3 to 7 degrees in either direction and repeat the edge."""
    return _turned(image, rng.choice((-1, 1)) * rng.uniform(3, 7))


def widened(image: Tensor, rng: random.Random) -> Tensor:
    """Widen the field of view by 5 to 12 %, independently on every side, and fill the border with air."""
    height, width = image.shape[-2:]
    top, bottom, left, right = (rng.uniform(0.05, 0.12) for _ in range(4))
    sides = [round(left * width), round(right * width), round(top * height), round(bottom * height)]
    return TF.resize(F.pad(image, sides), [height, width], antialias=True)


def reframed(image: Tensor, rng: random.Random) -> Tensor:
    """Cut off up to 12 %, independently on every side, and resize to the original size, which changes the proportions."""
    height, width = image.shape[-2:]
    top, bottom, left, right = (rng.uniform(0, 0.12) for _ in range(4))
    rows = slice(round(top * height), height - round(bottom * height))
    columns = slice(round(left * width), width - round(right * width))
    return TF.resize(image[..., rows, columns], [height, width], antialias=True)


def processed(image: Tensor, rng: random.Random) -> Tensor:
    """Imitate another detector and its software by noise, sharpened edges (unsharp mask) and another gamma."""
    sigma = max(0.5, 0.008 * image.shape[-2])
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(rng.randrange(2**31)))
    noisy = image + 0.02 * noise
    sharp = noisy + rng.uniform(0.5, 1.5) * (noisy - TF.gaussian_blur(noisy, [9, 9], [sigma, sigma]))
    return sharp.clamp(0, 1) ** rng.uniform(0.65, 1.5)


def reacquired(image: Tensor, rng: random.Random) -> Tensor:
    """Change angle, framing and detector at once."""
    return processed(reframed(rotated(image, rng), rng), rng)


def altered(image: Tensor, rng: random.Random) -> Tensor:
    """Imitate another examination of the same chest by all changes at once, each weaker than in `SHIFTS`.

    Half of the images are mirrored. Every side is moved outwards by up to 6 % (filled with air) or inwards by up to 10 %, and
    the image is rotated by up to 5 degrees. Three in ten are collimated. Then it is blurred or sharpened, noise is added, and a
    gamma from 0.7 to 1.4 is applied.
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
    """Rotate about the centre, bilinear, with repeated edges."""
    reach = max(1, round(0.1 * max(image.shape[-2:])))
    padded = F.pad(image[None], [reach] * 4, mode="replicate")
    turned = TF.rotate(padded, degrees, TF.InterpolationMode.BILINEAR)[0]
    return turned[..., reach:-reach, reach:-reach].clamp(0, 1)


PERTURBATIONS: dict[str, Perturbation] = {
    function.__name__: function
    for function in (flip, brighter, darker, flatter, harder, cropped, collimated, lettered, shifted, blurred)
}
# Stronger changes and combinations that stand for images of another hospital; nothing is trained or selected on them.
SHIFTS: dict[str, Perturbation] = {
    function.__name__: function for function in (rotated, widened, reframed, processed, reacquired)
}
