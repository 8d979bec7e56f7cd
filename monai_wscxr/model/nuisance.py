"""Within-class covariance normalisation: how much patch features move when the same radiograph is taken differently.

The covariance of the differences between images and their altered copies (another framing, detector or angle) is added to the
covariance of the normal bank. Whitening then gives less weight to directions in which features vary within one chest (Hatch,
Kajarekar and Stolcke, Within-class covariance normalization for SVM-based speaker recognition, 2006). The option is called
`nuisance` after nuisance attribute projection, which removes such directions altogether (Solomonoff, Campbell and Boardman,
Advances in channel compensation for SVM speaker recognition, 2005).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from monai_wscxr.bank.feature_bank import BankOnDisk, FeatureBank
from monai_wscxr.features.copies import ALTERED, copied_images, copy_features, kept
from monai_wscxr.features.extraction import PatchExtractor
from monai_wscxr.model.regions import region_means


def nuisance_covariance(original: Tensor, altered: Tensor, part: int = 8192) -> Tensor:
    """Return the mean outer product [C, C] float64 of the differences between original and altered patch features.

    Args:
        original: [N, C] rows of images, N >= 1.
        altered: [N, C] rows of altered copies of the same images, in the same order.
        part: rows per step.

    Raises:
        ValueError: when the shapes differ, or there are no rows.
    """
    if original.shape != altered.shape or not len(original):
        raise ValueError(
            f"original rows {tuple(original.shape)} and altered rows {tuple(altered.shape)} must have one shape "
            "and not be empty"
        )
    total = torch.zeros(original.shape[1], original.shape[1], dtype=torch.float64, device=original.device)
    for before, after in zip(original.split(part), altered.split(part), strict=True):
        moved = after - before
        total += (moved.T @ moved).double()
    return total / len(original)


class Nuisance(NamedTuple):
    """What alterations do to features.

    Attributes:
        covariance: [C, C] float64, of patch features.
        regions: [m, 6 C], changes of the region means, one row per copy; see `region_means`.
    """

    covariance: Tensor
    regions: Tensor


def nuisance_of(extractor: PatchExtractor, normal: FeatureBank | BankOnDisk, count: int, copies: int) -> Nuisance:
    """Measure what the alteration `ALTERED` does to images of the normal bank.

    Args:
        extractor: extractor that made the bank.
        normal: bank of whole images.
        count: number of images to copy, see `copied_images`.
        copies: number of copies per image.

    Raises:
        InputError: as `copy_features`.
    """
    chosen = copied_images(extractor, normal.files, count)
    key = [extractor.digests[normal.files[n]] for n in chosen], copies
    return kept(extractor, "nuisance", key, lambda: _measured(extractor, normal, chosen, copies))


def _measured(
    extractor: PatchExtractor, normal: FeatureBank | BankOnDisk, chosen: Sequence[int], copies: int
) -> Nuisance:
    made = copy_features(extractor, [normal.files[n] for n in chosen], ALTERED, copies)
    patches = len(normal) // len(normal.files)
    total = torch.zeros(made.shape[-1], made.shape[-1], dtype=torch.float64)
    changes = []
    for number, copied in zip(chosen, made.split(copies), strict=True):
        rows = patches * number + torch.arange(patches)
        own = normal.rows.gather(rows) if isinstance(normal, BankOnDisk) else normal.rows[rows]
        total += nuisance_covariance(own.repeat(copies, 1), copied.flatten(0, 1))
        maps = (copied - own).transpose(1, 2).unflatten(2, extractor.grid)
        changes.append(region_means(maps))  # linear: the change of the means is the mean of the change
    return Nuisance(total / len(chosen), torch.cat(changes))
