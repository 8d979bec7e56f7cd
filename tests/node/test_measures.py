"""Quantiles, rates, drift and the text of metrics."""

import time

import pytest
import torch

from monai_wscxr.model.artefact import load_model
from monai_wscxr.node.measures import drift, metrics_text, per_minute, quantiles


def test_quantiles_and_rates():
    assert quantiles([]) == [None, None]
    assert quantiles([1.0, 2.0, 3.0]) == pytest.approx([2.0, 2.9])
    now = time.time()
    assert per_minute([now - 1, now - 50, now - 1e6], seconds=60) == 2


def test_text_of_metrics():
    text = metrics_text(
        [("a_total", "counter", "Words", [({"reason": 'x"\\\n'}, 2), ({}, 0.25)]), ("empty", "gauge", "None", [])]
    )
    assert text.splitlines() == [
        "# HELP monai_wscxr_a_total Words",
        "# TYPE monai_wscxr_a_total counter",
        'monai_wscxr_a_total{reason="x\\"\\\\\\n"} 2',
        "monai_wscxr_a_total 0.25",
        "# HELP monai_wscxr_empty None",
        "# TYPE monai_wscxr_empty gauge",
    ]


def test_drift_of_a_stream_is_named_and_its_absence_too(model):
    trained = load_model(model)
    components = len(trained.drift.spread)
    generator = torch.Generator().manual_seed(0)
    normals = trained.drift.normals
    like = normals[torch.randint(len(normals), (60,), generator=generator)]
    outcomes = [{"site_coordinates": place.tolist(), "abnormal": False, "acquired": {}} for place in like]
    assert drift(trained, outcomes)["named"] is False
    moved = [{**outcome, "site_coordinates": [v + 3.0 for v in outcome["site_coordinates"]]} for outcome in outcomes]
    found = drift(trained, moved)
    assert (found["named"], found["images"]) == (True, 60)
    assert found["shift"] > 1
    assert len(moved[0]["site_coordinates"]) == components
    assert drift(trained, [])["named"] is None
    assert drift(trained, [{"abnormal": False}])["images"] == 0
