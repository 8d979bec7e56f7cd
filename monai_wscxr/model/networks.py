"""The discriminator and the whole network from image to patch scores (Eq. 8)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_wscxr.errors import InputError
from monai_wscxr.features.patches import PatchFeatures
from monai_wscxr.model.whitening import NormalWhitening


class Discriminator(nn.Module):
    """MLP D from patch features to patch scores; higher is more abnormal.

    `depth` linear layers; between them batch normalisation and LeakyReLU(0.2). Depth 1, one linear layer, is what the
    authors' code uses and what did best in cross-validation on training images (docs/results.md).

    Args:
        channels: C of the patch features.
        depth: number of linear layers, >= 1.
        width: hidden channels when depth > 1, >= 1.
        bias: whether the last layer has a bias.
        zero_start: start with zero weights and a bias of 1/2, halfway between the targets of Eq. 7, instead of at random.
            Every example is then active, and the first steps follow the mean difference alone.

    Attributes:
        distance_weight: weight of the mean squared channel of a feature, added to its score in evaluation mode. On whitened
            features that is the distance to the normals; `DistanceHandler` sets it, training never sees it.

    Raises:
        InputError: on a depth, width or channel count below 1.
    """

    def __init__(
        self, channels: int, depth: int = 1, width: int = 256, bias: bool = True, zero_start: bool = False
    ) -> None:
        super().__init__()
        if min(channels, depth, width) < 1:
            raise InputError(f"discriminator: channels, depth and width must be >= 1, got {channels}, {depth}, {width}")
        layers: list[nn.Module] = []
        for _ in range(depth - 1):
            layers += [nn.Linear(channels, width), nn.BatchNorm1d(width), nn.LeakyReLU(0.2)]
            channels = width
        last = nn.Linear(channels, 1, bias=bias)
        if zero_start:
            nn.init.zeros_(last.weight)
            if last.bias is not None:
                nn.init.constant_(last.bias, 0.5)
        layers.append(last)
        self.layers = nn.Sequential(*layers)
        self.distance_weight: Tensor
        self.register_buffer("distance_weight", torch.zeros(()))

    def forward(
        self,
        features: Tensor,
        abnormal: Tensor | None = None,
        source: Tensor | None = None,
        alpha: Tensor | None = None,
    ) -> Tensor:
        """Rows [N, C] to scores [N], or maps [B, C, h, w] to patch scores [B, 1, h, w].

        With abnormal rows [M, C], their numbers `source` [N] and factors `alpha` [N], as `mixup` draws them: scores [2N] of
        the rows and of their mixtures, see `mixed_scores`.
        """
        if not torch.jit.is_scripting():  # noqa: SIM102 - alone, so that scripting leaves the training path out
            if abnormal is not None and source is not None and alpha is not None:
                return self.mixed_scores(features, abnormal, source, alpha)
        if features.dim() == 2:
            return self.score(features)
        rows = features.permute(0, 2, 3, 1)  # [B, h, w, C]
        scores = self.score(rows.flatten(0, 2))
        return scores.reshape(features.shape[0], 1, features.shape[2], features.shape[3])

    def mixed_scores(self, normal: Tensor, abnormal: Tensor, source: Tensor, alpha: Tensor) -> Tensor:
        """Scores [2N] in training of normal rows [N, C], then of alpha * abnormal[source] + (1 - alpha) * normal (Eq. 6).

        Mixing commutes with a linear layer, W (a m + (1 - a) n) = a W m + (1 - a) W n, and nothing comes before the first:
        both sides pass it unmixed and are mixed in its few outputs, the same but for rounding. No mixed row is made.
        """
        first, rest = self.layers[0], self.layers[1:]
        hidden = first(normal)  # [N, H]
        # whichever is fewer rows: the abnormal ones that were drawn, or all there are
        drawn = first(abnormal)[source] if len(abnormal) <= len(source) else first(abnormal[source])
        weight = alpha[:, None].to(hidden.dtype)
        return rest(torch.cat([hidden, torch.lerp(hidden, drawn, weight)])).squeeze(1)

    def score(self, rows: Tensor) -> Tensor:
        """Scores [N] of rows [N, C]."""
        learned = self.layers(rows).squeeze(1)
        if self.training:
            return learned
        return learned + self.distance_weight * rows.square().mean(1)


class WSCXRNet(nn.Module):
    """What is left at test time: image [B, 3, H, W] to patch scores [B, 1, h, w].

    Args:
        features: backbone and aggregation.
        discriminator: from (whitened) patch features to patch scores.
        whitening: statistics of the normal bank; None leaves features as they are.
    """

    def __init__(
        self, features: PatchFeatures, discriminator: Discriminator, whitening: NormalWhitening | None = None
    ) -> None:
        super().__init__()
        self.features = features
        self.whitening = NormalWhitening(features.channels, active=False) if whitening is None else whitening
        self.discriminator = discriminator

    def forward(self, image: Tensor) -> Tensor:
        """A(x) = {D(m) | m in M(x)} (Eq. 8)."""
        return self.patch_scores(self.features(image))

    def patch_scores(self, features: Tensor) -> Tensor:
        """Patch scores [B, 1, h, w] of patch features [B, C, h, w] as they come from `features`."""
        return self.discriminator(self.whitening(features))


class EpochScores(nn.Module):
    """Patch scores of several discriminators on the same features, [B, E, h, w]; for the published protocol only.

    That protocol picks the best epoch on the test images, so it needs the scores of every epoch. The backbone runs once.
    """

    def __init__(self, network: WSCXRNet, discriminators: list[Discriminator]) -> None:
        super().__init__()
        self.features = network.features
        self.whitening = network.whitening
        self.discriminators = nn.ModuleList(discriminators)

    def forward(self, image: Tensor) -> Tensor:
        """Patch scores of discriminator e in channel e."""
        return self.patch_scores(self.features(image))

    def patch_scores(self, features: Tensor) -> Tensor:
        """The same from patch features [B, C, h, w] as they come from `features`."""
        phi = self.whitening(features)
        return torch.cat([discriminator(phi) for discriminator in self.discriminators], dim=1)


def anomaly_score(patch_scores: Tensor, share: float = 0.0) -> Tensor:
    """Image score, from the patch scores before upsampling: [B, E, h, w] to [B, E].

    Args:
        patch_scores: of the network.
        share: mean over this share of the patches, the highest ones (rounded to whole patches, at least one), in [0, 1];
            0 is the maximum, as published, 1 the mean over all.
    """
    patches = patch_scores.flatten(2)
    count = max(1, round(share * patches.shape[2]))
    return patches.amax(2) if count == 1 else patches.topk(count, dim=2).values.mean(2)


def image_scores(
    patch_scores: Callable[[Tensor], Tensor], images: Tensor, share: float = 0.0, batch_size: int = 32
) -> Tensor:
    """Anomaly scores [n, E] of images whose patch features are known, on the CPU.

    Args:
        patch_scores: from features to patch scores [B, E, h, w]: `patch_scores` of a network, or a discriminator where
            the features are whitened already.
        images: [n, C, h, w], on the device of the network.
        share: see `anomaly_score`.
        batch_size: images at a time; few, so that what is computed on the way stays in the processor's cache.
    """
    with torch.inference_mode():
        return torch.cat([anomaly_score(patch_scores(part), share).cpu() for part in images.split(batch_size)])


def check_score_share(share: float) -> float:
    """The share of patches that make an image's score.

    Raises:
        InputError: outside [0, 1].
    """
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
        raise InputError(f"score_share must lie in [0, 1] (0: the maximum, as published), got {share!r}")
    return float(share)


def anomaly_map(patch_scores: Tensor, size: tuple[int, int], sigma: float = 4.0) -> Tensor:
    """Patch scores [B, 1, h, w] as a map [B, 1, H, W]: bilinear, then a Gaussian with reflected borders.

    Both steps are linear and separable, so together they are one small matrix per axis: A scores B^T, with A [H, h] and
    B [W, w]. That is exact, and hundreds of times less work than to filter the upsampled map.

    Args:
        patch_scores: of the network.
        size: height and width of the map.
        sigma: of the Gaussian in map pixels, >= 0; the authors use 4 at 256 pixels. It is cut off at 4 sigma, or at the
            shorter side.
    """
    radius = min(math.ceil(4 * sigma), min(size) - 1) if sigma > 0 else 0
    rows, columns = (
        _map_axis(patches, pixels, sigma, radius).to(patch_scores)
        for patches, pixels in zip(patch_scores.shape[-2:], size, strict=True)
    )
    return rows @ patch_scores @ columns.T


@functools.lru_cache(maxsize=16)
def _map_axis(patches: int, pixels: int, sigma: float, radius: int) -> Tensor:
    """What upsampling and smoothing do along one axis, float64 [pixels, patches]: column i is their answer to patch i."""
    with torch.inference_mode(False), torch.no_grad():  # kept for any later caller
        answers = F.interpolate(
            torch.eye(patches, dtype=torch.float64)[:, None], size=pixels, mode="linear", align_corners=False
        )  # [patches, 1, pixels]
        if radius > 0:
            offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
            kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
            answers = F.conv1d(F.pad(answers, (radius, radius), mode="reflect"), (kernel / kernel.sum())[None, None])
        return answers[:, 0].T.contiguous()
