"""Ranks, and the largest changes of rank."""

import types

import torch

from monai_wscxr.label.ranking import ImageScore, rank_changes, ranks
from monai_wscxr.label.scores import ArchiveScores
from monai_wscxr.model.drift import DriftReference


def scored(value):
    return ImageScore(value, 0.5, value > 1, (0.5, 0.5))


def test_equal_scores_rank_in_the_order_of_their_ids():
    assert ranks({"d": scored(3.0), "b": scored(1.2), "a": scored(3.0)}) == {"a": 1, "d": 2, "b": 3}


def test_rank_changes_lists_the_largest_first():
    before = {"a": scored(3.0), "b": scored(2.0), "c": scored(1.0)}
    after = {"a": scored(1.0), "b": scored(2.0), "c": scored(3.0), "new": scored(0.0)}
    found = rank_changes(before, after, [("a", "A"), ("b", "B"), ("c", "C"), ("new", "N")])
    assert [(m["id"], m["rank_before"], m["rank_after"]) for m in found] == [("c", 3, 1), ("a", 1, 3), ("b", 2, 2)]


def test_drift_of_an_archive_comes_from_the_places_of_its_scored_images():
    normal, held_out = torch.randn(60, 8, generator=torch.Generator().manual_seed(0)).split(40)
    model = types.SimpleNamespace(drift=DriftReference.fit(normal, held_out))
    scores = ArchiveScores(None, None, model)
    assert scores.drift().named is None
    for shift, named in ((0.0, False), (5.0, True)):
        images = torch.randn(30, 8, generator=torch.Generator().manual_seed(1)) + shift
        places = model.drift.coordinates(images).tolist()
        found = {str(n): ImageScore(1.0, 0.5, False, (0.5, 0.5), tuple(place)) for n, place in enumerate(places)}
        scores.replace(model, found)
        assert scores.drift().named is named
