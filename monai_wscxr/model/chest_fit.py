"""Fit the check that an image shows a chest (`ChestCheck`) to normal images and to counterexamples made from a few of them."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from monai_wscxr.bank.feature_bank import BankOnDisk, FeatureBank
from monai_wscxr.data.counterexamples import CHEST_COUNTEREXAMPLES, OTHER_COUNTEREXAMPLES
from monai_wscxr.data.perturbation import Perturbation
from monai_wscxr.features.copies import Alteration, copied_images, copy_features
from monai_wscxr.features.extraction import PatchExtractor
from monai_wscxr.model.chest_check import ChestCheck

logger = logging.getLogger("monai_wscxr")

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
        mean.float().numpy(),
        variance.float().numpy(),
        directions.float().numpy(),
        limit,
        torch.where(limits < 1, limits, math.inf).float().numpy(),
    )


def _alteration(name: str, change: Perturbation) -> Alteration:
    return Alteration(f"counterexample_{name}", _VERSION, lambda image, seed: change(image, random.Random(seed)))
