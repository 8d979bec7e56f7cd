"""The discriminator and the whole network from image to patch scores (Eq. 8)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from monai_wscxr.errors import InputError
from monai_wscxr.features import PatchFeatures


class Discriminator(nn.Module):
    """MLP D from patch features to patch scores; higher is more abnormal.

    `depth` linear layers; between them batch normalisation and LeakyReLU(0.2). Depth 1, one linear layer, is what the
    authors' code uses and what did best in cross-validation on training images (docs/results.md).

    Args:
        channels: C of the patch features.
        depth: number of linear layers, >= 1.
        width: hidden channels when depth > 1, >= 1.
        bias: whether the last layer has a bias.

    Raises:
        InputError: on a depth, width or channel count below 1.
    """

    def __init__(self, channels: int, depth: int = 1, width: int = 256, bias: bool = True) -> None:
        super().__init__()
        if min(channels, depth, width) < 1:
            raise InputError(f"discriminator: channels, depth and width must be >= 1, got {channels}, {depth}, {width}")
        layers: list[nn.Module] = []
        for _ in range(depth - 1):
            layers += [nn.Linear(channels, width), nn.BatchNorm1d(width), nn.LeakyReLU(0.2)]
            channels = width
        layers.append(nn.Linear(channels, 1, bias=bias))
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """Rows [N, C] to scores [N], or maps [B, C, h, w] to patch scores [B, 1, h, w]."""
        if features.dim() == 2:
            return self.layers(features).squeeze(1)
        rows = features.permute(0, 2, 3, 1)  # [B, h, w, C]
        scores = self.layers(rows.flatten(0, 2))
        return scores.reshape(features.shape[0], 1, features.shape[2], features.shape[3])


class WSCXRNet(nn.Module):
    """What is left at test time: backbone and discriminator, image [B, 3, H, W] to patch scores [B, 1, h, w]."""

    def __init__(self, features: PatchFeatures, discriminator: Discriminator) -> None:
        super().__init__()
        self.features = features
        self.discriminator = discriminator

    def forward(self, image: Tensor) -> Tensor:
        """A(x) = {D(m) | m in M(x)} (Eq. 8)."""
        return self.discriminator(self.features(image))


class EpochScores(nn.Module):
    """Patch scores of several discriminators on the same features, [B, E, h, w]; for the published protocol only.

    That protocol picks the best epoch on the test images, so it needs the scores of every epoch. The backbone runs once.
    """

    def __init__(self, features: PatchFeatures, discriminators: list[Discriminator]) -> None:
        super().__init__()
        self.features = features
        self.discriminators = nn.ModuleList(discriminators)

    def forward(self, image: Tensor) -> Tensor:
        """Patch scores of discriminator e in channel e."""
        phi = self.features(image)
        return torch.cat([discriminator(phi) for discriminator in self.discriminators], dim=1)


def anomaly_score(patch_scores: Tensor) -> Tensor:
    """Image score: the maximum of the patch scores before upsampling, [B, E, h, w] to [B, E]."""
    return patch_scores.amax(dim=(2, 3))


def anomaly_map(patch_scores: Tensor, size: tuple[int, int], sigma: float = 4.0) -> Tensor:
    """Patch scores [B, 1, h, w] as a map [B, 1, H, W]: bilinear, then a Gaussian with reflected borders.

    Args:
        patch_scores: of the network.
        size: height and width of the map.
        sigma: of the Gaussian in map pixels, >= 0; the authors use 4 at 256 pixels.
    """
    upsampled = F.interpolate(patch_scores, size=list(size), mode="bilinear", align_corners=False)
    radius = min(math.ceil(4 * sigma), min(size) - 1)
    if sigma <= 0 or radius < 1:
        return upsampled
    return gaussian_blur(upsampled, [2 * radius + 1, 2 * radius + 1], [sigma, sigma])
