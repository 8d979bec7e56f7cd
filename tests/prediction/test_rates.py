"""Statements about the false-positive rate: every output gives the rate that the held-out normals support."""

import io
import json
import logging
import warnings

import numpy as np
import pytest

from monai_wscxr.data.phantom import write_phantoms
from monai_wscxr.data.radiograph.base import GATES
from monai_wscxr.model.artefact import load_model
from monai_wscxr.model.predictor import predict_files
from monai_wscxr.prediction.options import Options
from monai_wscxr.prediction.run import predict
from monai_wscxr.training.once import train_once
from tests.helpers import bundle_runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A data set with three normal training images, a model trained on it, and the log of its training."""
    folder = tmp_path_factory.mktemp("few normals")
    write_phantoms(folder / "data", 3, 1, 2, 1, size=64, progress=False)
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    logger, level = logging.getLogger("monai_wscxr"), logging.getLogger("monai_wscxr").level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        train_once(folder / "data", folder / "model", {**bundle_runs.SMALL, "false_positive_rate": 0.05})
    logger.removeHandler(handler)
    logger.setLevel(level)
    return folder / "data", folder / "model", log.getvalue()


@pytest.mark.filterwarnings("ignore")
def test_all_outputs_state_the_supported_rate(trained, tmp_path, write_dicom):
    data, folder, log = trained
    model = load_model(folder)
    n = len(model.calibration.normal_scores)
    assert n <= 3
    supported = 1 / (n + 1)
    words = f"at most {100 * supported:.3g} % of normal images"
    assert words in log
    assert "at most 5 %" not in log
    assert "at most 5.0 %" not in log

    levels = (np.random.default_rng(0).random((90, 80)) * 255).astype(np.uint8)
    path = write_dicom(tmp_path / "a.dcm", levels)
    output = tmp_path / "out"
    predict(Options(str(folder), (str(path),), str(output), dicom=True, workers=0, progress=False, allow=GATES))
    described = json.loads((output / "predictions.json").read_text())["model"]
    assert described["false_positive_rate"] == supported
    assert described["wanted_false_positive_rate"] == 0.05
    page = (output / "report" / "index.html").read_text()
    assert words in page
    assert "at most 5%" not in page
    assert "at most 5 %" not in page
    hd = pytest.importorskip("highdicom", reason="the extra dicom is not installed")
    report = hd.sr.srread(output / "dicom" / "000000-report.dcm")
    [group] = report.content.get_image_measurement_groups()
    numbers = {m.name.meaning: m.value for m in group.get_measurements()}
    assert numbers["False-positive rate of the operating point"] == pytest.approx(supported)

    bundle_runs.run("evaluate", data, folder)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["calibration"]["supported_false_positive_rate"] == supported
    assert words in next(folder.rglob("*.html")).read_text()


def test_label_states_the_supported_rate(trained):
    from monai_wscxr.label.ranking import ImageScore
    from monai_wscxr.label.results import ImagePrediction

    data, folder, _ = trained
    model = load_model(folder)
    file = next(data.glob("test/normal/*.png"))
    p = next(iter(predict_files(model, [str(file)])))
    score = ImageScore(p.anomaly_score, p.p_value, p.abnormal, (0.5, 0.5))
    prediction = ImagePrediction(file, model, score, np.zeros((64, 64), np.float32))
    assert prediction.to_dict()["operating_point"] == 1 / (len(model.calibration.normal_scores) + 1)
