"""Drift on synthetic image features: what is drift and what is not, valid p-values, and a martingale that keeps its promise."""

import json
import math

import numpy as np
import pytest
import torch

from monai_wscxr.errors import InputError
from monai_wscxr.model.drift import (
    FEWEST_IMAGES,
    LIMIT,
    Drift,
    DriftReference,
    log_martingale,
    measure_drift,
    online_p_values,
)

CHANNELS = 40
FINDING = torch.linspace(-1, 1, CHANNELS)  # what abnormal images have more of
OTHER_DETECTOR = torch.cos(torch.arange(CHANNELS) * 1.7)


def features(n, seed, shift=0.0, ill=0.0):
    """Image features [n, C]: correlated normals, a share `ill` of them with the finding, moved by another detector."""
    g = torch.Generator().manual_seed(seed)
    mixing = torch.randn(CHANNELS, CHANNELS, generator=torch.Generator().manual_seed(99))
    values = torch.randn(n, CHANNELS, generator=g) @ mixing + 5
    values[: round(ill * n)] += 8 * FINDING
    return values[torch.randperm(n, generator=g)] + shift * OTHER_DETECTOR


@pytest.fixture(scope="module")
def reference():
    return DriftReference.fit(features(400, 0), features(80, 1), [features(8, 2, ill=1.0)])


def shift_of(reference, images):
    return measure_drift(reference, reference.coordinates(images))


def test_coordinates_of_normals_are_uncorrelated_with_unit_variance():
    normal = features(400, 0)
    own = torch.from_numpy(DriftReference.fit(normal, normal[:50]).coordinates(normal)).double()
    covariance = own.T @ own / len(own)
    torch.testing.assert_close(covariance, torch.eye(len(covariance), dtype=torch.float64), atol=0.02, rtol=0)


@pytest.mark.parametrize("ill", [0.0, 0.3, 0.5])
def test_images_of_the_same_origin_are_no_drift_however_many_are_ill(reference, ill):
    named = [shift_of(reference, features(50, seed, ill=ill)).named for seed in range(10, 50)]
    assert sum(named) <= 0.05 * len(named)


def test_without_the_direction_of_the_finding_ill_images_do_not_move():
    blind = DriftReference.fit(features(400, 0), features(80, 1))
    ill = features(50, 3, ill=1.0)
    aware = DriftReference.fit(features(400, 0), features(80, 1), [features(8, 2, ill=1.0)])
    assert shift_of(blind, ill).shift > 4 * max(shift_of(aware, ill).shift, LIMIT)


@pytest.mark.parametrize("ill", [0.0, 0.5])
def test_another_detector_is_named(reference, ill):
    for seed in range(60, 70):
        drift = shift_of(reference, features(50, seed, shift=25.0, ill=ill))
        assert drift.named
        assert "monai-wscxr adapt --model MODEL --normals" in drift.sentence("MODEL")


def test_a_few_odd_images_are_no_drift(reference):
    images = features(50, 4)
    images[:8] += 100
    assert shift_of(reference, images).named is False


def test_too_few_images_or_no_reference_say_nothing(reference):
    for drift in (shift_of(reference, features(FEWEST_IMAGES - 1, 5)), measure_drift(None, torch.empty(0))):
        assert drift.named is None
        assert drift.sentence() == ""
        assert drift.to_dict()["shift"] is None


@pytest.mark.parametrize(("normals", "held_out"), [(19, 30), (60, 7)])
def test_too_few_normals_give_no_reference(normals, held_out):
    assert DriftReference.fit(features(normals, 0), features(held_out, 1)) is None


def test_images_that_are_all_equal_give_no_reference():
    assert DriftReference.fit(torch.ones(40, CHANNELS), torch.ones(10, CHANNELS)) is None


def test_p_values_are_those_of_counting_and_hold_their_rate(reference):
    places = reference.coordinates(features(2000, 6))
    values = reference.p_values(places)
    distance = reference.square_distances(places)
    for n in (0, 7, 100):
        farther = sum(bool(d >= distance[n]) for d in reference.distances)
        assert values[n] == pytest.approx((1 + farther) / (len(reference.distances) + 1))
    assert np.mean(np.array(values) <= 0.1) < 0.1 + 0.1  # one calibration set of 80: its own rate varies by 0.034


