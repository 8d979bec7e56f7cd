"""Operating point and calibrated p-values from held-out normal images (split conformal prediction).

If the held-out normals and a new normal image are exchangeable, the share of normals with p <= rate is at most `rate`
(Vovk, Gammerman, Shafer, Algorithmic Learning in a Random World, 2005).
"""

from __future__ import annotations

import bisect
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from monai_wscxr.errors import InputError


@dataclass(frozen=True)
class Calibration:
    """Held-out normal scores and what follows from them.

    Attributes:
        normal_scores: ascending anomaly scores of held-out normal images, at least one.
        false_positive_rate: wanted share of normal images flagged, in (0, 1).
        colour_low, colour_high: the one colour scale for anomaly maps (see `calibrate`).
    """

    normal_scores: tuple[float, ...]
    false_positive_rate: float
    colour_low: float
    colour_high: float

    @property
    def threshold(self) -> float:
        """Operating point: an image is flagged when its anomaly score is greater than this."""
        n = len(self.normal_scores)
        flagged = math.floor(self.false_positive_rate * (n + 1) + 1e-9) - 1  # normals that may score as high
        return self.normal_scores[n - 1 - max(flagged, 0)]

    def p_value(self, score: float) -> float:
        """(1 + held-out normals scoring at least as high) / (n + 1); small means unlike the normals."""
        if not math.isfinite(score):
            raise ValueError(f"an anomaly score must be finite, got {score}")
        n = len(self.normal_scores)
        return (1 + n - bisect.bisect_left(self.normal_scores, score)) / (n + 1)

    def abnormal(self, score: float) -> bool:
        """Whether an image with this score is flagged."""
        return score > self.threshold

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "normal_scores": list(self.normal_scores),
            "false_positive_rate": self.false_positive_rate,
            "threshold": self.threshold,
            "colour_low": self.colour_low,
            "colour_high": self.colour_high,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Calibration:
        """Inverse of `to_dict`.

        Raises:
            InputError: when the values do not belong together.
        """
        scores, rate = tuple(values["normal_scores"]), values["false_positive_rate"]
        if not scores or not all(map(math.isfinite, scores)) or list(scores) != sorted(scores) or not 0 < rate < 1:
            raise InputError("the calibration is damaged: its scores must be finite and ascending, its rate in (0, 1)")
        calibration = cls(scores, rate, values["colour_low"], values["colour_high"])
        if values["threshold"] != calibration.threshold:
            raise InputError(
                f"the calibration is damaged: its scores give the threshold {calibration.threshold}, "
                f"not {values['threshold']}; train again with another --false_positive_rate to move it"
            )
        return calibration


def calibrate(
    normal_scores: Sequence[float],
    abnormal_peaks: Sequence[float] = (),
    false_positive_rate: float = 0.05,
    normal_peaks: Sequence[float] | None = None,
) -> Calibration:
    """Calibrate on held-out normal images.

    The colour scale is about the highest patch of an image, its peak, which is its score where that is the maximum. It runs
    from the median peak of the held-out normals (transparent) to the median peak of the training abnormals, and at least
    as far above the peak that the wanted rate of normals exceeds as that is above the low end. It is fixed here, once for all
    images, so that a normal image stays uncoloured.

    Args:
        normal_scores: anomaly scores of normal images that trained nothing, at least one.
        abnormal_peaks: highest patch scores of the training abnormals; they move the colour scale only.
        false_positive_rate: wanted rate in (0, 1).
        normal_peaks: highest patch scores of the same normals; None where the anomaly score is the maximum.

    Raises:
        InputError: when a score is not finite, no normal is given or the rate is outside (0, 1).

    Warns:
        UserWarning: when there are too few held-out normals for the rate; the threshold is then their maximum.
    """
    if not normal_scores:
        raise InputError("calibration needs at least one held-out normal image; raise --holdout or add normal images")
    if not 0 < false_positive_rate < 1:
        raise InputError(f"false_positive_rate must lie in (0, 1), got {false_positive_rate}")
    scores = sorted(float(s) for s in normal_scores)
    peaks = scores if normal_peaks is None else sorted(float(s) for s in normal_peaks)
    if len(peaks) != len(scores):
        raise InputError(f"{len(scores)} scores of held-out normals but {len(peaks)} peaks")
    if not all(math.isfinite(s) for s in (*scores, *peaks, *abnormal_peaks)):
        raise InputError("an anomaly score is NaN or infinite; the discriminator has diverged, lower the learning rate")
    needed = math.ceil(1 / false_positive_rate) - 1
    if len(scores) < needed:
        warnings.warn(
            f"{len(scores)} held-out normal images cannot support a false-positive rate of {false_positive_rate:g}: that "
            f"takes {needed}. The threshold is their highest score, good for a rate of about {1 / (len(scores) + 1):.3g}",
            stacklevel=2,
        )
    seldom = Calibration(tuple(peaks), false_positive_rate, 0.0, 1.0).threshold
    low = peaks[len(peaks) // 2]
    abnormal = sorted(abnormal_peaks)
    high = max(2 * seldom - low, abnormal[len(abnormal) // 2] if abnormal else -math.inf)
    if high <= low:
        high = low + max(1.0, abs(low))
    return Calibration(tuple(scores), false_positive_rate, low, high)


def p_value_error(p_values: Sequence[float], bins: int = 10) -> float:
    """Expected calibration error of the p-values of normal images that calibrated nothing; 0 is perfect.

    Of well calibrated p-values a share a lies at or below a. This is the mean, over a = 1/bins, ..., 1 - 1/bins, of the
    difference between the share found and a. With n calibrating and m new images it is about 0.3 sqrt(1/n + 1/m) by chance.

    Args:
        p_values: of normal images, in (0, 1], at least one.
        bins: at least 2.

    Raises:
        InputError: on no p-value, one outside (0, 1], or fewer than two bins.
    """
    if bins < 2:
        raise InputError(f"the calibration error needs at least two bins, got {bins}")
    if not p_values or not all(0 < p <= 1 for p in p_values):
        raise InputError("the calibration error needs p-values in (0, 1], at least one")
    ordered = sorted(p_values)
    differences = [abs(bisect.bisect_right(ordered, a / bins) / len(ordered) - a / bins) for a in range(1, bins)]
    return math.fsum(differences) / len(differences)
