"""p-values, operating point and colour scale against naive counting, and the guarantee of split conformal prediction."""

import json
import math
import random
import warnings
from fractions import Fraction

import numpy as np
import pytest

from monai_wscxr.errors import InputError
from monai_wscxr.model.calibration import Calibration, ColourScale, calibrate, estimate_null, p_value_error, recalibrate

RATES = ["0.001", "0.01", "0.05", "0.07", "0.1", "0.25", "0.29", "0.5", "0.9", "0.999"]
COUNTS = [1, 2, 3, 5, 9, 18, 19, 20, 39, 99, 100, 199]


def quiet(*arguments, **options):
    """Call `calibrate` without its warning of too few normals."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return calibrate(*arguments, **options)


def naive_p(normals, score):
    return Fraction(1 + sum(1 for s in normals if s >= score), len(normals) + 1)


def draws(kind, n, seed=0):
    rng = random.Random(f"{kind} {n} {seed}")
    make = {
        "normal": lambda: rng.gauss(0, 1),
        "tied": lambda: float(rng.randint(0, 3)),
        "constant": lambda: -0.7,
        "huge": lambda: 1e30 * rng.gauss(0, 1),
        "tiny": lambda: 1e-30 * rng.gauss(0, 1),
    }[kind]
    return [make() for _ in range(n)]


@pytest.mark.parametrize("kind", ["normal", "tied", "constant", "huge", "tiny"])
@pytest.mark.parametrize("n", COUNTS)
def test_p_value_and_decision_equal_naive_counting(kind, n):
    normals = draws(kind, n)
    asked = [*normals, *draws(kind, 30, seed=1), min(normals) - 1, max(normals) + 1]
    asked += [math.nextafter(s, direction) for s in normals[:10] for direction in (math.inf, -math.inf)]
    for rate in RATES:
        calibration = quiet(normals, false_positive_rate=float(rate))
        allowed = max(Fraction(rate), Fraction(1, n + 1))
        for score in asked:
            p = naive_p(normals, score)
            assert calibration.p_value(score) == pytest.approx(float(p), rel=1e-15)
            assert calibration.abnormal(score) == (p <= allowed), (rate, score, p)
            assert calibration.abnormal(score) == (score > calibration.threshold)
        assert calibration.threshold in normals


def test_a_small_example_by_hand():
    calibration = quiet([3.0, 1.0, 2.0, 4.0], false_positive_rate=0.4)
    assert calibration.normal_scores == (1.0, 2.0, 3.0, 4.0)
    assert [calibration.p_value(s) for s in (0.0, 2.0, 2.5, 4.0, 5.0)] == [1.0, 0.8, 0.6, 0.4, 0.2]
    assert calibration.threshold == 3.0
    assert [calibration.abnormal(s) for s in (3.0, 3.5, 4.0)] == [False, True, True]


@pytest.mark.parametrize("rate", RATES)
def test_too_few_normals_warn_and_give_their_maximum(rate):
    needed = math.ceil(1 / Fraction(rate)) - 1
    for n in {max(needed - 1, 1), needed, needed + 1} - {0}:
        scores = draws("normal", n)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            calibration = calibrate(scores, false_positive_rate=float(rate))
        assert bool(caught) == (n < needed)
        if n < needed:
            assert f"{n} held-out normal images cannot support" in str(caught[0].message)
            assert f"takes {needed}" in str(caught[0].message)
            assert calibration.threshold == max(scores)
        elif n == needed:
            assert calibration.p_value(max(scores) + 1) <= float(rate) + 1e-12


@pytest.mark.parametrize(("n", "rate"), [(19, 0.05), (50, 0.1), (99, 0.05), (30, 0.25)])
def test_exchangeable_normals_are_flagged_at_most_at_the_rate(n, rate):
    rng = random.Random(n)
    flagged, asked = 0, 0
    for _ in range(1500):
        calibration = calibrate([rng.gauss(0, 1) for _ in range(n)], false_positive_rate=rate)
        flagged += sum(calibration.abnormal(rng.gauss(0, 1)) for _ in range(20))
        asked += 20
    share = flagged / asked
    spread = math.sqrt(rate * (1 - rate) / n / 1500 + rate / asked)
    assert share <= rate + 4 * spread
    assert share >= math.floor(rate * (n + 1)) / (n + 1) - 4 * spread  # and not far below


@pytest.mark.parametrize("kind", ["normal", "tied", "constant", "huge", "tiny"])
@pytest.mark.parametrize("n", [1, 2, 20, 21])
@pytest.mark.parametrize("abnormal", [[], [-5.0], [5.0, 7.0, 6.0], [1e32]])
def test_colour_scale_ascends(kind, n, abnormal):
    normals = draws(kind, n)
    calibration = quiet(normals, abnormal)
    assert calibration.colour_low < calibration.colour_high
    assert math.isfinite(calibration.colour_high - calibration.colour_low)
    assert calibration.colour_low == sorted(normals)[n // 2]


@pytest.mark.parametrize("value", [0.0, 1e-30, -1e-30, 3.0, 1e17, -1e17, 1e38, -1e38])
def test_colour_scale_of_constant_scores_ascends(value):
    calibration = quiet([value] * 5, [value])
    assert calibration.colour_low == value < calibration.colour_high


def test_colour_scale_reaches_the_abnormal_median_and_beyond_the_threshold():
    normals = [float(i) for i in range(19)]
    assert (calibrate(normals).colour_low, calibrate(normals).colour_high) == (9.0, 27.0)  # threshold 18
    assert calibrate(normals, [10.0, 20.0]).colour_high == 27.0
    assert calibrate(normals, [50.0, 30.0, 40.0]).colour_high == 40.0
    assert calibrate(normals, [99.0]).threshold == calibrate(normals).threshold


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_refused(bad):
    with pytest.raises(InputError, match="NaN or infinite"):
        quiet([0.0, bad, 1.0])
    with pytest.raises(InputError, match="NaN or infinite"):
        quiet([0.0, 1.0], [bad])
    with pytest.raises(ValueError, match="must be finite"):
        quiet([0.0, 1.0]).p_value(bad)


@pytest.mark.parametrize("rate", [0, 1, -0.1, 1.5, math.nan])
def test_rate_outside_its_range_is_refused(rate):
    with pytest.raises(InputError, match=r"false_positive_rate must lie in \(0, 1\)"):
        calibrate([0.0, 1.0], false_positive_rate=rate)


def test_no_held_out_normal_is_refused():
    with pytest.raises(InputError, match="at least one held-out normal image"):
        calibrate([])


def test_json_gives_the_same_calibration_back():
    calibration = quiet(draws("normal", 57), draws("normal", 5, seed=2), 0.1)
    values = json.loads(json.dumps(calibration.to_dict()))
    assert values["threshold"] == calibration.threshold
    assert Calibration.from_dict(values) == calibration


@pytest.mark.parametrize(
    "change",
    [
        {"normal_scores": []},
        {"normal_scores": [0.0, math.nan, 2.0]},
        {"normal_scores": [2.0, 1.0, 0.0]},
        {"false_positive_rate": 0.0},
        {"false_positive_rate": 1.0},
        {"threshold": -1.0},
        {"colour_low": math.nan},
        {"colour_high": math.inf},
        {"colour_low": 7.0, "colour_high": 7.0},
    ],
)
def test_damaged_json_is_refused(change):
    values = quiet([0.0, 1.0, 2.0]).to_dict()
    assert Calibration.from_dict(values).threshold == 2.0
    with pytest.raises(InputError, match="calibration is damaged"):
        Calibration.from_dict({**values, **change})


@pytest.mark.parametrize("kind", ["normal", "tied"])
def test_wanted_rate_holds_over_200_random_splits(kind):
    scores = draws(kind, 400)
    rng = random.Random(1)
    rates = []
    for _ in range(200):
        rng.shuffle(scores)
        calibration = calibrate(scores[:171], false_positive_rate=0.05)
        rates.append(sum(map(calibration.abnormal, scores[171:])) / len(scores[171:]))
    assert sum(rates) / len(rates) <= 0.055
    if kind == "normal":  # ties can only lower it
        assert sum(rates) / len(rates) >= 0.03


def test_p_value_error_equals_naive_counting():
    rng = random.Random(0)
    p_values = [rng.uniform(1e-9, 1) ** 2 for _ in range(57)]
    naive = [abs(sum(1 for p in p_values if p <= a / 10) / 57 - a / 10) for a in range(1, 10)]
    assert p_value_error(p_values) == pytest.approx(sum(naive) / 9)
    assert p_value_error([a / 100 for a in range(1, 101)]) == pytest.approx(0, abs=1e-12)
    assert p_value_error([1.0] * 5) == pytest.approx(0.5)
    for bad in ([], [0.0], [1.1], [math.nan]):
        with pytest.raises(InputError, match="p-values in"):
            p_value_error(bad)
    with pytest.raises(InputError, match="at least two bins"):
        p_value_error([0.5], 1)


def test_chance_level_of_the_p_value_error():
    rng = random.Random(3)
    errors = []
    for _ in range(100):
        calibration = calibrate([rng.gauss(0, 1) for _ in range(171)])
        errors.append(p_value_error([calibration.p_value(rng.gauss(0, 1)) for _ in range(200)]))
    assert 0.8 < sum(errors) / 100 / (0.3 * math.sqrt(1 / 171 + 1 / 200)) < 1.25


def test_colour_scale_follows_the_peaks():
    scores, peaks = [float(i) for i in range(40)], [100.0 + i for i in range(40)]
    by_peaks = calibrate(scores, [500.0], normal_peaks=peaks)
    assert by_peaks.threshold == calibrate(scores).threshold
    assert (by_peaks.colour_low, by_peaks.colour_high) == (120.0, 500.0)
    with pytest.raises(InputError, match="40 scores of held-out normals but 1 peaks"):
        calibrate(scores, normal_peaks=[1.0])


def test_colour_scale_of_a_calibration_marks_the_operating_point():
    calibration = quiet([float(i) for i in range(19)], [50.0, 30.0, 40.0])
    scale = calibration.colour_scale
    assert (scale.low, scale.high, scale.threshold) == (9.0, 40.0, 18.0)
    assert scale.position([0.0, 9.0, 24.5, 40.0, 99.0]).tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    ("low", "high", "threshold"),
    [(1, 1, None), (2, 1, None), (math.nan, 1, None), (0, math.inf, None), (0, 1, math.nan)],
)
def test_a_colour_scale_must_ascend_and_be_finite(low, high, threshold):
    with pytest.raises(ValueError, match="colour scale"):
        ColourScale(low, high, threshold)


@pytest.mark.parametrize(
    ("n", "rate", "supported"), [(1, 0.05, 0.5), (4, 0.05, 0.2), (18, 0.05, 1 / 19), (19, 0.05, 0.05), (99, 0.3, 0.3)]
)
def test_supported_rate_is_the_share_of_normals_that_are_flagged(n, rate, supported):
    calibration = quiet(draws("normal", n), false_positive_rate=rate)
    assert calibration.supported_rate == pytest.approx(supported)
    assert f"at most {100 * supported:.3g} % of normal images" in calibration.rate_text
    assert f"from {n} held-out normal" in calibration.rate_text
    assert ("the target of 5 % takes 19" in calibration.rate_text) == (n < 19)
    rng = random.Random(n)
    flagged = [quiet([rng.random() for _ in range(n)], (), rate).abnormal(rng.random()) for _ in range(2000)]
    share = sum(flagged) / len(flagged)
    assert share <= supported + 3 * math.sqrt(supported * (1 - supported) / len(flagged))


def trained(n=200, seed=0):
    """Calibration on skewed scores of held-out normals, as real ones are."""
    scores = np.random.default_rng(seed).gumbel(0.5, 0.3, n)
    return calibrate(scores.tolist(), [3.0, 4.0], normal_peaks=(scores + 1).tolist())


def test_recalibration_takes_scores_and_peaks_of_the_site_and_keeps_the_colours_in_proportion():
    before = trained()
    site = np.random.default_rng(1).normal(7, 2, 60)
    after = recalibrate(before, site.tolist(), (site * 2).tolist())
    same = calibrate(site.tolist(), normal_peaks=(site * 2).tolist())
    assert after.normal_scores == same.normal_scores
    assert (after.threshold, after.map_line, after.colour_low) == (same.threshold, same.map_line, same.colour_low)
    ratio = (before.colour_high - before.colour_low) / (before.map_line - before.colour_low)
    assert (after.colour_high - after.colour_low) / (after.map_line - after.colour_low) == pytest.approx(max(ratio, 2))
    assert after.basis == "site_normals"
    assert after.rate_text == "at most 5 % of normal images flagged, from 60 normals of the site"
    assert Calibration.from_dict(json.loads(json.dumps(after.to_dict()))) == after


@pytest.mark.parametrize("ill", [0.0, 0.1, 0.3, 0.5])
@pytest.mark.parametrize(("location", "scale"), [(0.0, 1.0), (5.0, 0.4), (-2.0, 3.0)])
def test_unlabelled_images_keep_the_rate_of_false_alarms_below_ten_percent(ill, location, scale):
    rates = []
    for seed in range(40):
        generator = np.random.default_rng(seed)
        scores = location + scale * generator.gumbel(0.5, 0.3, 100)
        scores[: round(100 * ill)] += 2 * scale * generator.random(round(100 * ill))
        threshold = estimate_null(trained(seed=seed), scores.tolist()).threshold
        rates.append(np.mean(location + scale * generator.gumbel(0.5, 0.3, 4000) > threshold))
    assert np.mean(rates) <= 0.10
    assert ill > 0 or np.mean(rates) >= 0.02  # and is not bought by flagging nothing


def test_the_estimated_scores_say_what_they_rest_on():
    before = trained()
    after = estimate_null(before, np.random.default_rng(3).normal(2, 1, 120).tolist())
    assert len(after.normal_scores) == 120
    assert list(after.normal_scores) == sorted(after.normal_scores)
    assert after.colour_scale == before.colour_scale
    assert "if at most half of the images are abnormal: an estimate from 120 unlabelled images" in after.rate_text
    assert after.p_value(after.normal_scores[-1] + 1) == 1 / 121
    assert Calibration.from_dict(json.loads(json.dumps(after.to_dict()))) == after


def test_more_abnormal_images_only_raise_the_operating_point():
    before, scores = trained(), np.random.default_rng(4).normal(0, 1, 100)
    thresholds = []
    for ill in (0, 10, 30, 50, 70):
        some = scores.copy()
        some[:ill] += 4
        thresholds.append(estimate_null(before, some.tolist()).threshold)
    assert thresholds == sorted(thresholds)


@pytest.mark.parametrize(
    ("scores", "words"),
    [([0.1] * 49, "49 unlabelled images are too few"), ([1.0] * 60, "same anomaly score"), ([math.nan] * 60, "NaN")],
)
def test_a_null_that_cannot_be_estimated_is_refused(scores, words):
    with pytest.raises(InputError, match=words):
        estimate_null(trained(), scores)


def test_held_out_scores_that_are_all_equal_leave_the_normal_shape():
    flat = calibrate([1.0] * 40)
    scores = np.random.default_rng(5).normal(0, 1, 2000)
    assert estimate_null(flat, scores.tolist()).threshold == pytest.approx(1.3 * 1.645, abs=0.2)


def test_observed_rates_in_words():
    calibration = calibrate([float(n) for n in range(99)], false_positive_rate=0.05)
    patients = range(200)

    def rate(flagged):
        return calibration.observed_rate([1000.0] * flagged + [0.0] * (200 - flagged), patients)

    agrees, more, fewer = rate(11), rate(60), rate(0)
    assert "11 of 200 normal images were flagged, 5.5 % (95 % interval 3.1 % to 9.58 %)" in agrees.sentence()
    assert "agrees with the promised rate of at most 5 %, from 99 held-out normals" in agrees.sentence()
    assert not agrees.disagrees
    assert more.disagrees
    assert more.sentence().startswith("MORE FALSE ALARMS THAN PROMISED: 60 of 200")
    assert "this is not chance" in more.sentence()
    assert fewer.disagrees
    assert fewer.sentence().startswith("FEWER FALSE ALARMS THAN PROMISED: 0 of 200")
    assert json.loads(json.dumps(more.to_dict()))["rate"] == 0.3


def test_few_held_out_normals_excuse_what_many_do_not():
    def chance(normals):
        calibration = quiet([float(n) for n in range(normals)], false_positive_rate=0.05)
        return calibration.observed_rate([1e6] * 20 + [-1.0] * 180, range(200)).chance

    assert chance(19) > 0.05 > chance(399)


def test_images_of_one_patient_are_no_evidence_of_their_own():
    calibration = calibrate([float(n) for n in range(99)], false_positive_rate=0.05)
    scores = ([1000.0] * 3 + [0.0] * 17) * 10
    alone = calibration.observed_rate(scores, range(200))
    together = calibration.observed_rate(scores, list(range(20)) * 10)
    assert alone.disagrees
    assert not together.disagrees
    assert together.high > alone.high
