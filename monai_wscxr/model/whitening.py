"""Whitening: patch features centred and scaled by the statistics of the normal bank, with a shrunken covariance."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from monai_wscxr.bank.rows import BLOCK_ROWS, RowSource, row_blocks
from monai_wscxr.errors import InputError

_PART_NUMBERS = 1 << 19  # numbers in the rows that are whitened at a time: 2 MB of float32


class Moments(NamedTuple):
    """Sums over rows [N, C], float64. Those of a part of the rows can be subtracted.

    Attributes:
        rows: N.
        total: sum of the rows, [C].
        products: sum of the outer products of each row with itself, [C, C].
    """

    rows: int
    total: Tensor
    products: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> Moments:
        """Return the moments of rows [N, C]."""
        values = rows.double()
        return cls(len(values), values.sum(0), values.T @ values)

    def without(self, part: Moments) -> Moments:
        """Return the moments of the rows that do not belong to a part."""
        return Moments(self.rows - part.rows, self.total - part.total, self.products - part.products)


class NormalWhitening(nn.Module):
    """Whitening by the normal bank: z = W (m - mu) for a patch feature m, with W = (Sigma + s t I)^(-1/2).

    mu and Sigma are mean and covariance of the normal bank, t is the mean of the diagonal of Sigma, and s the shrinkage.
    Directions in which normal patches vary much count less; the shrinkage keeps directions in which they hardly vary from being
    amplified. In these coordinates the first gradient of Eq. 7 has the direction of Fisher's linear discriminant with that
    covariance (Friedman, Regularized Discriminant Analysis, 1989), and |z| is a Mahalanobis distance to the normals. Whitening
    is affine, so mixing (Eq. 6) commutes with it.

    Args:
        channels: C of the patch features, >= 1.
        active: False leaves features as they are, as published.

    Attributes:
        mean: [C], zeros until `fit`.
        matrix: [C, C] symmetric, the identity until `fit`.

    Raises:
        InputError: when `channels` is below 1.
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
        # torch.eye would import torch's compiler where a model's shapes are checked without memory
        self.register_buffer("matrix", torch.zeros(kept, kept).fill_diagonal_(1))

    def forward(self, features: Tensor) -> Tensor:
        """Return whitened rows [N, C] or maps [B, C, h, w]."""
        if not self.active:
            return features
        if features.dim() == 2:
            return (features - self.mean) @ self.matrix
        return ((features.permute(0, 2, 3, 1) - self.mean) @ self.matrix).permute(0, 3, 1, 2)

    @torch.jit.unused
    def into(self, rows: Tensor, out: Tensor) -> None:
        """Write whitened rows [N, C] into `out` [N, C], which may be the rows themselves.

        On a CPU the rows are processed in parts that fit into the processor's cache, so little memory is needed besides.
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
        """Fit mean and covariance to the normal bank, if the whitening is active.

        One pass over the rows: sums and products of the rows minus the mean of the first part are accumulated in float64 and
        corrected for the overall mean at the end. The correction does not lose accuracy when the first part is an outlier,
        because its rows then make the covariance large as well. The square root is the symmetric one, which is stable under
        rounding.

        Args:
            rows: [N, C] of the normal bank, N >= 1; in memory or on disk, with the same result.
            shrinkage: s > 0.
            nuisance: [C, C] covariance that is added to that of the bank, see `nuisance_covariance`; None adds nothing.
            part: rows per step.

        Raises:
            InputError: when the shrinkage is not a positive number, or all rows are equal.
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

    @torch.jit.unused
    def colouring(self) -> Tensor:
        """Return W^(-1), float64 [C, C] in main memory, for `align`.

        Raises:
            InputError: when the whitening is not active.
        """
        if not self.active:
            raise InputError("features of this model are not whitened, so they cannot be aligned with a site")
        inverse: Tensor = torch.linalg.inv(self.matrix.cpu().double())
        return inverse

    @torch.jit.unused
    def align(self, site: Moments, colouring: Tensor) -> None:
        """Align the whitening with another site, from patch features of its normal images.

        The mean becomes that of the site. A discriminator that is linear, w, has the direction W w in features, which by
        Fisher's discriminant stands for the difference W^(-1) w between abnormal and normal. At the site the same difference
        counts, and the covariance is that of both sites added: W becomes 2 (S + Sigma_site)^(-1) S W with S = W^(-2), so that
        directions in which the site's normals vary count less. With Sigma_site = S nothing changes.

        Args:
            site: moments of the rows [N, C], not whitened, N >= 1, in main memory.
            colouring: result of `colouring` before any alignment.

        Raises:
            InputError: when all rows are equal.
        """
        centre = site.total / site.rows
        covariance = site.products / site.rows - centre.outer(centre)
        # beside rounding of the products, which are sums of squares
        if not float(covariance.diagonal().mean()) > 1e-12 * float(centre.square().mean()):
            raise InputError("all patches of the normal images are equal; are the images blank?")
        both = torch.linalg.cholesky(colouring @ colouring + covariance)  # W is symmetric as `fit` left it
        self.mean.copy_(centre)
        self.matrix.copy_(2 * torch.cholesky_solve(colouring, both))
