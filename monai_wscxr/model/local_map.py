"""Anomaly maps that compare a place with the same place of normal radiographs and with the other side of the chest.

A patch score says how much a patch speaks for an abnormal picture, and how large it usually is depends on where the patch lies.
Here it is measured against held-out normals at the same place, against its mirror image, and weighed by an explicit prior that
lesions lie inside the picture and not at its rim. Image scores do not depend on any of this.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

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

    mean: NDArray[np.float32]
    spread: NDArray[np.float32]

    def __call__(self, patch_scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return local scores [B, 1, h, w] of patch scores [B, 1, h, w].

        With z = (A - mean) / spread: (z - z of the mirrored place / 2 + b times the picture's mean z + 1) times a weight that
        falls from 1 in the middle of the picture to 0 at its edges. The third term keeps the whole map of an abnormal picture
        above that of a normal one.

        Raises:
            InputError: when the patch scores have another grid.
        """
        if patch_scores.shape[-2:] != self.mean.shape:
            raise InputError(
                f"maps of this model have {self.mean.shape} patches, these scores {patch_scores.shape[-2:]}"
            )
        z = (patch_scores - self.mean) / self.spread
        height, width = self.mean.shape
        weight = (_rise(height)[:, None] * _rise(width)[None]).astype(np.float32)
        whole = np.float32(_WHOLE) * z.mean((2, 3), keepdims=True, dtype=np.float32)
        local: NDArray[np.float32] = (z - np.float32(_MIRRORED) * z[..., ::-1] + whole + np.float32(_OFFSET)) * weight
        return local

    @classmethod
    def measure(cls, patch_scores: ArrayLike) -> LocalMap | None:
        """Measure mean and spread of the patch scores [n, 1, h, w] of held-out normals; None with fewer than eight."""
        values = np.asarray(patch_scores, np.float64)
        return cls._of(values[:, 0].mean(0), values[:, 0].var(0)) if len(values) >= _FEWEST_NORMALS else None

    @classmethod
    def estimate(cls, patch_scores: ArrayLike) -> LocalMap | None:
        """Estimate the map of normals from patch scores [n, 1, h, w] of images of which half may be abnormal.

        Mean and spread at a place are fitted to the quantiles between 5 % and 40 %, as those of a normal distribution: high
        values may be findings.
        """
        values = np.asarray(patch_scores, np.float64)
        if len(values) < _FEWEST_NORMALS:
            return None
        levels = np.linspace(0.05, 0.40, 12)
        expected = np.array([statistics.NormalDist().inv_cdf(level) for level in levels.tolist()])
        quantiles = np.quantile(values[:, 0], levels, axis=0)  # [12, h, w]
        offset = expected - expected.mean()
        slope = (offset[:, None, None] * quantiles).sum(0) / np.square(offset).sum()
        return cls._of(quantiles.mean(0) - slope * expected.mean(), np.square(slope))

    @classmethod
    def _of(cls, mean: NDArray[np.float64], variance: NDArray[np.float64]) -> LocalMap | None:
        """Return the map of mean and variance [h, w] at each place; None when they are no use."""
        spread = np.sqrt(0.5 * variance + 0.5 * variance.mean())
        if not np.isfinite(spread).all() or not spread.min() > 0:
            return None
        return cls(mean.astype(np.float32), spread.astype(np.float32))

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
            mean, spread = (np.array(values[name], np.float32) for name in ("mean", "spread"))
        except (ValueError, TypeError) as error:
            raise InputError("the reference of the maps is damaged: its rows have different lengths") from error
        finite = all(np.isfinite(part).all() for part in (mean, spread))
        if mean.ndim != 2 or mean.shape != spread.shape or not finite or not (spread > 0).all():
            raise InputError(
                "the reference of the maps is damaged: it needs two grids of the same size, spreads above 0"
            )
        return cls(mean, spread)


def _rise(count: int) -> NDArray[np.float64]:
    """Return weights [count] that rise and fall like half a sine wave, at the centres of patches."""
    return np.sin(math.pi * (np.arange(count) + 0.5) / count)
