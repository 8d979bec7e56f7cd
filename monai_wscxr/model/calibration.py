"""Operating point, calibrated p-values and colour scale from normal images (split conformal prediction).

Every sentence about rates of false alarms is made here (`Calibration.rate_text`, `images_text`, `ObservedRate.sentence`).

If the held-out normals and a new normal image are exchangeable, the probability that the new image has p <= rate is at most
`rate` (Vovk, Gammerman, Shafer, Algorithmic Learning in a Random World, 2005).
"""

from __future__ import annotations

import bisect
import math
import statistics
import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from monai_wscxr.errors import InputError
from monai_wscxr.model.artefact_schema import check_calibration
from monai_wscxr.model.proportions import chance_at_rate, chance_of_alarms, effective_number, wilson_interval


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


Basis = Literal["held_out", "site_normals", "site_unlabelled"]
"""What a calibration rests on: normals held out of the training, normal images of another site, or its unlabelled images."""

FEWEST_UNLABELLED = 50
"""Unlabelled images from which the scores of normal images can be estimated."""
_LOWER_LEVELS = np.linspace(0.05, 0.40, 12)  # of unlabelled scores; normal images rule there
_SAFETY = 1.3  # width of the upper half beside the fitted one: shapes differ between sites
_DISAGREES = 0.05  # probability of an observed rate below which it contradicts the promised one
_OWN_SHAPE = 0.75  # weight of the shape of the training's scores beside the normal distribution


@dataclass(frozen=True)
class Calibration:
    """Anomaly scores of normal images, with the operating point and p-values derived from them.

    Attributes:
        normal_scores: anomaly scores in ascending order, at least one; of the held-out normals, see `basis`.
        false_positive_rate: target share of normal images flagged, in (0, 1).
        colour_low, colour_high: ends of the colour scale of anomaly maps, see `calibrate`.
        map_line: value that is outlined on maps: of held-out normals, at most the target share has it anywhere.
        basis: what the scores are of: "held_out", normals held out of the training; "site_normals", normal images of another
            site; "site_unlabelled", scores that normal images of a site would have, estimated from as many unlabelled images.

    Example:
        >>> normals = Calibration(tuple(i / 10 for i in range(19)), 0.1, colour_low=0.0, colour_high=2.0, map_line=1.5)
        >>> normals.threshold, normals.abnormal(1.75), normals.p_value(1.75)
        (1.7, True, 0.1)
    """

    normal_scores: tuple[float, ...]
    false_positive_rate: float
    colour_low: float
    colour_high: float
    map_line: float
    basis: Basis = "held_out"

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
        """What the operating point promises, in words; names the target, too, where the images are too few for it."""
        n, target = len(self.normal_scores), self.false_positive_rate
        if self.basis == "site_unlabelled":
            return (
                f"meant to flag at most {percent(self.supported_rate)} of normal images if at most half of the images are "
                f"abnormal: an estimate from {n} unlabelled images of the site, no guarantee"
            )
        words = f"at most {percent(self.supported_rate)} of normal images flagged, from {n} {self.images_text}"
        if self.supported_rate > target:
            words += f"; the target of {percent(target)} takes {normals_needed(target)}"
        return words

    @property
    def images_text(self) -> str:
        """What the calibration rests on, as a noun that follows a number."""
        several = "s" if len(self.normal_scores) > 1 else ""
        return {
            "held_out": f"held-out normal{several}",
            "site_normals": f"normal{several} of the site",
            "site_unlabelled": f"unlabelled image{several} of the site",
        }[self.basis]

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

    def observed_rate(self, scores: Sequence[float], patients: Sequence[Hashable]) -> ObservedRate:
        """Compare the rate of false alarms among labelled normal images with what the calibration promises.

        Args:
            scores: anomaly scores of normal images that calibrated and trained nothing, at least one.
            patients: of each image; images of one patient count less than independent ones.
        """
        flagged = [self.abnormal(score) for score in scores]
        share = sum(flagged) / len(flagged)
        independent = effective_number(flagged, patients)
        images = max(1, round(independent))
        count, n = round(share * images), len(self.normal_scores)
        exceeding = n - bisect.bisect_right(self.normal_scores, self.threshold)
        if self.basis == "site_unlabelled":
            chance = chance_at_rate(count, images, self.supported_rate)
        else:
            chance = chance_of_alarms(count, images, exceeding, n)
        return ObservedRate(self, sum(flagged), len(flagged), *wilson_interval(share, independent), chance)

    def to_dict(self) -> dict[str, Any]:
        """Return the calibration as plain JSON values."""
        return {
            "normal_scores": list(self.normal_scores),
            "false_positive_rate": self.false_positive_rate,
            "threshold": self.threshold,
            "colour_low": self.colour_low,
            "colour_high": self.colour_high,
            "map_line": self.map_line,
            "basis": self.basis,
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
            values["basis"],
        )
        if values["threshold"] != calibration.threshold:
            raise InputError(
                f"the calibration is damaged: its scores give the threshold {calibration.threshold}, "
                f"not {values['threshold']}; train again with another --false_positive_rate to move it"
            )
        return calibration


