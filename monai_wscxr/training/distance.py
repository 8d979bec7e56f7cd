"""Weight of the distance to the normals in an image's score, against what the discriminator has learned."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from monai_wscxr.bank.feature_bank import BankOnDisk, FeatureBank
from monai_wscxr.errors import InputError
from monai_wscxr.model.networks import Discriminator, image_scores


def check_distance_share(share: float) -> float:
    """Return the share if it is a number of at least 0.

    Raises:
        InputError: otherwise.
    """
    if not (math.isfinite(share) and share >= 0):
        raise InputError(f"distance_share must be 0 (off) or more, got {share}")
    return share


def distance_spread(normal: FeatureBank | BankOnDisk, score_share: float, device: str | torch.device = "cpu") -> float:
    """Measure the standard deviation of the distance term of image scores over the training normals.

    Args:
        normal: whitened normal bank of whole images.
        score_share: see `anomaly_score`.
        device: where to compute.
    """
    return _deviation(lambda maps: maps.square().mean(1, keepdim=True), normal, score_share, device)


def distance_weight(
    discriminator: Discriminator,
    normal: FeatureBank | BankOnDisk,
    abnormal_images: int,
    share: float,
    score_share: float,
    spread: float | None = None,
) -> float:
    """Compute the weight that gives the distance to the normals its share of the image scores.

    With one or two abnormal images the learned direction is uncertain and the distance helps; with many it does not. So over
    the training normals the distance term gets `share` / n times the standard deviation of the learned term, n being the
    number of abnormal images.

    Args:
        discriminator: has learned; its own `distance_weight` is ignored.
        normal: whitened normal bank of whole images.
        abnormal_images: n, at least 1.
        share: >= 0; 0 switches the distance off, as in the paper.
        score_share: see `anomaly_score`.
        spread: result of `distance_spread` if it is known; it does not depend on the discriminator.
    """
    if share == 0:
        return 0.0
    device = discriminator.distance_weight.device
    if spread is None:
        spread = distance_spread(normal, score_share, device)
    if not spread > 0:
        return 0.0
    mode, before = discriminator.training, discriminator.distance_weight.clone()
    discriminator.eval()
    discriminator.distance_weight.zero_()
    learned = _deviation(discriminator, normal, score_share, device)
    discriminator.distance_weight.copy_(before)
    discriminator.train(mode)
    return share / abnormal_images * learned / spread


def _deviation(
    patch_scores: Callable[[Tensor], Tensor],
    normal: FeatureBank | BankOnDisk,
    score_share: float,
    device: str | torch.device,
) -> float:
    """Measure the standard deviation over the images of a bank of the scores that follow from patch scores of features."""
    parts = [image_scores(patch_scores, maps.to(device), score_share) for maps in normal.maps(256)]
    return float(torch.cat(parts).double().std(correction=0))
