"""Opinion on a whole picture: a linear discriminant on the mean features of six regions, shared out to the patches.

A patch sees a small part of the chest. Findings such as an enlarged heart or an effusion change a whole region, and there a few
labelled images say more: Fisher's discriminant on region means finds them where patches do not (docs/results.md). The regions
are three overlapping bands, each divided into the middle of the picture and its two sides together, so that left and right
count alike.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

REGIONS = 6


class RegionHead(nn.Module):
    """Fisher's linear discriminant between normal and abnormal pictures, on region means of patch features.

    Args:
        channels: C of the patch features, >= 1.

    Attributes:
        centre: [6, C], mean of the normals' region means; zeros until `fit`.
        direction: [6, C]; zeros until `fit`. Opinions on the training normals have the standard deviation 1.
        weight: weight of the opinion; 0 switches it off. `RegionHandler` sets it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.centre: Tensor
        self.direction: Tensor
        self.weight: Tensor
        self.register_buffer("centre", torch.zeros(REGIONS, channels))
        self.register_buffer("direction", torch.zeros(REGIONS, channels))
        self.register_buffer("weight", torch.zeros(()))

    def forward(self, features: Tensor) -> Tensor:
        """Return what each patch contributes to the weighted opinion, [B, h, w], for patch features [B, C, h, w].

        The opinion is linear in the region means and these are linear in the patches, so it is the mean of such contributions
        over all patches. A patch counts with the direction of each region that it lies in.
        """
        height, width = features.shape[2], features.shape[3]
        shares = region_shares(height, width).to(features) * (height * width)  # [6, h*w]
        rows = features.flatten(2)  # [B, C, h*w]
        inside = (self.direction @ rows - (self.direction * self.centre).sum(1)[:, None]) * shares  # [B, 6, h*w]
        contributions = self.weight * inside.sum(1)
        return contributions.reshape(features.shape[0], height, width)

    @torch.jit.unused
    def fit(
        self,
        normal: Tensor,
        abnormal: Tensor,
        moved: Tensor | None = None,
        shrinkage: float = 0.7,
        nuisance: float = 6.0,
    ) -> None:
        """Fit centre and direction.

        Every value is divided by its standard deviation over the normals. The covariance is that of the normals plus that of
        changes by alterations, shrunken towards the identity: (1 - s) (Sigma + v N) + s t I, with t the mean of the diagonal of
        Sigma + v N. It has as many rows as there are pictures, which are far fewer than its columns, so the linear system
        is solved in the space of the pictures (Woodbury identity), in float64.

        Args:
            normal: [n, 6 C] region means of normal pictures, n >= 1.
            abnormal: [a, 6 C] of abnormal ones, a >= 1.
            moved: [m, 6 C] differences between altered copies and originals; None without copies.
            shrinkage: s in (0, 1].
            nuisance: v >= 0.
        """
        values, few = normal.double(), abnormal.double()
        centre = values.mean(0)
        spread = values.std(0, correction=0).clamp_min(1e-6 * float(values.std(correction=0)) + 1e-12)
        scaled = (values - centre) / spread
        rows = [scaled * ((1 - shrinkage) / len(scaled)) ** 0.5]
        diagonal = float(scaled.square().mean())
        if moved is not None and len(moved) and nuisance > 0:
            changes = moved.double() / spread
            rows.append(changes * ((1 - shrinkage) * nuisance / len(changes)) ** 0.5)
            diagonal += nuisance * float(changes.square().mean())
        basis = torch.cat(rows)
        ridge = max(shrinkage * diagonal, 1e-12)
        gram = basis @ basis.T
        gram.diagonal().add_(ridge)
        difference = (few.mean(0) - centre) / spread
        direction = (difference - basis.T @ torch.linalg.solve(gram, basis @ difference)) / ridge / spread
        deviation = ((values - centre) @ direction).std(correction=0)
        self.centre.copy_(centre.reshape(REGIONS, -1))
        scaled_direction = direction / deviation if deviation > 0 else torch.zeros_like(direction)
        self.direction.copy_(scaled_direction.reshape(REGIONS, -1))


def region_means(features: Tensor) -> Tensor:
    """Return the mean features [B, 6 C] of the regions of pictures, from patch features [B, C, h, w].

    The order is: middle above, at mid-height, below; then sides above, at mid-height, below.
    """
    height, width = features.shape[2], features.shape[3]
    shares = region_shares(height, width).to(features)  # [6, h*w]
    means = features.flatten(2) @ shares.T  # [B, C, 6]
    return means.permute(0, 2, 1).flatten(1)


def region_shares(height: int, width: int) -> Tensor:
    """Return the share [6, height * width] of every patch in the mean of each region; each row sums to 1.

    The bands reach from the top to 40 %, from 30 to 70 % and from 60 % to the bottom; the middle from 30 to 70 % of the width.
    A patch belongs to where its centre lies. A band or column in which no centre lies, on very coarse grids, is the whole.
    """
    # five times twice the centre in patches: whole numbers, so that no patch depends on rounding
    y, x = 10 * torch.arange(height) + 5, 10 * torch.arange(width) + 5
    bands = torch.stack([y < 4 * height, (y >= 3 * height) & (y <= 7 * height), y > 6 * height])
    middle = (x >= 3 * width) & (x <= 7 * width)
    columns = torch.stack([middle, ~middle])
    bands, columns = _filled(bands), _filled(columns)
    regions = columns[:, None, None, :] * bands[None, :, :, None]  # [2, 3, h, w]
    flat = regions.reshape(6, height * width)
    return flat / flat.sum(1, keepdim=True)


def _filled(chosen: Tensor) -> Tensor:
    """Return masks [n, l] as numbers, with all ones where a mask is empty."""
    numbers = chosen.to(torch.float32)
    return torch.where(numbers.sum(1, keepdim=True) > 0, numbers, torch.ones_like(numbers))
