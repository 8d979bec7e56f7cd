"""Results of an evaluation without an engine: metrics, lesions, epochs and overlap with the training."""

import csv
import dataclasses
import json
import logging
from html import escape
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch.utils.data import DataLoader

from monai_wscxr.data.datalist import load_datalist
from monai_wscxr.data.radiograph.read import file_digest
from monai_wscxr.data.stream import RadiographStream
from monai_wscxr.data.transforms import radiograph_transforms
from monai_wscxr.errors import InputError
from monai_wscxr.evaluation.epochs import candidate_epochs
from monai_wscxr.evaluation.handlers import EvaluationHandler, InferenceHandler
from monai_wscxr.evaluation.items import evaluation_items, inference_items
from monai_wscxr.evaluation.results import (
    evaluation_metrics,
    lesion_metrics,
    observed_rate,
    write_evaluation_report,
    write_pictures,
)
from monai_wscxr.model.artefact import load_model
from monai_wscxr.model.drift import Drift, DriftReference
from monai_wscxr.model.networks import CheckedNet
from monai_wscxr.model.predictions import to_map, to_prediction
from monai_wscxr.model.predictor import collate, predict_files


@pytest.fixture
def model(make_model, tmp_path):
    make_model(tmp_path / "model")
    return load_model(tmp_path / "model")


@pytest.fixture
def scored(model, phantoms):
    """Test items and the predictions of the model for them."""
    items = [{**item, "file": item["image"]} for item in load_datalist(phantoms)["test"]]
    return items, list(predict_files(model, [item["file"] for item in items]))


def record(model, digests):
    """Set the digests of the training images in the record of the training."""
    model.training["digests"] = digests


def test_candidates_are_all_epochs_but_the_trained_model():
    assert candidate_epochs(["first", "second", "trained"]) == ["first", "second"]
    assert candidate_epochs(["trained"]) == ["trained"]


def test_metrics_without_an_engine(model, scored):
    items, predictions = scored
    labels, scores = [item["label"] for item in items], [p.anomaly_score for p in predictions]
    perfect = [[float(y), s] for y, s in zip(labels, scores, strict=True)]
    found = evaluation_metrics(model, items, predictions, perfect, 2)
    assert found["honest"]["auroc"] == pytest.approx(roc_auc_score(labels, scores))
    assert found["paper"]["auroc"] == 1.0  # of the only epoch; the last column is the trained model
    assert found["paper"]["epoch"] == 1
    assert (found["n_normal"], found["n_abnormal"], found["n_rejected"]) == (4, 4, 2)
    assert found["calibration"]["false_positive_rate"] == pytest.approx(1 - found["honest"]["specificity"])
    pixel = found["pixel"]
    assert set(pixel["constant_map"]) == {"auroc", "aupro", "pointing_game"}
    assert pixel["gap"] == pytest.approx(pixel["percentile"] - pixel["mirrored_percentile"])
    classes = {item["class"] for item in items if item["label"] == 1}
    assert {name: part["images"] for name, part in pixel["findings"].items()} == dict.fromkeys(classes, 1)
    assert found["model_sha256"] == model.sha256
    json.dumps(found)


def test_an_abnormal_image_without_a_mask_is_left_out(model, scored):
    items, predictions = scored
    assert lesion_metrics(model, [{**item, "mask": None} for item in items], predictions) is None
    first = next(n for n, item in enumerate(items) if item["label"] == 1)
    without = [{**item, "mask": None} if n == first else item for n, item in enumerate(items)]
    rest = [n for n in range(len(items)) if n != first]
    expected = lesion_metrics(model, [items[n] for n in rest], [predictions[n] for n in rest])
    assert lesion_metrics(model, without, predictions) == expected


def test_report_of_an_evaluation(model, scored, tmp_path):
    items, predictions = scored
    found = evaluation_metrics(model, items, predictions, [[p.anomaly_score] for p in predictions], 3)
    rate, drift = observed_rate(model, items, predictions), Drift(50, 0.5)
    page = tmp_path / "report.html"
    text = write_evaluation_report(page, model, items, predictions, found, 1, rate, drift).read_text()
    assert escape(rate.sentence()) in text
    assert text.index(escape(drift.sentence(str(model.folder)))) < text.index("Threshold: ")
    assert "90 % specificity" in text
    assert "3 test images could not be used." in text
    assert text.count("data:image/jpeg") == 2 * 4  # highest and lowest of each label


