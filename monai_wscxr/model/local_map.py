"""Anomaly maps that compare a place with the same place of normal radiographs and with the other side of the chest.

A patch score says how much a patch speaks for an abnormal picture, and how large it usually is depends on where the patch lies.
Here it is measured against held-out normals at the same place, against its mirror image, and weighed by an explicit prior that
lesions lie inside the picture and not at its rim. Image scores do not depend on any of this.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from monai_wscxr.errors import InputError

_FEWEST_NORMALS = 8  # fewer say nothing about mean and spread at a place
_MIRRORED = 0.5  # share of the other side's value that is taken off
_WHOLE = 2.5  # share of the picture's mean that is added
_OFFSET = 1.0  # added before the weights, so that an unremarkable place inside the chest stands above the rim


@dataclass(frozen=True, eq=False)
class LocalMap:
    """What patch scores are at each place of normal radiographs.

    Attributes:
        mean: [h, w], mean patch score of held-out normals.
        spread: [h, w], > 0, their standard deviation; that of a place counts half, the average of all places the other half.
    """

    mean: Tensor
    spread: Tensor

    def __call__(self, patch_scores: Tensor) -> Tensor:
        """Return local scores [B, 1, h, w] of patch scores [B, 1, h, w].

        With z = (A - mean) / spread: (z - z of the mirrored place / 2 + b times the picture's mean z + 1) times a weight that
        falls from 1 in the middle of the picture to 0 at its edges. The third term keeps the whole map of an abnormal picture
        above that of a normal one.

        Raises:
            InputError: when the patch scores have another grid.
        """
        if patch_scores.shape[-2:] != self.mean.shape:
            raise InputError(
                f"maps of this model have {tuple(self.mean.shape)} patches, these scores {tuple(patch_scores.shape[-2:])}"
            )
        z = (patch_scores - self.mean.to(patch_scores)) / self.spread.to(patch_scores)
        height, width = self.mean.shape
        weight = _rise(height)[:, None] * _rise(width)[None]
        whole = _WHOLE * z.mean((2, 3), keepdim=True)
        return (z - _MIRRORED * z.flip(-1) + whole + _OFFSET) * weight.to(patch_scores)

    @classmethod
    def measure(cls, patch_scores: Tensor) -> LocalMap | None:
        """Measure mean and spread of the patch scores [n, 1, h, w] of held-out normals; None with fewer than eight."""
        if len(patch_scores) < _FEWEST_NORMALS:
            return None
        values = patch_scores[:, 0].double().cpu()
        variance = values.var(0, correction=0)
        spread = (0.5 * variance + 0.5 * variance.mean()).sqrt()
        if not bool(torch.isfinite(spread).all()) or not float(spread.min()) > 0:
            return None
        return cls(values.mean(0).float(), spread.float())

    @classmethod
    def estimate(cls, patch_scores: Tensor) -> LocalMap | None:
        """Estimate the map of normals from patch scores [n, 1, h, w] of images of which half may be abnormal.

        Mean and spread at a place are fitted to the quantiles between 5 % and 40 %, as those of a normal distribution: high
        values may be findings.
        """
        if len(patch_scores) < _FEWEST_NORMALS:
            return None
        values = patch_scores[:, 0].double().cpu()
        levels = torch.linspace(0.05, 0.40, 12, dtype=torch.float64)
        expected = math.sqrt(2) * torch.erfinv(2 * levels - 1)
        quantiles = values.quantile(levels, dim=0)  # [12, h, w]
        offset = expected - expected.mean()
        slope = (offset[:, None, None] * quantiles).sum(0) / offset.square().sum()
        mean = quantiles.mean(0) - slope * expected.mean()
        variance = slope.square()
        spread = (0.5 * variance + 0.5 * variance.mean()).sqrt()
        if not bool(torch.isfinite(spread).all()) or not float(spread.min()) > 0:
            return None
        return cls(mean.float(), spread.float())

    def to_dict(self) -> dict[str, Any]:
        """Return the values as JSON-like lists."""
        return {"mean": self.mean.tolist(), "spread": self.spread.tolist()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Sequence[Sequence[float]]]) -> LocalMap:
        """Build the map from the values of `to_dict`.

        Raises:
            InputError: when the values are no two grids of the same size, or a spread is not above 0.
        """
        try:
            mean, spread = (torch.tensor(values[name], dtype=torch.float32) for name in ("mean", "spread"))
        except (ValueError, TypeError) as error:
            raise InputError("the reference of the maps is damaged: its rows have different lengths") from error
        finite = all(bool(torch.isfinite(part).all()) for part in (mean, spread))
        if mean.dim() != 2 or mean.shape != spread.shape or not finite or not bool((spread > 0).all()):
            raise InputError(
                "the reference of the maps is damaged: it needs two grids of the same size, spreads above 0"
            )
        return cls(mean, spread)


def _rise(count: int) -> Tensor:
    """Return weights [count] that rise and fall like half a sine wave, at the centres of patches."""
    return torch.sin(math.pi * (torch.arange(count) + 0.5) / count)
