"""A model predicts with any runtime what it predicts with the one that made it."""

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest

import monai_wscxr as w
from monai_wscxr.commands import main as cli
from monai_wscxr.errors import InputError, find_input_error
from monai_wscxr.features.inference import runtime_states
from monai_wscxr.model.artefact import load_model
from monai_wscxr.model.predictor import predict_files, prediction_features
from monai_wscxr.prediction.options import Options
from monai_wscxr.prediction.run import predict
from tests.helpers.bundle_runs import SMALL, run

RUNTIMES = ("torch", "openvino", "onnxruntime")
TOLERANCE = 1e-3  # of a score, in standard deviations of the normals' scores: docs/runtimes.md


@pytest.fixture(scope="module")
def made(phantoms, tmp_path_factory):
    """Folder of a model that was trained with OpenVINO."""
    folder = tmp_path_factory.mktemp("made") / "run"
    w.train(phantoms, folder, **{**SMALL, "runtime": "openvino", "cache": str(folder.parent / "cache")})
    return folder


@pytest.fixture
def files(phantoms):
    return sorted(phantoms.glob("test/*/*/*.png")) + sorted(phantoms.glob("test/normal/*.png"))


def test_the_artefact_records_the_runtime_and_a_run_may_continue_with_another(made, phantoms, tmp_path):
    record = json.loads((made / "artefact.json").read_text())["training"]["runtime"]
    assert (record["name"], record["precision"]) == ("openvino", "float32")
    assert record["version"] == runtime_states()["openvino"]
    assert 0 <= record["difference"] < 1e-4
    assert "runtime" not in json.loads((made / "settings.json").read_text())
    again = shutil.copytree(made, tmp_path / "again")
    continued = w.train(phantoms, again, **SMALL)  # with torch
    assert continued.trained.training["runtime"]["name"] == "torch"
    threshold = load_model(made).calibration.threshold
    assert continued.trained.calibration.threshold == pytest.approx(threshold, rel=1e-3)


def test_every_runtime_predicts_the_same(made, files):
    trained = load_model(made)
    spread = np.std(trained.calibration.normal_scores)
    found = {name: list(predict_files(trained, files, runtime=name)) for name in RUNTIMES}
    assert len({p.p_value for p in found["torch"]}) > 1
    for others in (found["openvino"], found["onnxruntime"]):
        for mine, theirs in zip(found["torch"], others, strict=True):
            assert abs(mine.anomaly_score - theirs.anomaly_score) < TOLERANCE * spread
            assert (mine.p_value, mine.abnormal, mine.reason) == (theirs.p_value, theirs.abnormal, theirs.reason)
            assert mine.anomaly_score != 0


def test_a_session_keeps_its_network(made, files, monkeypatch):
    model = w.load(made, runtime="openvino")
    first = model.predict(files[0])
    network = model._network
    assert network.network.features.runtime.name == "openvino"
    assert model.predict(files[0]).score == first.score
    assert model._network is network


def test_evaluation_and_inference_take_a_runtime(made, phantoms, tmp_path):
    scores = []
    for runtime in ("torch", "openvino"):
        run("evaluate", phantoms, tmp_path / runtime, model_dir=str(made), runtime=runtime)
        with open(tmp_path / runtime / "predictions.csv", newline="") as table:
            scores.append([float(row["anomaly_score"]) for row in csv.DictReader(table)])
        run("inference", phantoms / "test", tmp_path / runtime, model_dir=str(made), runtime=runtime, read_workers=0)
        assert (tmp_path / runtime / "predictions" / "predictions.csv").is_file()
    assert len(scores[0]) == 8
    assert scores[0] == pytest.approx(scores[1], abs=1e-4 * np.std(scores[0]))
    for configuration in ("evaluate", "inference"):
        with pytest.raises(Exception, match=r"\w") as caught:  # MONAI wraps the errors of a configuration
            run(configuration, phantoms, tmp_path / "none", model_dir=str(made), runtime="tvm")
        assert "runtime must be one of" in str(find_input_error(caught.value))


def test_a_prediction_run_goes_on_with_its_own_runtime_only(made, files, tmp_path, capsys):
    options = Options(
        model=str(made),
        paths=(str(files[0]),),
        output=str(tmp_path / "out"),
        workers=0,
        progress=False,
        runtime="openvino",
    )
    predict(options)
    assert predict(options).done_before == 1
    with pytest.raises(InputError, match=r"holds another prediction run \(other runtime\)"):
        predict(dataclasses.replace(options, runtime="torch"))
    with pytest.raises(SystemExit):
        cli.main(["predict", str(files[0]), "--model", str(made), "--output", str(tmp_path), "--runtime", "tensorrt"])
    assert "invalid choice: 'tensorrt'" in capsys.readouterr().err


def test_predictions_have_the_precision_of_the_calibration(made):
    trained = load_model(made)
    lower = dataclasses.replace(trained, settings={**trained.settings, "precision": "bfloat16"})
    assert prediction_features(lower, "torch").record()["precision"] == "bfloat16"
    assert prediction_features(trained, "torch").record()["precision"] == "float32"


def test_doctor_names_the_runtimes(capsys):
    cli.main(["doctor"])
    printed = capsys.readouterr().out
    assert f"openvino: {runtime_states()['openvino']}" in printed