def test_map_and_overlay_of_an_image(model, tmp_path):
    for name in ("maps", "overlays"):
        (tmp_path / name).mkdir()
    prediction = to_prediction(model, "a.png", torch.randn(4, 4))
    write_pictures(tmp_path, 7, model, prediction, np.full((64, 64), 0.5, np.float32))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "maps" / "000007.tiff")), to_map(model, prediction))
    assert Image.open(tmp_path / "overlays" / "000007.png").size == (64, 64)


def test_images_that_were_trained_on_are_refused(model, phantoms):
    test = load_datalist(phantoms)["test"]
    with pytest.raises(InputError, match="does not record the images of its training"):
        evaluation_items(model, phantoms)
    record(model, [])
    assert evaluation_items(model, phantoms) == test
    record(model, [file_digest(test[2]["image"])])
    with pytest.raises(InputError, match="1 of 8 test images took part in training"):
        evaluation_items(model, phantoms)
    assert evaluation_items(model, phantoms, allow_overlap=True) == test


def test_evaluation_needs_both_labels(model, phantoms, tmp_path):
    normal = [{"image": str(p), "label": 0} for p in sorted(phantoms.glob("test/normal/*.png"))]
    training = [{"image": str(p), "label": 0} for p in sorted(phantoms.glob("train/normal/*.png"))]
    (tmp_path / "list.json").write_text(json.dumps({"training": training, "test": normal}))
    record(model, [])
    with pytest.raises(InputError, match="4 normal and 0 abnormal test images"):
        evaluation_items(model, tmp_path / "list.json")


def test_metrics_of_no_image_are_an_error(model):
    with pytest.raises(InputError, match="0 and 0"):
        evaluation_metrics(model, [], [], [], 8)


def test_inference_takes_every_image_below_a_folder(phantoms, tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "b").mkdir()
    image = next(phantoms.glob("test/normal/*.png")).read_bytes()
    for name in ("b/1.png", "0.PNG", ".hidden.png"):
        (tmp_path / name).write_bytes(image)
    (tmp_path / "notes.txt").write_text("not an image")
    assert inference_items(tmp_path) == [{"image": str(tmp_path / name)} for name in ("0.PNG", "b/1.png")]
    assert "2 files or folders left out" in caplog.text
    assert inference_items(tmp_path / "0.PNG") == [{"image": str(tmp_path / "0.PNG")}]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no radiograph"):
        inference_items(tmp_path / "empty")


@pytest.mark.parametrize("kind", [EvaluationHandler, InferenceHandler])
def test_evaluating_and_inferring_name_drift_as_predict_does(kind, model, phantoms, tmp_path, caplog):
    """The reference for drift is made from the images themselves, or from such that are brighter in every feature."""
    caplog.set_level(logging.INFO, "monai_wscxr")
    datalist = load_datalist(phantoms)
    transform = radiograph_transforms(model.preprocessing, keep_radiograph=kind is InferenceHandler)
    stream = RadiographStream(datalist["training"] + datalist["test"], transform)
    batches = list(DataLoader(stream, batch_size=16, collate_fn=collate))
    with torch.inference_mode():
        outputs = [CheckedNet(model.network)(batch["image"]) for batch in batches]
    own = torch.cat([means for _, means in outputs])
    model.training["seconds"] = {}
    for name, moved in (("here", 0.0), ("elsewhere", 10 * float(own.std()))):
        there = dataclasses.replace(model, drift=DriftReference.fit(own + moved, own[:20] + moved))
        handler = kind(there, stream, tmp_path / name)
        handler.start(None)
        for batch, output in zip(batches, outputs, strict=True):
            items = [dict(item) for item in batch["items"]]
            handler.collect(SimpleNamespace(state=SimpleNamespace(batch={"items": items}, output={"pred": output})))
        caplog.clear()
        handler.write(None)
        with open(tmp_path / name / "predictions.csv", newline="") as file:
            assert {row["drift"] for row in csv.DictReader(file)} == {str(moved > 0).lower()}
        last = caplog.records[-1].getMessage()
        assert last.startswith("DRIFT: these 32 radiographs") == (moved > 0)
        if kind is EvaluationHandler:
            metrics = json.loads((tmp_path / name / "metrics.json").read_text())
            assert metrics["drift"]["named"] == (moved > 0)
            assert ("DRIFT" in (tmp_path / name / "report" / "index.html").read_text()) == (moved > 0)
            assert metrics["calibration"]["observed"]["images"] == 24
