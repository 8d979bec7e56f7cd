"""Check whether an image is an upright frontal chest radiograph at all, from the mean of its patch features.

The network computes patch features of every image anyway; their mean over the patches is the image feature x [C]. Two
measures tell whether x belongs to a chest radiograph:

- Distance: the mean over channels of (x - mu)^2 / (v + mean(v)), with mean mu and variance v of the image features of the
  training normals. It finds pictures of other things.
- Likeness to counterexamples: one linear discriminant (Fisher, The use of multiple measurements in taxonomic problems, 1936,
  with the shrunken covariance of Friedman, Regularized Discriminant Analysis, 1989) for each kind in `data.counterexamples`.
  It is 0 at the mean of the normals and 1 at the mean of the kind. It finds turned, inverted and wrapped radiographs, whose
  distance is smaller than that of good radiographs of another hospital.

The limits leave room for other hospitals and for disease; docs/predict.md says how they were chosen and what they let pass.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from monai_wscxr.bank.feature_bank import BankOnDisk, FeatureBank
from monai_wscxr.data.counterexamples import CHEST_COUNTEREXAMPLES, OTHER_COUNTEREXAMPLES
from monai_wscxr.data.perturbation import Perturbation
from monai_wscxr.data.radiograph.base import RadiographError
from monai_wscxr.errors import InputError
from monai_wscxr.features.copies import Alteration, copied_images, copy_features
from monai_wscxr.features.extraction import PatchExtractor
from monai_wscxr.model.encoding import decode_tensor, encode_tensor
from monai_wscxr.model.networks import EpochScores, WSCXRNet

logger = logging.getLogger("monai_wscxr")

REASON = "unlike_a_chest"

_FEWEST_NORMALS = 20  # images; with fewer, mean and variance say little about other images
_CHEST_COPIES, _OTHER_COPIES = 8, 10  # counterexamples of each kind
_SHRINKAGE = 10.0  # added to the diagonal of the covariance of standardised image features
_DISTANCE_LIMIT = 11.0  # times the median of the held-out normals
_LIKENESS_LIMITS = {
    "inverted": 0.5,
    "upside_down": 0.48,
    "turned_left": 0.44,
    "turned_right": 0.44,
    "low_byte": 0.3,
    "white_noise": 0.3,
    "gradient": 0.3,
    "clouds": 0.36,
    "pink_noise": 0.4,
}  # above radiographs of another hospital, measured in docs/predict.md
_HELD_OUT_SHARE, _HELD_OUT_MARGIN = 0.98, 0.2  # a limit lies this far above this share of the held-out normals
_VERSION = 1  # of the counterexamples, part of the cache's fingerprint
_IMAGES = 256  # images whose features are in memory at a time


@dataclass(frozen=True, eq=False)
class ChestCheck:
    """Statistics and limits of the check.

    Attributes:
        mean: [C] float32, mean of the normals' image features.
        variance: [C] float32, their variance plus its mean over the channels; > 0.
        directions: [K, C] float32; the likeness to counterexamples of kind k is directions[k] . (x - mean).
        distance_limit: largest distance of a chest radiograph; > 0.
        likeness_limits: [K] float32, largest likeness of a chest radiograph to each kind; infinite where the features do
            not tell the kind from the normals.
    """

    mean: Tensor
    variance: Tensor
    directions: Tensor
    distance_limit: float
    likeness_limits: Tensor

    def excess(self, image_features: Tensor) -> Tensor:
        """Return how far images exceed the limits: [B], the largest of measure / limit; above 1 is unlike a chest.

        Args:
            image_features: [B, C], means of the patch features, not whitened.
        """
        moved = image_features.detach().cpu().double() - self.mean.double()
        distance = (moved.square() / self.variance.double()).mean(1) / self.distance_limit
        likeness = moved @ self.directions.double().T / self.likeness_limits.double()
        return torch.cat([distance[:, None], likeness], dim=1).amax(1)

    def refusals(self, image_features: Tensor, allow: Collection[str] = ()) -> list[RadiographError | None]:
        """Return the reason to refuse each image, or None for a chest radiograph.

        Args:
            image_features: [B, C], means of the patch features, not whitened.
            allow: gates that are not applied; with `REASON` among them, nothing is refused.
        """
        if REASON in allow:
            return [None] * len(image_features)
        return [None if value <= 1 else _refusal(value) for value in self.excess(image_features).tolist()]

    def to_dict(self) -> dict[str, Any]:
        """Return the check as JSON values; tensors are little-endian float32 in base64."""
        return {
            "channels": len(self.mean),
            "mean": encode_tensor(self.mean),
            "variance": encode_tensor(self.variance),
            "directions": encode_tensor(self.directions),
            "distance_limit": self.distance_limit,
            "likeness_limits": [None if math.isinf(limit) else limit for limit in self.likeness_limits.tolist()],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ChestCheck:
        """Build the check from the values of `to_dict`.

        Raises:
            InputError: when the values are inconsistent.
        """
        try:
            channels = values["channels"]
            limits = torch.tensor([math.inf if limit is None else float(limit) for limit in values["likeness_limits"]])
            mean, variance, directions = (decode_tensor(values[name]) for name in ("mean", "variance", "directions"))
            check = cls(
                mean, variance, directions.reshape(len(limits), channels), float(values["distance_limit"]), limits
            )
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"the chest check is damaged ({type(error).__name__})") from error
        finite = all(bool(torch.isfinite(part).all()) for part in (mean, variance, directions))
        sizes = len(mean) == len(variance) == channels
        limits_good = 0 < check.distance_limit < math.inf and bool((limits > 0).all())
        if not (finite and sizes and limits_good and bool((variance > 0).all())):
            raise InputError("the chest check is damaged: its numbers must be finite and its limits greater than 0")
        return check


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


def image_features(bank: FeatureBank | BankOnDisk) -> Tensor:
    """Return the image features [n, C] of a bank of whole images, on the CPU."""
    return torch.cat([maps.mean((2, 3)).cpu() for maps in bank.maps(_IMAGES)])


def measure_chest_check(
    extractor: PatchExtractor, files: Sequence[str], normal: Tensor, held_out: Tensor
) -> ChestCheck | None:
    """Fit the check to normal images and to counterexamples made from a few of them.

    The counterexamples pass the network, `_CHEST_COPIES` or `_OTHER_COPIES` of each kind, and are cached.

    Args:
        extractor: extractor that made the features.
        files: normal images.
        normal: [n, C], image features of `files`.
        held_out: [m, C], image features of held-out normal images.

    Returns:
        the check, or None when there are fewer than 20 normal images.
    """
    if len(files) < _FEWEST_NORMALS or not len(held_out):
        logger.info("%d normal images are too few for the check that an image shows a chest", len(files))
        return None
    chosen = [files[n] for n in copied_images(extractor, files, max(_CHEST_COPIES, _OTHER_COPIES))]
    counterexamples = {
        name: copy_features(extractor, chosen[:count], _alteration(name, change), 1, pooled=True)[:, 0]
        for kinds, count in ((CHEST_COUNTEREXAMPLES, _CHEST_COPIES), (OTHER_COUNTEREXAMPLES, _OTHER_COPIES))
        for name, change in kinds.items()
    }
    return fit_chest_check(normal, held_out, counterexamples)


def fit_chest_check(normal: Tensor, held_out: Tensor, counterexamples: Mapping[str, Tensor]) -> ChestCheck | None:
    """Fit the check to image features.

    Args:
        normal: [n, C] of normal images, n >= 2.
        held_out: [m, C] of held-out normal images, m >= 1.
        counterexamples: [k, C] of each kind, k >= 1, by the name of the kind.

    Returns:
        the check, or None when the image features of all normal images are equal.
    """
    normal, held_out = normal.double().cpu(), held_out.double().cpu()
    mean, variance = normal.mean(0), normal.var(0)
    typical = variance.mean()
    if not float(typical) > 0:
        return None
    spread = variance.sqrt()
    spread = spread + 0.1 * spread.mean()
    standardised = (normal - mean) / spread
    covariance = standardised.T @ standardised / len(normal)
    covariance.diagonal().add_(_SHRINKAGE)
    kinds = [(kind.double().cpu() - mean) / spread for kind in counterexamples.values()]
    for kind in kinds:
        inner = kind - kind.mean(0)
        covariance += inner.T @ inner / (len(kind) * len(kinds))
    means = torch.stack([kind.mean(0) for kind in kinds])
    weights = torch.linalg.solve(covariance, means.T).T  # [K, C]
    directions = weights / (means * weights).sum(1, keepdim=True) / spread
    variance = variance + typical

    likeness = (held_out - mean) @ directions.T
    lowest = torch.tensor([_LIKENESS_LIMITS[name] for name in counterexamples], dtype=likeness.dtype)
    limits = (likeness.quantile(_HELD_OUT_SHARE, dim=0) + _HELD_OUT_MARGIN).maximum(lowest)
    distance = ((held_out - mean).square() / variance).mean(1)
    limit = max(_DISTANCE_LIMIT * float(distance.median()), 2 * float(distance.quantile(_HELD_OUT_SHARE)))
    return ChestCheck(
        mean.float(),
        variance.float(),
        directions.float(),
        limit,
        torch.where(limits < 1, limits, math.inf).float(),
    )


def _alteration(name: str, change: Perturbation) -> Alteration:
    return Alteration(f"counterexample_{name}", _VERSION, lambda image, seed: change(image, random.Random(seed)))


def _refusal(excess: float) -> RadiographError:
    return RadiographError(
        REASON,
        f"the picture does not look like an upright frontal chest radiograph ({excess:.1f} times the limit). Check that it is "
        f"one, neither turned nor inverted nor cut to fewer bits, or allow {REASON}.",
    )