def test_moved_to_a_site_its_images_are_no_drift_and_those_of_the_training_are(reference):
    site = reference.moved(reference.coordinates(features(40, 7, shift=25.0)))
    assert shift_of(site, features(50, 8, shift=25.0)).named is False
    assert shift_of(site, features(50, 9)).named is True
    new = site.p_values(site.coordinates(features(500, 10, shift=25.0)))
    assert 0.02 < np.mean(np.array(new) <= 0.1) < 0.25


@pytest.mark.parametrize("ill", [0.3, 0.5])
def test_at_another_site_ill_images_are_no_drift_though_nobody_knows_their_finding(reference, ill):
    unknown = 10 * torch.sin(torch.arange(CHANNELS) * 0.9)  # not what the abnormal images of the training have
    site = reference.moved(reference.coordinates(features(30, 7, shift=25.0)))
    assert site.at_another_site
    assert not reference.at_another_site
    named, back = [], []
    for seed in range(300, 340):
        images = features(50, seed, shift=25.0)
        images[: round(ill * 50)] += unknown
        named.append(shift_of(site, images).named)
        images -= 25.0 * OTHER_DETECTOR
        back.append(shift_of(site, images).named)
    assert sum(named) <= 0.05 * len(named)
    assert all(back)


def test_json_gives_the_same_reference_back(reference):
    again = DriftReference.from_dict(json.loads(json.dumps(reference.to_dict())))
    images = features(30, 11)
    assert np.array_equal(again.coordinates(images), reference.coordinates(images))
    assert again.shift(again.coordinates(images)) == reference.shift(reference.coordinates(images))


@pytest.mark.parametrize(
    "change",
    [
        {"centre": "AAAA"},
        {"spread": ""},
        {"normals": "AAA"},
        {"components": 3},
        {"channels": 41},
        {"distances": None},
    ],
)
def test_a_damaged_reference_is_refused(reference, change):
    with pytest.raises(InputError, match="reference for drift is damaged"):
        DriftReference.from_dict({**reference.to_dict(), **change})


def test_online_p_values_are_uniform_and_the_martingale_rarely_reaches_its_alarm():
    """Ville's inequality over 1,000 streams of normal images; 1 % may reach 100."""
    generator = np.random.default_rng(0)
    reached, values = 0, []
    for stream in range(1000):
        p = online_p_values(generator.exponential(size=30), generator.exponential(size=60), stream)
        reached += log_martingale(p).max() >= 2
        values.append(p)
    assert reached <= 18  # 99 % of a binomial distribution of rate 0.01
    assert np.histogram(np.concatenate(values), 10, (0, 1))[0] / 6000 == pytest.approx(np.ones(10), abs=0.05)


def test_the_martingale_rises_where_images_are_odd_and_equals_its_integral():
    p = np.array([0.5, 0.01, 0.02, 0.9])
    powers = np.linspace(0.02, 0.98, 25)
    expected = [np.log10(np.mean([np.prod(e * p[: t + 1] ** (e - 1)) for e in powers])) for t in range(4)]
    np.testing.assert_allclose(log_martingale(p), expected, rtol=1e-9)
    assert log_martingale(np.full(20, 0.02)).max() > 6


def test_few_images_and_normals_need_a_larger_shift(reference):
    assert reference.limit(50) == LIMIT
    small = DriftReference.fit(features(40, 0), features(20, 1))
    assert small.limit(30) == pytest.approx(4 * (1 / 30 + 1 / 20) * math.sqrt(2 / len(small.spread)))
    assert small.limit(30) > LIMIT
    named = [shift_of(small, features(30, seed)).named for seed in range(200, 260)]
    assert sum(named) <= 0.05 * len(named)


def test_the_decision_in_json():
    assert Drift(50, 0.2).to_dict() == {"images": 50, "shift": 0.2, "limit": LIMIT, "named": True}
    assert Drift(50, math.nan).named is None
