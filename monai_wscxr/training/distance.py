"""Weights of distance, regions' opinion and opacities in an image's score, against what was learned."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from monai_wscxr.bank.feature_bank import BankOnDisk, FeatureBank, spaced_maps
from monai_wscxr.errors import InputError
from monai_wscxr.model.networks import Discriminator, image_scores

_IMAGES = 256  # images whose maps are in memory at a time
_OPACITY_IMAGES = 400  # for the weights of the opacities, which need standard deviations to 4 %
_MOST_IMAGES = 2048  # for the weight of the regions: it needs a standard deviation, which these give to 2 %


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
    return _deviation(lambda maps: maps.square().mean(1, keepdim=True), normal.maps(_IMAGES), score_share, device)


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
    with _weights(discriminator, distance=0.0):
        learned = _deviation(discriminator, normal.maps(_IMAGES), score_share, device)
    return share / abnormal_images * learned / spread


def region_weight(
    discriminator: Discriminator, normal: FeatureBank | BankOnDisk, share: float, score_share: float
) -> float:
    """Compute the weight that gives the opinion of the regions its share of the image scores.

    Opinions on the training normals have the standard deviation 1, so the weight is `share` times the standard deviation of
    what patches alone contribute to the scores of these images, measured on at most 2,048 of them.

    Args:
        discriminator: has learned, and its `distance_weight` is set; its own `regions.weight` is ignored.
        normal: whitened normal bank of whole images.
        share: >= 0; 0 switches the opinion off, as in the paper.
        score_share: see `anomaly_score`.
    """
    if share == 0:
        return 0.0
    with _weights(discriminator):
        maps = spaced_maps(normal, _MOST_IMAGES, _IMAGES)
        return share * _deviation(discriminator, maps, score_share, discriminator.regions.weight.device)


def weigh_opacity(
    discriminator: Discriminator,
    normal: FeatureBank | BankOnDisk,
    direction: Tensor | None,
    share: float,
    score_share: float,
) -> None:
    """Set the direction of opacities, weighted, in a discriminator whose other terms are set.

    Over the training normals, of which at most 400 are measured, it contributes `share` times the standard deviation of all
    other terms to the image scores.

    Args:
        discriminator: its `opacity` is set; its value so far is ignored.
        normal: whitened normal bank of whole images.
        direction: [C], see `opacity_directions`; None sets zeros.
        share: >= 0; 0 sets zeros, as in the paper.
        score_share: see `anomaly_score`.
    """
    discriminator.opacity.zero_()
    if share == 0 or direction is None:
        return
    device = discriminator.opacity.device
    own = direction.to(discriminator.opacity)

    def deviation(patch_scores: Callable[[Tensor], Tensor]) -> float:
        return _deviation(patch_scores, spaced_maps(normal, _OPACITY_IMAGES, _IMAGES), score_share, device)

    alone = deviation(lambda maps: torch.einsum("bchw,c->bhw", maps, own)[:, None])
    if not alone > 0:
        return
    mode = discriminator.training
    others = deviation(discriminator.eval())
    discriminator.train(mode)
    discriminator.opacity.copy_(share * others / alone * own)


def weigh_opacity_map(
    discriminator: Discriminator, normal: FeatureBank | BankOnDisk, direction: Tensor | None, weight: float
) -> None:
    """Set how much opacities count in maps; the other terms of the discriminator are set.

    At the average place of the picture they vary over the training normals, of which at most 400 are measured, `weight` times
    as much as the patch scores.

    Args:
        discriminator: its `opacity_map` is set; its value so far is ignored.
        normal: whitened normal bank of whole images.
        direction: [C], see `opacity_directions`; None sets zeros.
        weight: >= 0; 0 sets zeros.
    """
    discriminator.opacity_map.zero_()
    if weight == 0 or direction is None:
        return
    own = direction.to(discriminator.opacity_map)
    mode = discriminator.training
    discriminator.eval()
    scores, local = [], []
    with torch.inference_mode():
        for maps in spaced_maps(normal, _OPACITY_IMAGES, _IMAGES):
            here = maps.to(own.device)
            scores.append(discriminator(here)[:, 0])
            local.append(discriminator.opacities(here.permute(0, 2, 3, 1), own))
    discriminator.train(mode)
    others, alone = (float(torch.cat(parts).double().std(0, correction=0).mean()) for parts in (scores, local))
    if alone > 0:
        discriminator.opacity_map.copy_(weight * others / alone * own)


def opacity_share(share: float, abnormal_images: int, classes: int) -> float:
    """Return the share of the opacities in a training with abnormal images: `share` divided by their number per class.

    They are a hint while few examples exist: with one image per class they help, with eight they no longer do.

    Args:
        share: option of the training, >= 0.
        abnormal_images: number of abnormal images, at least 1.
        classes: number of their classes, at least 1.
    """
    return share * classes / abnormal_images


def check_opacity_options(share: float, map_weight: float) -> None:
    """Check the options of the opacities.

    Raises:
        InputError: when one is negative or not finite.
    """
    for name, value in (("opacity_share", share), ("opacity_map", map_weight)):
        if not (math.isfinite(value) and value >= 0):
            raise InputError(f"{name} must be 0 (off) or more, got {value}")


@contextlib.contextmanager
def _weights(discriminator: Discriminator, distance: float | None = None) -> Iterator[None]:
    """Put a discriminator into evaluation mode, without regions and opacities; `distance` replaces its distance weight."""
    mode = discriminator.training
    # `opacity_map` has no influence but rounding, which would depend on how often weights were set before
    opacities = (discriminator.opacity, discriminator.opacity_map)
    changed = (discriminator.distance_weight, discriminator.regions.weight, *opacities)
    before = [value.clone() for value in changed]
    discriminator.eval()
    discriminator.regions.weight.zero_()
    for direction in opacities:
        direction.zero_()
    if distance is not None:
        discriminator.distance_weight.fill_(distance)
    try:
        yield
    finally:
        for value, own in zip(changed, before, strict=True):
            value.copy_(own)
        discriminator.train(mode)


def _deviation(
    patch_scores: Callable[[Tensor], Tensor],
    images: Iterable[Tensor],
    score_share: float,
    device: str | torch.device,
) -> float:
    """Measure the standard deviation over maps of images of the scores that follow from patch scores of features."""
    parts = [image_scores(patch_scores, maps.to(device), score_share) for maps in images]
    return float(torch.cat(parts).double().std(correction=0))
