"""The opinion of the regions, fitted to the banks of a training."""

from __future__ import annotations

import math

import torch

from monai_wscxr.bank.feature_bank import BankOnDisk, FeatureBank, spaced_maps
from monai_wscxr.errors import InputError
from monai_wscxr.model.networks import Discriminator
from monai_wscxr.model.regions import region_means
from monai_wscxr.model.scores import check_score_share
from monai_wscxr.system.processes import first_process, from_first
from monai_wscxr.training.banks import TrainingBanks
from monai_wscxr.training.distance import check_distance_share

_IMAGES = 256  # images whose maps are in memory at a time
_MOST_IMAGES = 8192  # more normals hardly change the fit, whose work grows with the square of their number


def check_region_options(share: float, shrinkage: float, nuisance: float) -> None:
    """Check the options of the regions' opinion.

    Raises:
        InputError: when `share` or `nuisance` is negative or not finite, or `shrinkage` lies outside (0, 1].
    """
    if not (math.isfinite(share) and share >= 0):
        raise InputError(f"region_share must be 0 (off) or more, got {share}")
    if not 0 < shrinkage <= 1:
        raise InputError(f"region_shrinkage must lie in (0, 1], got {shrinkage}")
    if not (math.isfinite(nuisance) and nuisance >= 0):
        raise InputError(f"region_nuisance must be 0 or more, got {nuisance}")


def check_score_options(
    score_share: float, distance_share: float, region_share: float, region_shrinkage: float, region_nuisance: float
) -> None:
    """Check the options of what takes part in an image's score.

    Raises:
        InputError: on the first one out of its range.
    """
    check_score_share(score_share)
    check_distance_share(distance_share)
    check_region_options(region_share, region_shrinkage, region_nuisance)


def fit_regions(discriminator: Discriminator, banks: TrainingBanks, shrinkage: float, nuisance: float) -> None:
    """Fit the opinion of the regions in the first process and hand it to all.

    Args:
        discriminator: its `regions` are fitted; their weight stays.
        banks: whitened normal and abnormal images, and what alterations do to region means.
        shrinkage, nuisance: see `RegionHead.fit`.
    """
    regions = discriminator.regions
    if first_process():
        regions.fit(_means(banks.normal), _means(banks.abnormal), banks.moved_regions, shrinkage, nuisance)
    regions.load_state_dict(from_first({name: value.cpu() for name, value in regions.state_dict().items()}))


def _means(bank: FeatureBank | BankOnDisk) -> torch.Tensor:
    """Return the region means [n, 6 C] of a bank of whole images, or of `_MOST_IMAGES` evenly spaced ones."""
    return torch.cat([region_means(maps) for maps in spaced_maps(bank, _MOST_IMAGES, _IMAGES)])
