"""Statistics of the normal bank: patch features centred and whitened with a shrunken covariance."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from monai_wscxr.bank.rows import BLOCK_ROWS, RowSource, row_blocks
from monai_wscxr.errors import InputError

_PART_NUMBERS = 1 << 19  # of a part of the rows: 2 MB


class NormalWhitening(nn.Module):
    """z = W (m - mu) for a patch feature m, with the mean mu of the normal bank and W = (Sigma + s t I)^(-1/2).

    Sigma is the covariance of the normal bank, t the mean of its diagonal and s the shrinkage: directions in which normal
    patches vary a lot count less, directions in which they hardly vary are not blown up. In these coordinates the first
    gradient of Eq. 7 points along Fisher's linear discriminant with that covariance (Friedman, Regularized Discriminant
    Analysis, 1989), and |z| is a Mahalanobis distance to the normals. Mixing (Eq. 6) is unchanged by it: whitening is affine.

    Args:
        channels: C of the patch features, >= 1.
        active: False leaves features as they are, as in the paper.

    Attributes:
        mean: [C], zeros until `fit`.
        matrix: [C, C] symmetric, the identity until `fit`.

    Raises:
        InputError: on a channel count below 1.
    """

    def __init__(self, channels: int, active: bool = True) -> None:
        super().__init__()
        if channels < 1:
            raise InputError(f"whitening needs at least one channel, got {channels}")
        self.active = bool(active)
        kept = channels if self.active else 0
        self.mean: Tensor
        self.matrix: Tensor
        self.register_buffer("mean", torch.zeros(kept))
        self.register_buffer("matrix", torch.eye(kept))

    def forward(self, features: Tensor) -> Tensor:
        """Rows [N, C] or maps [B, C, h, w], whitened, in the same shape."""
        if not self.active:
            return features
        if features.dim() == 2:
            return (features - self.mean) @ self.matrix
        return ((features.permute(0, 2, 3, 1) - self.mean) @ self.matrix).permute(0, 3, 1, 2)

    @torch.jit.unused
    def into(self, rows: Tensor, out: Tensor) -> None:
        """Write whitened rows [N, C] into `out` [N, C], which may be the rows themselves.

        On a CPU it works on parts that stay in the processor's cache and takes no memory as large as the rows.
        """
        if not self.active or self.mean.device.type != "cpu":
            out.copy_(self(rows.to(self.mean.device)))
            return
        part = max(1, _PART_NUMBERS // rows.shape[1])
        for some, place in zip(rows.split(part), out.split(part), strict=True):
            torch.mm(some - self.mean, self.matrix, out=place)

    @torch.jit.unused
    def fit(
        self, rows: Tensor | RowSource, shrinkage: float, nuisance: Tensor | None = None, part: int = BLOCK_ROWS
    ) -> None:
        """Take mean and covariance from the normal bank; nothing happens when not active.

        One pass: sums and products of rows minus the mean of the first part, added up in float64, are corrected for the
        mean of all at the end. The root is symmetric, so the result hardly depends on rounding, whatever the first part is:
        where its mean lies far from that of all, its own rows make the covariance as large.

        Args:
            rows: [N, C] of the normal bank, at least one; in memory or on disk, with the same result.
            shrinkage: s > 0.
            nuisance: [C, C] covariance added to that of the bank, see `nuisance_covariance`; None adds nothing.
            part: rows taken at a time.

        Raises:
            InputError: when the shrinkage is not a positive number or all rows are equal.
        """
        if not self.active:
            return
        if not (math.isfinite(shrinkage) and shrinkage > 0):
            raise InputError(f"the shrinkage must be greater than 0, got {shrinkage}")
        device, (count, channels) = self.mean.device, rows.shape
        pivot = next(row_blocks(rows, part)).to(device).double().mean(0).to(self.mean.dtype)
        total = torch.zeros(channels, dtype=torch.float64, device=device)
        products = torch.zeros(channels, channels, dtype=torch.float64, device=device)
        centred = torch.empty(min(part, count), channels, dtype=pivot.dtype, device=device)
        for block in row_blocks(rows, part):
            moved = torch.sub(block.to(device), pivot, out=centred[: len(block)])
            total += moved.sum(0)
            products += moved.T @ moved
        shift = total / count
        centre = (pivot + shift).to(self.mean.dtype)
        covariance = products / count - shift.outer(shift)
        if nuisance is not None:
            covariance += nuisance.to(covariance)
        typical = covariance.diagonal().mean()
        if not float(typical) > 0:
            raise InputError("all patches of the normal bank are equal; are the normal images blank?")
        values, vectors = torch.linalg.eigh(covariance)
        root = (values.clamp(min=0) + shrinkage * typical).rsqrt()
        self.mean.copy_(centre)
        self.matrix.copy_((vectors * root) @ vectors.T)
