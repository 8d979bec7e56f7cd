"""Drift over runs: groups by week, device and view; streams; files that cannot be used."""

import csv
import json
import types

import pytest
import torch

from monai_wscxr.errors import InputError
from monai_wscxr.model.calibration import ColourScale
from monai_wscxr.model.drift import DriftReference
from monai_wscxr.prediction.monitoring import ALARM, monitor, read_runs, write_monitoring

CHANNELS = 12


def features(n, seed, shift=0.0):
    return torch.randn(n, CHANNELS, generator=torch.Generator().manual_seed(seed)) + shift


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """What monitoring needs of a model."""
    return types.SimpleNamespace(
        drift=DriftReference.fit(features(200, 0), features(60, 1)),
        sha256="ab" * 32,
        folder=tmp_path_factory.mktemp("model"),
        colour_scale=ColourScale(0.0, 2.0, 1.0),
    )


def write_run(folder, model, parts, **changes):
    """Write the result of a run; each part is (images, shift, header) and every fourth image is flagged."""
    records = [{"number": 99, "file": "bad.png", "status": "rejected", "reason": "empty", "message": "no bytes"}]
    for part, (count, shift, header) in enumerate(parts):
        places = model.drift.coordinates(features(count, 100 + part + len(folder.name), shift))
        for n, place in enumerate(places.tolist()):
            acquired = {"acquired": header} if header else {}
            records.append(
                {
                    "number": n,
                    "file": f"{n}.dcm",
                    "status": "ok",
                    "abnormal": n % 4 == 0,
                    "site_coordinates": place,
                    **acquired,
                }
            )
    folder.mkdir()
    content = {"model": {"sha256": model.sha256}, "predictions": records, **changes}
    (folder / "predictions.json").write_text(json.dumps(content))
    return folder


def test_weeks_devices_and_views_are_told_apart(tmp_path, model):
    old, new = {"device": "A", "view": "PA"}, {"device": "B", "view": "PA"}
    run = write_run(
        tmp_path / "run",
        model,
        [
            (40, 3.0, {"week": "2026-W40", **new}),
            (40, 0.0, {"week": "2026-W39", **old}),
            (10, 0.0, {"week": "2026-W39", **old}),
        ],
    )
    result = monitor(model, read_runs([run], model))
    assert result.by == "week"
    assert [(g.name, g.images, g.flagged, g.drift.named) for g in result.groups["week"]] == [
        ("2026-W39", 50, 13, False),
        ("2026-W40", 40, 10, True),
    ]
    assert [(g.name, g.drift.named) for g in result.groups["device"]] == [("A", False), ("B", True)]
    assert [(g.name, g.images) for g in result.groups["view"]] == [("PA", 90)]
    assert 50 < result.alarm <= 65  # the 50 images of the first week came first
    said = result.sentences("MODEL")
    assert any("week 2026-W40" in line and "DRIFT" in line for line in said)


def test_without_weeks_runs_are_the_stream_in_the_order_given(tmp_path, model):
    runs = [write_run(tmp_path / name, model, [(30, 0.0, {})]) for name in ("first", "then", "last")]
    result = monitor(model, read_runs([runs[2], runs[0] / "predictions.csv", runs[1] / "predictions.json"], model))
    assert result.by == "run"
    assert [group.name for group in result.groups["run"]] == ["last", "first", "then"]
    assert set(result.groups) == {"run"}  # no header told a device or a view
    assert result.alarm is None
    assert result.drift.named is False
    assert result.sentences()[-1] == "no drift over all 90 images"


def test_a_group_of_few_images_says_so(tmp_path, model):
    run = write_run(tmp_path / "run", model, [(30, 0.0, {"week": "2026-W01"}), (5, 9.0, {"week": "2026-W02"})])
    result = monitor(model, read_runs([run], model))
    assert [group.drift.named for group in result.groups["week"]] == [False, None]
    assert "too few images" in " ".join(result.sentences())


def test_table_and_page_are_written(tmp_path, model):
    run = write_run(tmp_path / "run", model, [(30, 0.0, {"device": "<A & B>"}), (30, 4.0, {"device": "C"})])
    result = monitor(model, read_runs([run], model))
    write_monitoring(tmp_path / "out", model, result)
    with open(tmp_path / "out" / "drift.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["grouping"], row["name"], row["drift"]) for row in rows] == [
        ("run", "run", "true"),
        ("device", "<A & B>", "false"),
        ("device", "C", "true"),
    ]
    page = (tmp_path / "out" / "drift.html").read_text()
    assert "&lt;A &amp; B&gt;" in page
    assert "<A & B>" not in page
    assert page.count("<svg") >= 2
    assert f"10^{ALARM:g}" in page


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["model"].update(sha256="cd" * 32), "made by another model"),
        (lambda d: d.pop("predictions"), "no result of predict"),
        (lambda d: d["predictions"].__setitem__(slice(None), d["predictions"][:1]), "no scored images"),
        (lambda d: d["predictions"][1].update(site_coordinates=[1.0]), "another reference"),
        (lambda d: d["predictions"][1].update(site_coordinates=["x"]), "damaged"),
        (lambda d: d["predictions"][1].update(site_coordinates=[float("nan")] * 12), "damaged"),
        (lambda d: d["predictions"][1].pop("abnormal"), "damaged"),
    ],
)
def test_runs_that_cannot_be_used_are_refused(tmp_path, model, change, words):
    run = write_run(tmp_path / "run", model, [(30, 0.0, {})])
    content = json.loads((run / "predictions.json").read_text())
    change(content)
    (run / "predictions.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=words):
        read_runs([run], model)


def test_a_missing_run_and_a_model_without_reference_are_refused(tmp_path, model):
    with pytest.raises(InputError, match="cannot be read"):
        read_runs([tmp_path / "nothing"], model)
    with pytest.raises(InputError, match="no reference for drift"):
        read_runs([tmp_path], types.SimpleNamespace(drift=None, folder=tmp_path))
