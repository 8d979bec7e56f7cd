"""AnatPaste: a network learns to tell images with a patch pasted into the lungs (Sato et al., iScience 2023).

Network, training and density are those of CutPaste, with two kinds of every image. The authors keep the epoch that is best on a
validation set with abnormal images; here the last one counts.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from monai_wscxr.data.opacities import dark_regions
from monai_wscxr.experiments.baselines.cutpaste import PasteClassifier
from monai_wscxr.experiments.baselines.images import GreyImages
from monai_wscxr.experiments.baselines.pasting import cut, jitter, place, uniform

_INSET = 10 / 256  # of the shape in the patch, in shares of the picture's side
_BLUR = 14 / 256


class AnatPaste(PasteClassifier):
    """The 2-way task: an untouched image, and one with a patch pasted into the lungs. Arguments as of `PasteClassifier`."""

    kinds = 2
    name = "AnatPaste"

    def prepare(self, images: GreyImages) -> GreyImages:
        """Return the images with their lungs as a second channel."""
        lungs = [lung_mask(image[0].double().numpy()) for image in images.floats()]
        return GreyImages(images.files, torch.cat([images.pixels, 255 * torch.from_numpy(np.stack(lungs))[:, None]], 1))

    def variants(self, image: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Return the image untouched, and with a patch in its lungs, from an image with its lungs [2, S, S]."""
        untouched = jitter(image[:1], generator)
        return [untouched, anatpaste(untouched, image[1] > 0.5, generator)]


def anatpaste(image: Tensor, lungs: Tensor, generator: torch.Generator) -> Tensor:
    """Paste a patch as CutPaste cuts it, centred at a random lung pixel, softly and within the lungs.

    The patch shines through an ellipse or a rectangle, half of the time each, 10 pixels smaller than the patch on each side,
    with a strength of 150 to 254 of 255 and an edge blurred by up to 14 pixels; sizes at 256 pixels per side, as published.

    Args:
        image: [1, H, W] in [0, 1].
        lungs: [H, W] bool.
        generator: source of all random choices.
    """
    height, width = image.shape[1:]
    patch = cut(image, generator)
    h, w = patch.shape[1:]
    inset, blur = round(_INSET * height), uniform(0, _BLUR, generator) * height
    y, x = (torch.arange(side) + 0.5 - side / 2 for side in (h, w))
    half_y, half_x = (max(1.0, side / 2 - inset) for side in (h, w))
    if uniform(0, 1, generator) < 0.5:
        shape = (y[:, None] / half_y) ** 2 + (x / half_x) ** 2 <= 1
    else:
        shape = (y.abs()[:, None] <= half_y) & (x.abs() <= half_x)
    strength = uniform(150, 255, generator) // 1 / 255
    soft = ndimage.gaussian_filter(shape.float().numpy(), blur, mode="nearest")
    rows, columns = torch.nonzero(lungs, as_tuple=True)
    chosen = place(len(rows) - 1, generator)
    top, left = int(rows[chosen]) - h // 2, int(columns[chosen]) - w // 2
    # the part of the patch that lies in the picture
    y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + h, height), min(left + w, width)
    within = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    alpha = strength * torch.from_numpy(soft)[within] * lungs[y0:y1, x0:x1]
    out = image.clone()
    out[:, y0:y1, x0:x1] += alpha * (patch[:, within[0], within[1]] - image[:, y0:y1, x0:x1])
    return out


def lung_mask(image: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Find the lungs: dark regions after local equalisation that do not touch the border.

    The published code compares with the threshold twice, the second time the result of the first, which is what turns its
    "brighter" into "darker"; darker is meant.

    Args:
        image: [H, W] in [0, 1], air dark.

    Returns:
        [H, W], 1 in the lungs; 1 everywhere where none are found.
    """
    lungs = dark_regions(equalised(image)).astype(np.uint8)
    return lungs if lungs.any() else np.ones_like(lungs)


def equalised(image: NDArray[np.float64], clip: float = 0.01, tiles: int = 8, bins: int = 256) -> NDArray[np.float64]:
    """Equalise the histogram of each part of a picture, with limited contrast (CLAHE; Zuiderveld, Graphics Gems IV, 1994).

    Args:
        image: [H, W] in [0, 1].
        clip: largest share of a tile's pixels in one bin; what is beyond it is spread over all bins.
        tiles: tiles per side; between their centres the mappings are interpolated.
        bins: bins of the histograms.

    Returns:
        [H, W] in [0, 1].
    """
    height, width = image.shape
    index = np.minimum((image * bins).astype(int), bins - 1)
    edges = [np.linspace(0, side, tiles + 1).round().astype(int) for side in (height, width)]
    mappings = np.empty((tiles, tiles, bins))
    for row in range(tiles):
        for column in range(tiles):
            tile = index[edges[0][row] : edges[0][row + 1], edges[1][column] : edges[1][column + 1]]
            share = np.bincount(tile.ravel(), minlength=bins) / max(tile.size, 1)
            excess = np.maximum(share - clip, 0).sum()
            mappings[row, column] = np.cumsum(np.minimum(share, clip) + excess / bins)
    # position of every pixel between the centres of the tiles
    low, weight = [], []
    for side in (height, width):
        at = np.clip((np.arange(side) + 0.5) * tiles / side - 0.5, 0, tiles - 1)
        first = np.minimum(at.astype(int), max(tiles - 2, 0))
        low.append(first)
        weight.append(at - first)
    y, x, v, u = low[0][:, None], low[1][None], weight[0][:, None], weight[1][None]
    last = tiles - 1
    upper = (1 - u) * mappings[y, x, index] + u * mappings[y, np.minimum(x + 1, last), index]
    y = np.minimum(y + 1, last)
    lower = (1 - u) * mappings[y, x, index] + u * mappings[y, np.minimum(x + 1, last), index]
    found: NDArray[np.float64] = np.clip((1 - v) * upper + v * lower, 0, 1)
    return found
