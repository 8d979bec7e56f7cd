"""What an alteration of images does to their patch features."""

from __future__ import annotations

import torch
from torch import Tensor

from monai_wscxr.bank.feature_bank import BankOnDisk, FeatureBank
from monai_wscxr.features.copies import ALTERED, copied_images, copy_features
from monai_wscxr.features.extraction import PatchExtractor


def nuisance_covariance(original: Tensor, altered: Tensor, part: int = 8192) -> Tensor:
    """Mean outer product of what an alteration does to patch features, [C, C] float64.

    Added to the covariance of the normals it makes directions count less in which features move when another framing,
    detector or angle shows the same chest (within-class covariance normalisation, Hatch, Kajarekar and Stolcke, 2006).

    Args:
        original: [N, C] rows of images.
        altered: [N, C] rows of altered copies of the same images, in the same order.
        part: rows taken at a time.

    Raises:
        ValueError: when the two do not have the same shape, or no rows.
    """
    if original.shape != altered.shape or not len(original):
        raise ValueError(f"rows {tuple(original.shape)} and of their altered copies {tuple(altered.shape)} do not fit")
    total = torch.zeros(original.shape[1], original.shape[1], dtype=torch.float64, device=original.device)
    for before, after in zip(original.split(part), altered.split(part), strict=True):
        moved = after - before
        total += (moved.T @ moved).double()
    return total / len(original)


def nuisance_of(extractor: PatchExtractor, normal: FeatureBank | BankOnDisk, count: int, copies: int) -> Tensor:
    """What `ALTERED` does to the patch features of normal images, see `nuisance_covariance`.

    Args:
        extractor: made the bank.
        normal: bank of whole images.
        count: how many of them are copied, see `copied_images`.
        copies: of each.
    """
    chosen = copied_images(extractor, normal.files, count)
    made = copy_features(extractor, [normal.files[n] for n in chosen], ALTERED, copies)
    patches = len(normal) // len(normal.files)
    total = torch.zeros(made.shape[-1], made.shape[-1], dtype=torch.float64)
    for number, copied in zip(chosen, made.split(copies), strict=True):
        rows = patches * number + torch.arange(patches)
        own = normal.rows.gather(rows) if isinstance(normal, BankOnDisk) else normal.rows[rows]
        total += nuisance_covariance(own.repeat(copies, 1), copied.flatten(0, 1))
    return total / len(chosen)
