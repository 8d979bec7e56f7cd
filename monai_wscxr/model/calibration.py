"""Operating point, calibrated p-values and colour scale from held-out normal images (split conformal prediction).

If the held-out normals and a new normal image are exchangeable, the probability that the new image has p <= rate is at most
`rate` (Vovk, Gammerman, Shafer, Algorithmic Learning in a Random World, 2005).
"""

from __future__ import annotations

import bisect
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_wscxr.errors import InputError
from monai_wscxr.model.artefact_schema import check_calibration


@dataclass(frozen=True)
class ColourScale:
    """Mapping from anomaly map values to colours, shared by all images of a model.

    Attributes:
        low: value at and below which nothing is drawn.
        high: value at and above which colour and opacity are strongest; larger than `low`.
        threshold: value that is marked on the colour bar and outlined on maps, or None.

    Raises:
        ValueError: when a value is not finite or `low` is not below `high`.
    """

    low: float
    high: float
    threshold: float | None = None

    def __post_init__(self) -> None:
        for name in ("low", "high", "threshold"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"colour scale: {name} must be finite, got {value}")
        if not self.low < self.high:
            raise ValueError(f"colour scale: low must be below high, got low={self.low} and high={self.high}")

    def position(self, values: NDArray[Any] | float) -> NDArray[np.float64]:
        """Return where values lie on the scale: 0 at and below `low`, 1 at and above `high`."""
        return np.clip((np.asarray(values, dtype=np.float64) - self.low) / (self.high - self.low), 0.0, 1.0)