@dataclass(frozen=True)
class ObservedRate:
    """Rate of false alarms among labelled normal images, beside the promised one.

    Attributes:
        calibration: what promises.
        flagged, images: numbers of flagged and of all normal images.
        low, high: 95 % interval of the rate.
        chance: two-sided probability of so many or so few, if these images were like those that calibrate.
    """

    calibration: Calibration
    flagged: int
    images: int
    low: float
    high: float
    chance: float

    @property
    def rate(self) -> float:
        """Observed share of normal images that are flagged."""
        return self.flagged / self.images

    @property
    def disagrees(self) -> bool:
        """Whether the observed rate contradicts the promised one."""
        return self.chance < _DISAGREES

    def sentence(self) -> str:
        """Return both rates and whether they agree, in one sentence without its full stop."""
        calibration = self.calibration
        promised = (
            f"{percent(calibration.supported_rate)}, from {len(calibration.normal_scores)} {calibration.images_text}"
        )
        words = (
            f"{self.flagged} of {self.images} normal images were flagged, {percent(self.rate)} (95 % interval "
            f"{percent(self.low)} to {percent(self.high)})"
        )
        chance = f"chance does this in {percent(self.chance)} of cases" if self.chance >= 1e-4 else "this is not chance"
        if not self.disagrees:
            return f"{words}, which agrees with the promised rate of at most {promised}"
        if self.rate > calibration.supported_rate:
            return (
                f"MORE FALSE ALARMS THAN PROMISED: {words} where at most {promised}, was promised; {chance}, so p-values and "
                "flags cannot be relied on for images like these"
            )
        return (
            f"FEWER FALSE ALARMS THAN PROMISED: {words} where the rate would be {promised}; {chance}, so the threshold is too "
            "high for images like these, and abnormal ones are missed"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON values."""
        return {
            "flagged": self.flagged,
            "images": self.images,
            "rate": self.rate,
            "low": self.low,
            "high": self.high,
            "chance": self.chance,
            "disagrees": self.disagrees,
        }


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


def recalibrate(calibration: Calibration, normal_scores: Sequence[float], normal_peaks: Sequence[float]) -> Calibration:
    """Set operating point, p-values and colour scale by normal images of another site.

    The colour scale keeps its proportions: its end lies as many times the distance from median peak to line above the median.

    Args:
        calibration: that of the training.
        normal_scores: anomaly scores of normal images of the site.
        normal_peaks: highest value of the anomaly map of each.

    Raises:
        InputError: as `calibrate`.
    """
    new = calibrate(normal_scores, (), calibration.false_positive_rate, normal_peaks)
    width = max(calibration.map_line - calibration.colour_low, 1e-12)
    high = new.colour_low + (calibration.colour_high - calibration.colour_low) / width * (new.map_line - new.colour_low)
    return replace(new, colour_high=max(new.colour_high, high), basis="site_normals")


def estimate_null(calibration: Calibration, scores: Sequence[float]) -> Calibration:
    """Estimate the scores of a site's normal images from unlabelled images, and set operating point and p-values by them.

    In the lower part of the scores normal images rule as long as at most half of the images are abnormal. Location and scale
    are fitted there, between the quantiles 5 % and 40 %, to a shape that is three quarters that of the held-out normals of the
    training and one quarter the normal distribution. Above the median the fitted scores lie 1.3 times as far out, because the
    upper tail, which nothing here shows, differs between sites. Abnormal images score higher than normal ones, so they can
    only raise these quantiles: with more of them the operating point rises, fewer normals are flagged and more abnormals are
    missed.

    Args:
        calibration: that of the training; its colour scale is kept.
        scores: anomaly scores of unlabelled images of the site.

    Raises:
        InputError: with fewer than 50 scores, when one is not finite, or when they do not differ.
    """
    found = np.sort(np.asarray(scores, dtype=np.float64))
    if len(found) < FEWEST_UNLABELLED:
        raise InputError(
            f"{len(found)} unlabelled images are too few to estimate what normal images score: give {FEWEST_UNLABELLED} or "
            "more, or 20 or more normal images with --normals"
        )
    if not np.isfinite(found).all():
        raise InputError("an anomaly score is NaN or infinite; the model does not suit these images")
    shape = _null_shape(np.asarray(calibration.normal_scores))
    quantiles, expected = np.quantile(found, _LOWER_LEVELS), shape(_LOWER_LEVELS)
    scale, location = np.polyfit(expected, quantiles, 1)
    if not scale > 1e-9 * max(1.0, float(np.abs(found).max())):
        raise InputError("these images all have the same anomaly score; give radiographs of more patients")
    levels = np.arange(1, len(found) + 1) / (len(found) + 1)
    middle, own = shape(np.array([0.5])), shape(levels)
    null = location + scale * np.where(own > middle, middle + _SAFETY * (own - middle), own)
    return replace(calibration, normal_scores=tuple(null.tolist()), basis="site_unlabelled")


def _null_shape(normal_scores: NDArray[np.float64]) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Return the quantile function between that of some scores, in units of their lower half, and the normal one."""
    middle = np.quantile(normal_scores, 0.5)
    width = middle - np.quantile(normal_scores, _normal_cdf(-1.0))
    if not width > 0:
        return _normal_quantiles
    own = _OWN_SHAPE / width
    return lambda levels: (
        own * (np.quantile(normal_scores, levels) - middle) + (1 - _OWN_SHAPE) * _normal_quantiles(levels)
    )


def _normal_cdf(value: float) -> float:
    return statistics.NormalDist().cdf(value)


def _normal_quantiles(levels: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([statistics.NormalDist().inv_cdf(level) for level in levels.tolist()])


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

    Example:
        >>> round(p_value_error([i / 100 for i in range(1, 101)]), 6)
        0.0
    """
    if bins < 2:
        raise InputError(f"the calibration error needs at least two bins, got {bins}")
    if not p_values or not all(0 < p <= 1 for p in p_values):
        raise InputError("the calibration error needs p-values in (0, 1], at least one")
    ordered = sorted(p_values)
    differences = [abs(bisect.bisect_right(ordered, a / bins) / len(ordered) - a / bins) for a in range(1, bins)]
    return math.fsum(differences) / len(differences)
