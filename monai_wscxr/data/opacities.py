"""Synthetic opacities in the lungs of normal radiographs: hints at what disease does to a picture, where few examples exist.

Most findings make lung look denser than it should. An opacity here is a change of brightness only, drawn at random: one to four
patches of mottled density, the lower part of one or both lungs, or all of them, at most as bright as the brighter tissue of the
picture. Lungs are found without training, as dark regions that do not touch the border; that idea is AnatPaste's, which pastes
patches into them (J. Sato et al., Anatomy-aware self-supervised learning for anomaly detection in chest radiographs, iScience,
2023). Such a picture is never counted as an abnormal image.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from monai_wscxr.system.lazy import LazyModule

if TYPE_CHECKING:
    from scipy import ndimage
else:
    ndimage = LazyModule("scipy.ndimage")

_SIDE = 160  # pixels per side at which lungs are found
_SMALLEST = 400 / 256**2  # share of the picture below which a dark region is no lung
_SQUARE = np.ones((3, 3), bool)


def lung_fields(image: Tensor) -> NDArray[np.bool_]:
    """Find the lungs of a radiograph as dark regions inside the picture.

    Args:
        image: [1, H, W] in [0, 1], air dark.

    Returns:
        [160, 160], True in the lungs; True everywhere where none are found.
    """
    small = F.interpolate(image[None], size=(_SIDE, _SIDE), mode="area")[0, 0].double().numpy()
    around = ndimage.gaussian_filter(small, _SIDE / 8)
    contrast = np.sqrt(ndimage.gaussian_filter((small - around) ** 2, _SIDE / 8)) + 1e-3
    local = np.clip(0.5 + 0.22 * (small - around) / contrast, 0, 1)
    lungs = dark_regions(local)
    return lungs if lungs.any() else np.ones_like(lungs)


def dark_regions(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Find the large dark regions inside a picture: below Otsu's threshold, and apart from the border.

    Args:
        values: [H, W] in [0, 1], brightness relative to the surroundings.

    Returns:
        [H, W], True in the regions.
    """
    dark = ndimage.binary_opening(values < _otsu(values), _SQUARE)
    labels, _ = ndimage.label(dark)
    border = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    inside = ndimage.binary_dilation(dark & ~np.isin(labels, border), _SQUARE)
    labels, _ = ndimage.label(inside)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    regions: NDArray[np.bool_] = np.isin(labels, np.flatnonzero(sizes >= _SMALLEST * values.size))
    return regions


def with_opacity(image: Tensor, rng: random.Random) -> Tensor:
    """Return a radiograph [1, H, W] in [0, 1] with a random opacity in its lungs; all follows from `rng`."""
    height, width = image.shape[-2:]
    lungs = lung_fields(image)
    where = np.stack(np.nonzero(lungs), 1) / _SIDE  # [n, 2] in [0, 1)
    y = ((np.arange(height) + 0.5) / height)[:, None]
    x = ((np.arange(width) + 0.5) / width)[None]
    kind = rng.random()
    if kind < 0.30:
        density = _effusion(y, x, where, rng)
    elif kind < 0.45:
        density = np.full((height, width), rng.uniform(0.3, 0.7))
    else:
        density = _patches(y, x, where, rng)
    # the edge of the lungs is soft, and a little beyond what was found
    wide = ndimage.binary_dilation(lungs, _SQUARE, iterations=2).astype(np.float32)
    edge = torch.from_numpy(ndimage.gaussian_filter(wide, _SIDE / 80))[None, None]
    inside = F.interpolate(edge, size=(height, width), mode="bilinear", align_corners=False)[0]
    strength = torch.from_numpy(np.clip(density, 0, 1)).float() * inside * rng.uniform(0.25, 0.75)
    top, left = height // 8, width // 8
    tissue = torch.quantile(image[:, top : height - top, left : width - left].flatten(), 0.9)
    return (image + strength * (tissue - image).clamp_min(0)).clamp(0, 1)


def _effusion(
    y: NDArray[np.float64], x: NDArray[np.float64], where: NDArray[np.float64], rng: random.Random
) -> NDArray[np.float64]:
    """Return the density [H, W] of fluid: everything below a level, in both lungs or on one side."""
    side = rng.choice(("both", "left", "right"))
    level = float(np.quantile(where[:, 0], rng.uniform(0.55, 0.85)))
    density = _sigmoid((y - level) / rng.uniform(1 / 80, 1 / 23)) * np.ones_like(x)
    if side == "both":
        return density
    return density * ((x < 0.5) if side == "left" else (x >= 0.5))


def _patches(
    y: NDArray[np.float64], x: NDArray[np.float64], where: NDArray[np.float64], rng: random.Random
) -> NDArray[np.float64]:
    """Return the density [H, W] of one to four mottled ellipses with centres in the lungs."""
    density = np.zeros((y.shape[0], x.shape[1]))
    for _ in range(rng.choice((1, 1, 2, 4))):
        row, column = where[rng.randrange(len(where))]
        high = math.exp(rng.uniform(math.log(0.02), math.log(0.15)))
        wide = high * rng.uniform(0.6, 1.6)
        radius = np.sqrt(((y - row) / high) ** 2 + ((x - column) / wide) ** 2)
        density = np.maximum(density, _sigmoid((1 - radius) * rng.uniform(3, 9)))
    noise = np.random.default_rng(rng.getrandbits(64)).standard_normal(density.shape)
    mottle = ndimage.gaussian_filter(noise, rng.uniform(1 / 160, 1 / 40) * density.shape[0])
    return density * np.clip(1 + 0.35 * mottle / mottle.std(), 0, 1.6)


def _sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-np.clip(values, -50, 50)))


def _otsu(values: NDArray[np.float64]) -> float:
    """Return the threshold in [0, 1] that separates values in [0, 1] best, by Otsu's rule."""
    counts, edges = np.histogram(values, 256, (0, 1))
    share = counts / counts.sum()
    below, mean = np.cumsum(share), np.cumsum(share * (edges[:-1] + edges[1:]) / 2)
    inner = (below > 0) & (below < 1)
    if not inner.any():
        return 0.5
    between = np.zeros(256)
    between[inner] = (mean[-1] * below[inner] - mean[inner]) ** 2 / (below[inner] * (1 - below[inner]))
    return float(edges[int(np.argmax(between)) + 1])