@dataclass(frozen=True)
class Calibration:
    """Anomaly scores of held-out normal images, with the operating point and p-values derived from them.

    Attributes:
        normal_scores: anomaly scores of the held-out normals in ascending order, at least one.
        false_positive_rate: target share of normal images flagged, in (0, 1).
        colour_low, colour_high: ends of the colour scale of anomaly maps, see `calibrate`.
        map_line: value that is outlined on maps: of held-out normals, at most the target share has it anywhere.
    """

    normal_scores: tuple[float, ...]
    false_positive_rate: float
    colour_low: float
    colour_high: float
    map_line: float

    @property
    def threshold(self) -> float:
        """Operating point: an image is flagged when its anomaly score is greater."""
        n = len(self.normal_scores)
        flagged = math.floor(self.false_positive_rate * (n + 1) + 1e-9) - 1  # held-out normals that may exceed it
        return self.normal_scores[n - 1 - max(flagged, 0)]

    @property
    def supported_rate(self) -> float:
        """False-positive rate that n held-out normals support: the target, but not below 1 / (n + 1)."""
        return max(self.false_positive_rate, 1 / (len(self.normal_scores) + 1))

    @property
    def rate_text(self) -> str:
        """The supported rate in words; names the target, too, where the held-out normals are too few for it."""
        n, target = len(self.normal_scores), self.false_positive_rate
        words = (
            f"at most {percent(self.supported_rate)} of normal images flagged, from {n} held-out normal{'s' * (n > 1)}"
        )
        if self.supported_rate > target:
            words += f"; the target of {percent(target)} takes {normals_needed(target)}"
        return words

    @property
    def colour_scale(self) -> ColourScale:
        """Colour scale of all anomaly maps of this model, with the line marked."""
        return ColourScale(self.colour_low, self.colour_high, self.map_line)

    def p_value(self, score: float) -> float:
        """Return the p-value of an image: (1 + number of held-out normals that score at least as high) / (n + 1).

        Raises:
            ValueError: when the score is not finite.
        """
        if not math.isfinite(score):
            raise ValueError(f"an anomaly score must be finite, got {score}")
        n = len(self.normal_scores)
        return (1 + n - bisect.bisect_left(self.normal_scores, score)) / (n + 1)

    def abnormal(self, score: float) -> bool:
        """Return whether an image with this score is flagged."""
        return score > self.threshold

    def to_dict(self) -> dict[str, Any]:
        """Return the calibration as plain JSON values."""
        return {
            "normal_scores": list(self.normal_scores),
            "false_positive_rate": self.false_positive_rate,
            "threshold": self.threshold,
            "colour_low": self.colour_low,
            "colour_high": self.colour_high,
            "map_line": self.map_line,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Calibration:
        """Build a calibration from the values of `to_dict`.

        Raises:
            InputError: when the values are of other types, out of range, or inconsistent.
        """
        try:
            check_calibration(values)
        except ValueError as error:
            raise InputError(f"the calibration is damaged: {error}") from error
        calibration = cls(
            tuple(values["normal_scores"]),
            values["false_positive_rate"],
            values["colour_low"],
            values["colour_high"],
            values["map_line"],
        )
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
    """Set the operating point and the colour scale from held-out normal images.

    The colour scale refers to the peak of an image, the highest value of its anomaly map. It starts (transparent) at the
    median peak of the held-out normals. It ends at the median peak of the training abnormals, or at `2 t - low` if that is
    higher, where `t` is the peak exceeded by the given rate of normals. Maps are outlined at `t`, which therefore lies at most
    halfway up the scale. The scale is fixed here for all images, so a normal image stays nearly uncoloured.

    Args:
        normal_scores: anomaly scores of normal images that were not trained on, at least one.
        abnormal_peaks: peaks of the training abnormals; they only affect the colour scale.
        false_positive_rate: target share of normal images flagged, in (0, 1).
        normal_peaks: peaks of the same normals; None if the anomaly score is the peak.

    Raises:
        InputError: when a score is not finite, no normal image is given or the rate lies outside (0, 1).

    Warns:
        UserWarning: when there are too few held-out normals for the rate; the threshold is then their highest score.
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
    needed = normals_needed(false_positive_rate)
    if len(scores) < needed:
        warnings.warn(
            f"{len(scores)} held-out normal images cannot support a false-positive rate of {false_positive_rate:g}: that "
            f"takes {needed}. The threshold is their highest score, good for a rate of about {1 / (len(scores) + 1):.3g}",
            stacklevel=2,
        )
    rarely_exceeded = Calibration(tuple(peaks), false_positive_rate, 0.0, 1.0, 0.0).threshold
    low = peaks[len(peaks) // 2]
    abnormal = sorted(abnormal_peaks)
    high = max(2 * rarely_exceeded - low, abnormal[len(abnormal) // 2] if abnormal else -math.inf)
    if high <= low:
        high = low + max(1.0, abs(low))
    return Calibration(tuple(scores), false_positive_rate, low, high, rarely_exceeded)


def normals_needed(rate: float) -> int:
    """Return the number of held-out normals that a false-positive rate in (0, 1) takes."""
    return math.ceil(1 / rate) - 1


def percent(rate: float) -> str:
    """Format a rate in percent, with up to three significant digits."""
    return f"{100 * rate:.3g} %"


def p_value_error(p_values: Sequence[float], bins: int = 10) -> float:
    """Return the expected calibration error of p-values of normal images; 0 is perfect.

    Well-calibrated p-values are uniform: a share `a` of them lies at or below `a`. The error is the mean absolute difference
    between that share and `a` over a = 1/bins, ..., 1 - 1/bins. With n calibration images and m new images, chance alone
    gives about 0.3 sqrt(1/n + 1/m).

    Args:
        p_values: p-values in (0, 1] of normal images that were not used for calibration, at least one.
        bins: number of bins, at least 2.

    Raises:
        InputError: on an empty list, a p-value outside (0, 1], or fewer than two bins.
    """
    if bins < 2:
        raise InputError(f"the calibration error needs at least two bins, got {bins}")
    if not p_values or not all(0 < p <= 1 for p in p_values):
        raise InputError("the calibration error needs p-values in (0, 1], at least one")
    ordered = sorted(p_values)
    differences = [abs(bisect.bisect_right(ordered, a / bins) / len(ordered) - a / bins) for a in range(1, bins)]
    return math.fsum(differences) / len(differences)
