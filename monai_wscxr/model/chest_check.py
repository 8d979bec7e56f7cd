"""Check whether an image is an upright frontal chest radiograph at all, from the mean of its patch features.

The network computes patch features of every image anyway; their mean over the patches is the image feature x [C]. Two
measures tell whether x belongs to a chest radiograph:

- Distance: the mean over channels of (x - mu)^2 / (v + mean(v)), with mean mu and variance v of the image features of the
  training normals. It finds pictures of other things.
- Likeness to counterexamples: one linear discriminant (Fisher, The use of multiple measurements in taxonomic problems, 1936,
  with the shrunken covariance of Friedman, Regularized Discriminant Analysis, 1989) for each kind in `data.counterexamples`.
  It is 0 at the mean of the normals and 1 at the mean of the kind. It finds turned, inverted and wrapped radiographs, whose
  distance is smaller than that of good radiographs of another hospital.

The limits leave room for other hospitals and for disease; docs/predict.md says how they were chosen and what they let pass.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_wscxr.data.radiograph.base import RadiographError
from monai_wscxr.errors import InputError
from monai_wscxr.model.encoding import decode_array, encode_array

REASON = "unlike_a_chest"


@dataclass(frozen=True, eq=False)
class ChestCheck:
    """Statistics and limits of the check.

    Attributes:
        mean: [C] float32, mean of the normals' image features.
        variance: [C] float32, their variance plus its mean over the channels; > 0.
        directions: [K, C] float32; the likeness to counterexamples of kind k is directions[k] . (x - mean).
        distance_limit: largest distance of a chest radiograph; > 0.
        likeness_limits: [K] float32, largest likeness of a chest radiograph to each kind; infinite where the features do
            not tell the kind from the normals.
    """

    mean: NDArray[np.float32]
    variance: NDArray[np.float32]
    directions: NDArray[np.float32]
    distance_limit: float
    likeness_limits: NDArray[np.float32]

    def excess(self, image_features: ArrayLike) -> NDArray[np.float64]:
        """Return how far images exceed the limits: [B], the largest of measure / limit; above 1 is unlike a chest.

        Args:
            image_features: [B, C], means of the patch features, not whitened.
        """
        moved = np.asarray(image_features, np.float64) - self.mean
        distance = (np.square(moved) / self.variance).mean(1) / self.distance_limit
        likeness = moved @ self.directions.astype(np.float64).T / self.likeness_limits
        found: NDArray[np.float64] = np.concatenate([distance[:, None], likeness], axis=1).max(1)
        return found

    def refusals(self, image_features: ArrayLike, allow: Collection[str] = ()) -> list[RadiographError | None]:
        """Return the reason to refuse each image, or None for a chest radiograph.

        Args:
            image_features: [B, C], means of the patch features, not whitened.
            allow: gates that are not applied; with `REASON` among them, nothing is refused.
        """
        excess = self.excess(image_features).tolist()
        return [None if value <= 1 or REASON in allow else _refusal(value) for value in excess]

    def to_dict(self) -> dict[str, Any]:
        """Return the check as JSON values; arrays are little-endian float32 in base64."""
        return {
            "channels": len(self.mean),
            "mean": encode_array(self.mean),
            "variance": encode_array(self.variance),
            "directions": encode_array(self.directions),
            "distance_limit": self.distance_limit,
            "likeness_limits": [None if math.isinf(limit) else limit for limit in self.likeness_limits.tolist()],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ChestCheck:
        """Build the check from the values of `to_dict`.

        Raises:
            InputError: when the values are inconsistent.
        """
        try:
            channels = values["channels"]
            limits = np.array(
                [math.inf if limit is None else float(limit) for limit in values["likeness_limits"]], np.float32
            )
            mean, variance, directions = (decode_array(values[name]) for name in ("mean", "variance", "directions"))
            check = cls(
                mean, variance, directions.reshape(len(limits), channels), float(values["distance_limit"]), limits
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"the chest check is damaged ({type(error).__name__})") from error
        finite = all(np.isfinite(part).all() for part in (mean, variance, directions))
        sizes = len(mean) == len(variance) == channels
        limits_good = 0 < check.distance_limit < math.inf and (limits > 0).all()
        if not (finite and sizes and limits_good and (variance > 0).all()):
            raise InputError("the chest check is damaged: its numbers must be finite and its limits greater than 0")
        return check


def _refusal(excess: float) -> RadiographError:
    return RadiographError(
        REASON,
        f"the picture does not look like an upright frontal chest radiograph ({excess:.1f} times the limit). Check that it is "
        f"one, neither turned nor inverted nor cut to fewer bits, or allow {REASON}.",
    )
