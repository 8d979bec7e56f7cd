"""Evaluation, inference, export and the conventions of MONAI bundles."""

import csv
import json
import math
import shutil

import numpy as np
import onnxruntime
import pytest
import torch
from monai.bundle import ckpt_export, onnx_export, verify_metadata, verify_net_in_out
from PIL import Image
from sklearn.metrics import roc_auc_score

from monai_wscxr.model.artefact import load_model
from monai_wscxr.model.predictions import to_map
from monai_wscxr.model.predictor import predict_files
from monai_wscxr.report.predictions import COLUMNS, LABEL
from tests.helpers.bundle_runs import CONFIGS, run, workflow
from tests.helpers.chest_checks import refuse_unlike


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_follow_from_the_predictions(trained):
    metrics = json.loads((trained / "metrics.json").read_text())
    table = rows(trained / "predictions.csv")
    labels = [int("/abnormal/" in row["file"]) for row in table]
    scores = [float(row["anomaly_score"]) for row in table]
    assert (metrics["n_normal"], metrics["n_abnormal"]) == (4, 4)
    assert metrics["honest"]["auroc"] == pytest.approx(roc_auc_score(labels, scores))
    flagged = [row["abnormal"] == "true" for row in table]
    assert metrics["honest"]["accuracy"] == pytest.approx(
        np.mean([f == y for f, y in zip(flagged, labels, strict=True)])
    )
    assert metrics["honest"]["threshold"] == load_model(trained).calibration.threshold
    assert metrics["paper"]["sensitivity"] + metrics["paper"]["specificity"] >= 1  # Youden's point
    assert 1 <= metrics["paper"]["epoch"] <= 3
    assert 0 <= metrics["pixel"]["auroc"] <= 1
    assert set(metrics["seconds"]) == {"extraction", "mining", "training", "evaluation"}


def test_predictions_have_a_row_for_every_file(trained, phantoms):
    table = rows(trained / "predictions.csv")
    assert tuple(table[0]) == (*COLUMNS, LABEL)
    assert all(row[LABEL] == str(int("/abnormal/" in row["file"])) for row in table)
    files = [str(path) for path in sorted((phantoms / "test").rglob("*.png"))]
    assert sorted(row["file"] for row in table) == files
    assert all(0 < float(row["p_value"]) <= 1 for row in table)


def test_the_report_shows_pictures(trained):
    text = (trained / "report" / "index.html").read_text()
    assert text.count("data:image/jpeg") >= 16  # radiograph and overlay of all eight test images
    assert "For research use only" in text


def test_a_nan_score_is_an_error(trained, phantoms, tmp_path):
    started = workflow("evaluate", phantoms, trained)
    network = started.parser.get_parsed_content("network").network.network
    network.discriminators[-1].layers[0].bias.data.fill_(torch.nan)
    with pytest.raises(RuntimeError) as caught:
        started.run()
    assert "NaN or Inf" in str(caught.value.__cause__)


