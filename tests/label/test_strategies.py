"""The order of each strategy, why an image is asked for, and the variety of suspicious images."""

import numpy as np
import pytest

from monai_wscxr.errors import InputError
from monai_wscxr.label.ranking import ImageScore
from monai_wscxr.label.strategies import DEFAULT, STRATEGIES, ordered
from monai_wscxr.label.variety import varied_picks


def scored(value, angle=0.0):
    """A score of an image whose features point into a direction of the plane, in degrees."""
    direction = np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))], np.float16)
    return ImageScore(value, 0.5, value > 1, (0.5, 0.5), (), direction)


def test_orders_by_score_by_distance_to_the_threshold_and_at_random():
    scores = {"a": scored(3.0), "b": scored(1.2), "c": scored(0.1), "d": scored(3.0)}
    ids = ["c", "z", "d", "a", "b"]
    assert list(ordered("most_suspicious", ids, scores, 1.0)) == ["a", "d", "b", "c", "z"]
    assert list(ordered("most_uncertain", ids, scores, 1.0)) == ["b", "c", "a", "d", "z"]
    drawn = [list(ordered("random", ids, scores, 1.0, seed)) for seed in range(20)]
    assert all(sorted(order) == sorted(ids) for order in drawn)
    assert len({tuple(order) for order in drawn}) > 10
    assert list(ordered("random", ids[::-1], scores, 1.0, 3)) == drawn[3]
    with pytest.raises(InputError, match="unknown strategy"):
        ordered("best", ids, scores, 1.0)


def test_every_strategy_says_why_and_the_default_is_varied():
    scores = {"a": scored(3.0), "b": scored(1.2)}
    assert DEFAULT == "varied"
    for strategy in STRATEGIES:
        found = ordered(strategy, ["a", "b", "z"], scores, 1.0)
        assert set(found) == {"a", "b", "z"}
        assert all(found.values()), strategy
    assert ordered("most_uncertain", ["a", "z"], scores, 1.0) == {
        "a": "Near the operating point",
        "z": "Not scored yet",
    }


@pytest.fixture
def archive():
    """60 images: twelve suspicious ones in groups of seven, four and one that look alike; the group of one scores highest."""
    scores = {f"n{n:02d}": scored(0.1 + n / 1000, 200 + n) for n in range(48)}
    for group, (size, angle, value) in enumerate([(7, 0, 5.0), (4, 120, 6.0), (1, 240, 7.0)]):
        scores |= {f"g{group}-{n}": scored(value + n / 100, angle + n) for n in range(size)}
    return scores


def test_varied_takes_the_groups_of_suspicious_images_one_after_the_other(archive):
    found = ordered("varied", list(archive), archive, 1.0)
    order = list(found)
    assert [i.partition("-")[0] for i in order[:3]] == ["g0", "g1", "g2"]  # the largest group first
    assert found[order[0]] == "Suspicious, and 11 others resemble it more than any image labelled so far"
    assert found[order[1]] == "Suspicious, and 4 others resemble it more than any image labelled so far"
    assert found[order[2]] == "Suspicious, and unlike the images labelled so far"
    assert sorted(order) == sorted(archive)
    assert found["n00"] == "Next by anomaly score"
    assert order[-1] == "n00"


def test_an_image_like_a_labelled_one_is_not_asked_for(archive):
    order = list(ordered("varied", list(archive), archive, 1.0))
    labelled = ["g0-3"]
    rest = list(ordered("varied", [i for i in archive if i not in labelled], archive, 1.0, seen=labelled))
    assert [i.partition("-")[0] for i in rest[:2]] == ["g1", "g2"]
    # labelling in the order of the queue leaves the rest of it as it was
    first = order[0]
    assert list(ordered("varied", [i for i in archive if i != first], archive, 1.0, seen=[first]))[:20] == order[1:21]


def test_images_that_all_look_alike_come_by_score():
    scores = {f"{n:02d}": scored(float(n)) for n in range(20)}
    assert [(pick.image_id, pick.stands_for) for pick in varied_picks(scores, [])] == [("19", 10)]
    assert list(ordered("varied", list(scores), scores, 1.0))[:3] == ["19", "18", "17"]
    assert varied_picks({}, []) == []
    assert varied_picks(scores, list(scores)) == []
