"""Intervals and tests of shares of images, where several images may be of one patient."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_wscxr.system.lazy import LazyModule

if TYPE_CHECKING:
    from scipy import stats
else:
    stats = LazyModule("scipy.stats")

LEVEL = 0.95
"""Of all intervals."""
_Z = statistics.NormalDist().inv_cdf((1 + LEVEL) / 2)


def wilson_interval(share: float, number: float) -> tuple[float, float]:
    """Return the 95 % score interval of a share (Wilson, 1927).

    Args:
        share: observed share, in [0, 1].
        number: of independent observations, > 0; need not be whole.
    """
    z2 = _Z**2 / number
    middle = (share + z2 / 2) / (1 + z2)
    half = _Z / (1 + z2) * math.sqrt(share * (1 - share) / number + z2 / (4 * number))
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def auroc_interval(auroc: float, normal: float, abnormal: float) -> tuple[float, float]:
    """Return the 95 % score interval of an area under the ROC curve (Newcombe, Statistics in Medicine 2006, method 5).

    It stays sensible for few images and for areas of 1.

    Args:
        auroc: observed area, in [0, 1].
        normal, abnormal: numbers of independent observations, > 0.
    """
    typical = max((normal + abnormal) / 2 - 1, 0.0)

    def excess(area: float) -> float:
        spread = area * (1 - area) * (1 + typical * (1 - area) / (2 - area) + typical * area / (1 + area))
        return abs(area - auroc) - _Z * math.sqrt(spread / (normal * abnormal))

    tiny = 1e-9  # the area itself is a root where it is 0 or 1
    low = _root(excess, auroc - tiny, tiny) if auroc > 2 * tiny and excess(tiny) > 0 else 0.0
    high = _root(excess, auroc + tiny, 1 - tiny) if auroc < 1 - 2 * tiny and excess(1 - tiny) > 0 else 1.0
    return low, high


def effective_number(hits: Sequence[bool], patients: Sequence[Hashable]) -> float:
    """Return the number of independent images that say as much about the share of hits as these do.

    Images of one patient resemble each other. The number of images is divided by the ratio of the variance between patients
    to that of independent images, if that is above 1 (the design effect; Korn and Graubard, Survey Methodology 1998). Where all
    images agree, that ratio is unknown, and the number of patients is returned.

    Args:
        hits: of each image, at least one.
        patients: of each image.
    """
    codes = {patient: n for n, patient in enumerate(dict.fromkeys(patients))}
    of = np.array([codes[patient] for patient in patients])
    images, found = len(of), np.asarray(hits, dtype=np.float64)
    share, several = float(found.mean()), len(codes)
    if several == images or several == 1:
        return float(several)
    if share in (0.0, 1.0):
        return float(several)
    residuals = np.bincount(of, weights=found - share)
    variance = several / (several - 1) * float((residuals**2).sum()) / images**2
    return images / max(1.0, variance / (share * (1 - share) / images))


def chance_of_alarms(flagged: int, images: int, exceeding: int, calibrating: int) -> float:
    """Return the two-sided probability of so many or so few flagged normal images, if they are like those that calibrate.

    The share that a calibrated threshold flags is itself uncertain. Over all calibrations the number of flagged images follows
    a beta-binomial distribution, with parameters `exceeding` + 1 and `calibrating` - `exceeding`.

    Args:
        flagged: number of flagged normal images.
        images: number of normal images.
        exceeding: number of calibrating normals that score above the threshold.
        calibrating: number of calibrating normals, > exceeding.
    """
    return _two_sided(stats.betabinom(images, exceeding + 1, calibrating - exceeding), flagged)


def chance_at_rate(flagged: int, images: int, rate: float) -> float:
    """Return the two-sided probability of so many or so few flagged images at a fixed rate."""
    return _two_sided(stats.binom(images, rate), flagged)


def _root(excess: Callable[[float], float], below: float, above: float) -> float:
    """Return where a function that is at most 0 at one place and above 0 at another crosses 0, by bisection."""
    for _ in range(60):
        middle = (below + above) / 2
        below, above = (below, middle) if excess(middle) > 0 else (middle, above)
    return (below + above) / 2


def _two_sided(distribution: Any, count: int) -> float:
    fewer, more = distribution.cdf(count), distribution.sf(count - 1)
    return float(min(1.0, 2 * min(fewer, more)))
