"""Predicting in a Python session gives what the files give."""

import math

import numpy as np
import pydicom
import pytest
from PIL import Image

import monai_wscxr as w
from monai_wscxr.errors import InputError
from monai_wscxr.model.artefact import load_model
from monai_wscxr.model.predictor import predict_files
from tests.helpers.bundle_runs import SMALL


@pytest.fixture
def model(make_model, tmp_path):
    make_model(tmp_path / "run")
    return w.load(tmp_path / "run")


@pytest.fixture
def picture(phantoms):
    return sorted(phantoms.glob("test/abnormal/*/*.png"))[0]


def test_paths_arrays_and_pictures_give_the_result_of_the_file(model, picture):
    expected = next(predict_files(model.trained, [picture]))
    stored = np.asarray(Image.open(picture))
    given = [picture, str(picture), stored, stored.astype(np.uint16) * 257, stored / 255, Image.open(picture)]
    results = model.predict(given)
    assert [result.file for result in results] == [str(picture)] * 2 + [f"image {n}" for n in range(2, 6)]
    for result in results:
        assert result.score == pytest.approx(expected.anomaly_score, abs=1e-6)
        assert (result.p_value, result.reason) == (expected.p_value, "")
        assert result.map.shape == (64, 64)
    drawn = results[2].plot()
    assert (drawn.size, drawn.mode) == ((64, 64), "RGB")
    assert np.array_equal(np.asarray(drawn), np.asarray(results[0].plot()))


def test_the_order_of_a_list_is_kept_and_a_rejected_image_has_a_reason(model, picture, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    first, bad, last = model.predict([np.asarray(Image.open(picture)), tmp_path / "text.png", picture])
    assert first.score == last.score
    assert (bad.reason, bad.map, bad.abnormal) == ("unknown_format", None, False)
    assert math.isnan(bad.score)
    assert math.isnan(bad.p_value)
    with pytest.raises(InputError, match="was rejected"):
        bad.plot()


def test_a_pydicom_data_set(model, tmp_path):
    path = pydicom.data.get_testdata_file("CT_small.dcm")
    expected = next(predict_files(model.trained, [path]))
    result = model.predict(pydicom.dcmread(path))
    assert (result.reason, result.file) == (expected.reason, "image 0")
    with pytest.raises(InputError, match="cannot be written as a DICOM file"):
        model.predict(pydicom.Dataset())


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (np.zeros((3, 8, 8)), r"give an array \[H, W\]"),
        (np.zeros((8, 8), np.int32), "uint8 or uint16, got int32"),
        (np.full((8, 8), 255.0), r"must lie in \[0, 1\]"),
        (np.full((8, 8), np.nan), r"must lie in \[0, 1\]"),
    ],
)
def test_an_array_that_cannot_be_a_radiograph(model, array, sentence):
    with pytest.raises(InputError, match=sentence):
        model.predict(array)


def test_training_returns_the_model(phantoms, tmp_path, picture):
    model = w.train(phantoms, tmp_path / "run", **SMALL)
    assert model.trained.sha256 == load_model(tmp_path / "run").sha256
    assert math.isfinite(model.predict(picture).score)
    with pytest.raises(InputError, match="did you mean image_size"):
        w.train(phantoms, tmp_path / "other", imagesize=64)
    with pytest.raises(InputError, match="held-out fraction"):
        w.train(phantoms, tmp_path / "other", **{**SMALL, "holdout": 2.0})
    assert not (tmp_path / "other").exists()
