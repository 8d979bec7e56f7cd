"""The discriminator, the network from image to patch scores (Eq. 8), and the anomaly score and map."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from monai_wscxr.bank.feature_bank import BankOnDisk, FeatureBank
from monai_wscxr.errors import InputError
from monai_wscxr.features.patches import PatchFeatures
from monai_wscxr.model.regions import RegionHead
from monai_wscxr.model.scores import anomaly_score
from monai_wscxr.model.whitening import NormalWhitening


class Discriminator(nn.Module):
    """Multilayer perceptron D from patch features to patch scores; higher is more abnormal.

    `depth` linear layers with batch normalisation and LeakyReLU(0.2) between them. The authors' code uses one linear layer,
    which also did best in cross-validation on training images (docs/results.md).

    Args:
        channels: C of the patch features, >= 1.
        depth: number of linear layers, 1 to 64.
        width: hidden channels when depth > 1, 1 to 65,536.
        bias: whether the last layer has a bias.
        zero_start: start with zero weights and a bias of 1/2, halfway between the targets of Eq. 7, instead of at random.
            Every example then has a loss, and the first steps follow the difference of the two means.
        neighbourhood: p of the features (Eq. 1), odd, >= 1; only `opacity_map` depends on it.

    Attributes:
        distance_weight: weight of the mean square of a feature's channels, which is added to its score in evaluation mode.
            For whitened features that is the squared Mahalanobis distance to the normals, divided by C. `DistanceHandler`
            sets the weight; training does not use it.
        opacity: [C], direction added to the learned one in evaluation mode: what synthetic opacities do to whitened features,
            times its weight. `OpacityHandler` sets it.
        opacity_map: [C], direction of opacities for maps times its weight: in evaluation mode a patch gets how much more of it
            than the picture's mean it has, see `opacities`. The mean of a picture's patch scores, its anomaly score, stays the
            same.
        regions: opinion on the whole picture. What a patch contributes to it is added to the patch's score in evaluation mode.
            It has no weight until `RegionHandler` fits it, and does not act on rows, which belong to no picture.

    Raises:
        InputError: when `channels`, `depth` or `width` is below 1, or `depth` or `width` too large.
    """

    def __init__(
        self,
        channels: int,
        depth: int = 1,
        width: int = 256,
        bias: bool = True,
        zero_start: bool = False,
        neighbourhood: int = 1,
    ) -> None:
        super().__init__()
        if min(channels, depth, width) < 1:
            raise InputError(f"discriminator: channels, depth and width must be >= 1, got {channels}, {depth}, {width}")
        if depth > 64 or width > 65_536:
            raise InputError(
                f"discriminator: depth must be at most 64 and width at most 65,536, got {depth} and {width}"
            )
        self.neighbourhood = neighbourhood
        inputs = channels
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
        self.opacity: Tensor
        self.register_buffer("opacity", torch.zeros(inputs))
        self.opacity_map: Tensor
        self.register_buffer("opacity_map", torch.zeros(inputs))
        self.regions = RegionHead(inputs)

    def forward(
        self,
        features: Tensor,
        abnormal: Tensor | None = None,
        source: Tensor | None = None,
        alpha: Tensor | None = None,
    ) -> Tensor:
        """Return the scores [N] of rows [N, C], or the patch scores [B, 1, h, w] of maps [B, C, h, w].

        With abnormal rows [M, C], their numbers `source` [N] and factors `alpha` [N] from `mixup`: return scores [2N] of
        normal rows [N, C] and of their mixtures, see `mixed_scores`.
        """
        if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript drops a branch under this condition alone
            if abnormal is not None and source is not None and alpha is not None:
                return self.mixed_scores(features, abnormal, source, alpha)
        if features.dim() == 2:
            return self.score(features)
        rows = features.permute(0, 2, 3, 1)  # [B, h, w, C]
        scores = self.score(rows.flatten(0, 2))
        maps = scores.reshape(features.shape[0], 1, features.shape[2], features.shape[3])
        if self.training:
            return maps
        contributions: Tensor = self.regions(features)
        return maps + (contributions + self.opacities(rows, self.opacity_map))[:, None]

    def opacities(self, rows: Tensor, direction: Tensor) -> Tensor:
        """Return how much more of a direction [C] each patch has than the picture's mean, [B, h, w], for rows [B, h, w, C].

        A patch feature is the mean over its neighbourhood (Eq. 1), which blurs what lies where. Here the mean is undone.
        """
        found = without_mean(rows @ direction, self.neighbourhood)
        return found - found.mean((1, 2), keepdim=True)

    def mixed_scores(self, normal: Tensor, abnormal: Tensor, source: Tensor, alpha: Tensor) -> Tensor:
        """Return training scores [2N]: of normal rows, then of alpha * abnormal[source] + (1 - alpha) * normal (Eq. 6).

        Mixing commutes with the first layer, which is linear: W (a m + (1 - a) n) = a W m + (1 - a) W n. Both kinds of rows
        therefore pass it unmixed, and its few outputs are mixed: the same up to rounding, without any mixed row.

        Args:
            normal: [N, C].
            abnormal: [M, C].
            source: [N] int64, number of the abnormal row for each normal row.
            alpha: [N], mixing factors.
        """
        first, rest = self.layers[0], self.layers[1:]
        hidden = first(normal)  # [N, H]
        # pass the smaller number of rows: all abnormal ones, or those that were drawn
        drawn = first(abnormal)[source] if len(abnormal) <= len(source) else first(abnormal[source])
        weight = alpha[:, None].to(hidden.dtype)
        scores: Tensor = rest(torch.cat([hidden, torch.lerp(hidden, drawn, weight)]))
        return scores.squeeze(1)

    def score(self, rows: Tensor) -> Tensor:
        """Return the scores [N] of rows [N, C]."""
        learned: Tensor = self.layers(rows).squeeze(1)
        if self.training:
            return learned
        return learned + self.distance_weight * rows.square().mean(1) + rows @ self.opacity


def without_mean(values: Tensor, neighbourhood: int, ridge: float = 0.003) -> Tensor:
    """Undo the mean over p x p neighbourhoods (Eq. 1) in maps [B, h, w].

    The mean is linear and separable: A values A^T, with zeros beyond the border. Along each axis (A^T A + ridge I)^(-1) A^T
    takes the place of the inverse, which for some sizes does not exist and for others amplifies rounding: with 0.003 nothing
    grows to more than 10 times its size along an axis.

    Args:
        values: [B, h, w] floating point.
        neighbourhood: p, odd; 1 changes nothing.
        ridge: > 0.
    """
    if neighbourhood == 1:
        return values
    rows = _undoing(values.shape[1], neighbourhood, ridge).to(values)
    columns = _undoing(values.shape[2], neighbourhood, ridge).to(values)
    return rows @ values @ columns.T


def _undoing(size: int, neighbourhood: int, ridge: float) -> Tensor:
    """Return the matrix [size, size] float64 of `without_mean` along one axis."""
    place = torch.arange(size)
    near = (place[:, None] - place[None]).abs() <= neighbourhood // 2
    mean = near.to(torch.float64) / neighbourhood
    one = torch.eye(size, dtype=torch.float64)
    gram = mean.T @ mean + ridge * one
    # Schulz's iteration, as ONNX has no solver: the error at an eigenvalue v < 2 is (1 - v)^(2^n) after n steps
    inverse = one
    for _ in range(14):
        inverse = inverse @ (2 * one - gram @ inverse)
    return inverse @ mean.T


class WSCXRNet(nn.Module):
    """The network of inference, from images [B, 3, H, W] to patch scores [B, 1, h, w].

    Args:
        features: patch features of images.
        discriminator: patch scores of (whitened) patch features.
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
        """Return the patch scores A(x) = {D(m) | m in M(x)} (Eq. 8)."""
        return self.patch_scores(self.features(image))

    def patch_scores(self, features: Tensor) -> Tensor:
        """Return the patch scores [B, 1, h, w] of patch features [B, C, h, w] that are not whitened yet."""
        scores: Tensor = self.discriminator(self.whitening(features))
        return scores