def test_inference_gives_every_file_its_row_map_and_overlay(trained, phantoms, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number, path in enumerate(sorted((phantoms / "test").rglob("*.png"))[:3]):
        (folder / f"{number}.png").write_bytes(path.read_bytes())
    (folder / "broken.png").write_bytes(b"not a picture")
    run("inference", folder, trained, result_dir=str(tmp_path / "results"))
    table = rows(tmp_path / "results" / "predictions.csv")
    assert [row["status"] for row in table] == ["ok", "ok", "ok", "rejected"]
    assert tuple(table[0]) == COLUMNS
    assert table[3]["reason"] == "unknown_format"
    expected = list(predict_files(load_model(trained), [row["file"] for row in table]))
    for n, prediction in enumerate(expected[:3]):
        assert float(table[n]["anomaly_score"]) == pytest.approx(prediction.anomaly_score, abs=1e-5)
        stored = np.asarray(Image.open(tmp_path / "results" / "maps" / f"{n:06d}.tiff"))
        assert stored.dtype == np.float32
        np.testing.assert_allclose(stored, to_map(load_model(trained), prediction), atol=1e-5)
        assert Image.open(tmp_path / "results" / "overlays" / f"{n:06d}.png").size == (64, 64)
    assert math.isnan(expected[3].anomaly_score)


def test_inference_rejects_what_is_unlike_a_chest(trained, phantoms, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(trained, folder)
    refuse_unlike(folder, None, 1e-9)
    run("inference", phantoms / "test", folder, result_dir=str(tmp_path / "results"))
    table = rows(tmp_path / "results" / "predictions.csv")
    assert {(row["status"], row["reason"]) for row in table} == {("rejected", "unlike_a_chest")}
    assert not list((tmp_path / "results" / "maps").iterdir())
    assert {p.reason for p in predict_files(load_model(folder), [row["file"] for row in table])} == {"unlike_a_chest"}
    run("inference", phantoms / "test", folder, result_dir=str(tmp_path / "allowed"), allow=["unlike_a_chest"])
    assert {row["status"] for row in rows(tmp_path / "allowed" / "predictions.csv")} == {"ok"}


def test_evaluation_counts_what_predict_would_refuse_and_scores_it(trained, phantoms, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(trained, folder)
    refuse_unlike(folder, None, 1e-9)
    run("evaluate", phantoms, folder)
    metrics, before = (json.loads((where / "metrics.json").read_text()) for where in (folder, trained))
    assert (metrics["n_unlike_a_chest"], before["n_unlike_a_chest"]) == (8, 0)
    assert metrics["honest"] == before["honest"]
    assert "8 test images are unlike a chest radiograph" in (folder / "report" / "index.html").read_text()
    run("evaluate", phantoms, folder, allow=["unlike_a_chest"])
    assert json.loads((folder / "metrics.json").read_text())["n_unlike_a_chest"] == 0


def test_exported_models_score_as_the_eager_one(trained, tmp_path):
    options = {
        "net_id": "network_def",
        "ckpt_file": str(trained / "model.pt"),
        "meta_file": str(CONFIGS / "metadata.json"),
        "config_file": str(CONFIGS / "inference.yaml"),
        "output_dir": str(trained),
        "input_shape": [1, 3, 64, 64],
    }
    ckpt_export(filepath=str(tmp_path / "model.ts"), **options)
    onnx_export(filepath=str(tmp_path / "model.onnx"), **options)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        eager = load_model(trained).network(image)
        scripted = torch.jit.load(str(tmp_path / "model.ts"))(image)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    (onnx,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    torch.testing.assert_close(scripted, eager, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.from_numpy(onnx), eager, rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", ["train", "inference"])
def test_monai_finds_the_properties_it_asks_for(trained, phantoms, tmp_path, config):
    output = tmp_path / "run" if config == "train" else trained
    assert workflow(config, phantoms, output).check_properties() == []


def test_the_network_takes_and_gives_what_the_metadata_says():
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=str(CONFIGS / "train.yaml"),
        device="cpu",
    )


def test_the_metadata_has_what_monai_requires(tmp_path):
    required = [
        *("schema", "version", "changelog", "monai_version", "pytorch_version", "numpy_version"),
        *("required_packages_version", "task", "description", "authors", "copyright", "network_data_format"),
    ]
    schema = {"type": "object", "required": required, "properties": {"version": {"pattern": r"^\d+\.\d+\.\d+$"}}}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    verify_metadata(meta_file=str(CONFIGS / "metadata.json"), filepath=str(tmp_path / "schema.json"))
    broken = json.loads((CONFIGS / "metadata.json").read_text())
    del broken["changelog"]
    (tmp_path / "broken.json").write_text(json.dumps(broken))
    with pytest.raises(ValueError, match="changelog"):
        verify_metadata(meta_file=str(tmp_path / "broken.json"), filepath=str(tmp_path / "schema.json"))
