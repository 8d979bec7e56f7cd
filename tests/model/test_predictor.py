"""A trained model on files: one prediction per file, with the scores of the network."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from monai_wscxr.data.transforms import radiograph_transforms
from monai_wscxr.errors import InputError
from monai_wscxr.model.artefact import load_model
from monai_wscxr.model.predictions import Prediction, in_order, to_map, to_prediction
from monai_wscxr.model.predictor import collate, predict_files
from monai_wscxr.model.scores import anomaly_map


@pytest.fixture
def model(make_model, tmp_path):
    make_model(tmp_path / "model")
    return load_model(tmp_path / "model")


@pytest.fixture
def files(phantoms, tmp_path):
    """Two normal phantoms, a text file, an abnormal phantom, a missing file, and the first phantom again."""
    normal = sorted(map(str, phantoms.glob("test/normal/*.png")))
    abnormal = sorted(map(str, phantoms.glob("test/abnormal/*/*.png")))
    (tmp_path / "text, not a picture.png").write_text("text")
    return [
        *normal[:2],
        str(tmp_path / "text, not a picture.png"),
        abnormal[0],
        str(tmp_path / "missing.png"),
        normal[0],
    ]


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_every_file_has_its_prediction_in_order(model, files, batch_size):
    predictions = list(predict_files(model, files, batch_size))
    assert [p.file for p in predictions] == files
    assert [p.status for p in predictions] == ["ok", "ok", "rejected", "ok", "rejected", "ok"]
    assert [p.reason for p in predictions] == ["", "", "unknown_format", "", "not_found", ""]
    transform = radiograph_transforms(model.preprocessing)
    for p in predictions:
        if p.status == "rejected":
            assert math.isnan(p.anomaly_score)
            assert math.isnan(p.p_value)
            assert p.abnormal is False
            assert p.patch_scores.shape == (0, 0)
            continue
        with torch.no_grad():
            scores = model.network(transform({"image": p.file})["image"][None])[0, 0]
        assert np.abs(p.patch_scores - scores.numpy()).max() < 1e-4
        naive = max(float(v) for row in p.patch_scores for v in row)
        assert p.anomaly_score == naive
        at_least = sum(s >= naive for s in model.calibration.normal_scores)
        assert p.p_value == pytest.approx((1 + at_least) / 20)
        assert p.abnormal == (naive > model.calibration.threshold)
    assert predictions[0].anomaly_score == predictions[5].anomaly_score != predictions[1].anomaly_score


def test_no_file_gives_no_prediction(model):
    assert list(predict_files(model, [])) == []


@pytest.mark.parametrize(("top", "flagged"), [(5.0, True), (1.8, False), (1.81, True), (-4.0, False)])
def test_decision_follows_the_calibration(model, top, flagged):
    scores = torch.full((3, 3), -5.0)
    scores[1, 2] = top
    prediction = to_prediction(model, "a.png", scores)
    assert model.calibration.threshold == pytest.approx(1.8)
    assert prediction.anomaly_score == pytest.approx(top)
    assert prediction.abnormal is (flagged and prediction.anomaly_score > model.calibration.threshold)
    assert flagged or prediction.p_value > 0.05 or prediction.anomaly_score > model.calibration.threshold


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_refused(model, bad):
    scores = torch.zeros(3, 3)
    scores[2, 0] = bad
    with pytest.raises(InputError, match=r"NaN or Inf for a\.png"):
        to_prediction(model, "a.png", scores)


def test_map_has_the_size_of_the_preprocessed_image(model):
    scores = torch.randn(4, 4)
    prediction = to_prediction(model, "a.png", scores)
    result = to_map(model, prediction)
    assert result.shape == (64, 64)
    assert result.dtype == np.float32
    assert np.array_equal(result, anomaly_map(scores[None, None], (64, 64), 2.0)[0, 0])
    assert not np.array_equal(result, to_map(replace(model, map_sigma=0.0), prediction))


def test_collate_keeps_images_and_the_rest_apart():
    batch = collate([{"image": torch.full((3, 2, 2), float(i)), "file": f"{i}.png"} for i in range(3)])
    assert batch["image"].shape == (3, 3, 2, 2)
    assert batch["image"][:, 0, 0, 0].tolist() == [0.0, 1.0, 2.0]
    assert batch["items"] == [{"file": "0.png"}, {"file": "1.png"}, {"file": "2.png"}]


def test_rejected_files_take_their_place():
    scored = Prediction("b", "ok", "", 1.0, 0.5, False, np.zeros((1, 1), np.float32))
    rows = in_order(["a", "b", "c"], [scored], [("c", "empty", "..."), ("a", "not_found", "...")])
    assert [(p.file, p.status, p.reason) for p in rows] == [
        ("a", "rejected", "not_found"),
        ("b", "ok", ""),
        ("c", "rejected", "empty"),
    ]