class EpochScores(nn.Module):
    """Patch scores [B, E, h, w] of the discriminators of E epochs; the backbone runs once.

    Only for the published protocol, which chooses the best epoch on the test images.

    Args:
        network: network whose features and whitening are used.
        discriminators: discriminator of each epoch.
    """

    def __init__(self, network: WSCXRNet, discriminators: list[Discriminator]) -> None:
        super().__init__()
        self.features = network.features
        self.whitening = network.whitening
        self.discriminators = nn.ModuleList(discriminators)

    def forward(self, image: Tensor) -> Tensor:
        """Return the patch scores of images [B, 3, H, W]; channel e is that of discriminator e."""
        return self.patch_scores(self.features(image))

    def patch_scores(self, features: Tensor) -> Tensor:
        """Return the same for patch features [B, C, h, w] that are not whitened yet."""
        phi = self.whitening(features)
        return torch.cat([discriminator(phi) for discriminator in self.discriminators], dim=1)


class CheckedNet(nn.Module):
    """A network that returns the image features besides the patch scores, with one pass of the backbone.

    Args:
        network: image to patch scores; it may have several channels.
        features: function from images to patch features, in place of the network's own: the same ones, executed by a runtime.
    """

    def __init__(self, network: WSCXRNet | EpochScores, features: nn.Module | None = None) -> None:
        super().__init__()
        self.network = network
        self.features: nn.Module = network.features if features is None else features

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return patch scores [B, E, h, w] and image features [B, C] of images [B, 3, H, W]."""
        features = self.features(image)
        return self.network.patch_scores(features), features.mean((2, 3))


def image_scores(
    patch_scores: Callable[[Tensor], Tensor], images: Tensor, share: float = 0.0, batch_size: int = 32
) -> Tensor:
    """Return the anomaly scores [n, E], on the CPU, of images whose patch features are known.

    Args:
        patch_scores: function from patch features [B, C, h, w] to patch scores [B, E, h, w]: the method `patch_scores` of a
            network, or a discriminator if the features are whitened already.
        images: patch features [n, C, h, w], on the device of the network.
        share: see `anomaly_score`.
        batch_size: images at a time; few, so that intermediate results stay in the processor's cache.
    """
    with torch.inference_mode():
        parts = [anomaly_score(patch_scores(part).cpu().numpy(), share) for part in images.split(batch_size)]
    return torch.from_numpy(np.concatenate(parts))


def patch_maps(
    patch_scores: Callable[[Tensor], Tensor], bank: FeatureBank | BankOnDisk, batch_size: int = 32
) -> Tensor:
    """Return the patch scores [n, 1, h, w], on the CPU, of the images of a bank; function as of `image_scores`."""
    with torch.inference_mode():
        return torch.cat([patch_scores(maps).cpu() for maps in bank.maps(batch_size)])
