"""Intervals of shares and areas, images of one patient, and the test of an observed rate of false alarms."""

import numpy as np
import pytest
from scipy.stats import norm

from monai_wscxr.model.calibration import Calibration
from monai_wscxr.model.proportions import (
    auroc_interval,
    chance_at_rate,
    chance_of_alarms,
    effective_number,
    wilson_interval,
)


@pytest.mark.parametrize(  # Newcombe, Statistics in Medicine 1998, table I, method 3
    ("hits", "number", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_as_published(hits, number, low, high):
    assert wilson_interval(hits / number, number) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(1 - hits / number, number) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_interval_of_an_area_covers_the_true_one():
    true = 0.9
    apart = norm.ppf(true) * 2**0.5
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        normal, abnormal = random.normal(size=25), random.normal(apart, size=15)
        low, high = auroc_interval((abnormal[:, None] > normal).mean(), 25, 15)
        covered += low <= true <= high
    assert 0.92 <= covered / 400 <= 0.985


def test_interval_of_an_extreme_area_has_a_width():
    low, high = auroc_interval(1.0, 9, 9)
    assert high == 1.0
    assert 0.6 < low < 0.95
    assert auroc_interval(0.0, 9, 9) == pytest.approx((0.0, 1 - low))
    wide = auroc_interval(0.9, 1, 1)
    assert 0 <= wide[0] < 0.9 < wide[1] <= 1


def test_images_of_one_patient_count_less():
    random = np.random.default_rng(1)
    hits = random.random(300) < 0.3
    assert effective_number(hits, range(300)) == 300
    repeated = effective_number(np.repeat(hits, 4), np.repeat(np.arange(300), 4))
    assert repeated == pytest.approx(300, rel=0.01)
    independent = effective_number(random.random(1200) < 0.3, np.repeat(np.arange(300), 4))
    assert 900 < independent <= 1200
    assert effective_number([True] * 6, [1, 1, 2, 2, 3, 3]) == 3
    assert effective_number([True, False], ["a", "a"]) == 1


@pytest.mark.parametrize(("calibrating", "images"), [(10, 40), (60, 100)])
def test_a_model_that_keeps_its_promise_is_rarely_accused(calibrating, images):
    random = np.random.default_rng(2)
    accused, by_a_plain_binomial, runs = 0, 0, 600
    for _ in range(runs):
        normals = np.sort(random.normal(size=calibrating))
        calibration = Calibration(tuple(normals.tolist()), 0.1, 0.0, 1.0, 0.0)
        scores = random.normal(size=images)
        rate = calibration.observed_rate(scores.tolist(), range(images))
        accused += rate.disagrees
        by_a_plain_binomial += chance_at_rate(rate.flagged, images, calibration.supported_rate) < 0.05
    assert accused <= 0.05 * runs + 3 * (0.05 * 0.95 * runs) ** 0.5
    assert by_a_plain_binomial > 0.1 * runs  # what the beta-binomial is for


def test_chance_of_alarms_by_enumeration():
    # one normal calibrates, its score is the threshold: a second one exceeds it in half of the cases
    assert chance_of_alarms(1, 1, 0, 1) == 1.0
    # of 19 normals none exceeds the highest; all three of three new ones do with probability 3! 19! / 22!
    assert chance_of_alarms(3, 3, 0, 19) == pytest.approx(2 * 6 / (20 * 21 * 22))
