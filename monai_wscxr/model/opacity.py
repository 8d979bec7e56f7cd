"""What opacities do to patch features: a direction learned from synthetic ones, a hint while abnormal images are few."""

from __future__ import annotations

import torch
from torch import Tensor

from monai_wscxr.bank.feature_bank import BankOnDisk, FeatureBank
from monai_wscxr.features.copies import OPACITIES, copied_images, copy_features
from monai_wscxr.features.extraction import PatchExtractor
from monai_wscxr.model.whitening import NormalWhitening

_CHANGED = 0.25  # share of an image's patches that count for scores: those that changed most
_MAP_CHANGED = 0.1  # the same for maps
_MAP_SHRINKAGE = 0.1  # of the covariance behind the direction for maps


def opacity_changes(extractor: PatchExtractor, normal: FeatureBank | BankOnDisk, count: int, opacities: int) -> Tensor:
    """Measure how synthetic opacities change the patch features of images of the normal bank.

    Args:
        extractor: extractor that made the bank.
        normal: bank of whole images, not whitened.
        count: number of images to copy, see `copied_images`.
        opacities: number of copies per image, each with another opacity.

    Returns:
        [m, h*w, C], copy minus original.

    Raises:
        InputError: as `copy_features`.
    """
    chosen = copied_images(extractor, normal.files, count)
    changes = copy_features(extractor, [normal.files[n] for n in chosen], OPACITIES, opacities)  # [m, h*w, C]
    patches = len(normal) // len(normal.files)
    for number, copied in zip(chosen, changes.split(opacities), strict=True):
        rows = patches * number + torch.arange(patches)
        copied -= normal.rows.gather(rows) if isinstance(normal, BankOnDisk) else normal.rows[rows].to(copied)
    return changes


def opacity_directions(changes: Tensor, whitening: NormalWhitening, shrinkage: float) -> tuple[Tensor, Tensor]:
    """Return the directions [C] of opacities for scores and for maps, in whitened features.

    That for scores is the mean change of the quarter of each image's patches that changed most. That for maps is Fisher's
    discriminant of the tenth that changed most. Its covariance is shrunken less than that of the whitening, whose shrinkage
    suits a direction learned from a few abnormal images.

    Args:
        changes: [m, h*w, C] of features that are not whitened, m >= 1.
        whitening: fitted to the normal bank, and active.
        shrinkage: s of the whitening's fit, see `NormalWhitening`.
    """
    moved = changes.to(whitening.matrix) @ whitening.matrix
    # W^(-2) = C + s t I with t the mean of the diagonal of C; another shrinkage r takes (s - r) t off its eigenvalues
    values, vectors = torch.linalg.eigh(whitening.matrix.double())
    variances = values.pow(-2)
    typical = variances.mean() / (1 + shrinkage)
    gain = variances / (variances - max(shrinkage - _MAP_SHRINKAGE, 0.0) * typical)
    change = _mean_change(moved, _MAP_CHANGED).double()
    return _mean_change(moved, _CHANGED), (vectors @ (gain * (vectors.T @ change))).to(moved)


def _mean_change(moved: Tensor, share: float) -> Tensor:
    """Return the mean [C] of the share of each image's patches that changed most, for changes [m, h*w, C]."""
    count = max(1, round(share * moved.shape[1]))
    chosen = moved.square().sum(2).topk(count, dim=1).indices  # [m, count]
    return moved.gather(1, chosen[..., None].expand(-1, -1, moved.shape[2])).mean((0, 1))
