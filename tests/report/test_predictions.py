"""The table of predictions: the same columns everywhere, a row per image, empty fields for rejected images."""

import csv
import math

import numpy as np
import pytest

from monai_wscxr.model.calibration import calibrate
from monai_wscxr.model.predictions import Prediction
from monai_wscxr.report.predictions import COLUMNS, escape_cell, unescape_cell, write_predictions

CALIBRATION = calibrate([0.1 * i for i in range(19)])
PREDICTIONS = [
    Prediction.scored("a, b.png", 2.123456789, CALIBRATION, np.ones((2, 2), np.float32)),
    Prediction.rejected('c"d.png', "not_found"),
    Prediction.scored("e.png", 0.25, CALIBRATION),
]


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_the_columns():
    assert COLUMNS == ("file", "status", "reason", "anomaly_score", "p_value", "abnormal", "model_sha256", "drift")


def test_a_row_per_prediction(tmp_path):
    write_predictions(tmp_path / "predictions.csv", PREDICTIONS, "ab" * 32)
    header, *rows = read(tmp_path / "predictions.csv")
    assert tuple(header) == COLUMNS
    assert rows == [
        ["a, b.png", "ok", "", "2.123457", "0.05", "true", "ab" * 32, ""],
        ['c"d.png', "rejected", "not_found", "", "", "", "ab" * 32, ""],
        ["e.png", "ok", "", "0.250000", "0.85", "false", "ab" * 32, ""],
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.csv"]


@pytest.mark.parametrize(("drift", "word"), [(None, ""), (True, "true"), (False, "false")])
def test_every_row_says_whether_there_is_drift(tmp_path, drift, word):
    write_predictions(tmp_path / "predictions.csv", PREDICTIONS, "ab" * 32, drift=drift)
    _, *rows = read(tmp_path / "predictions.csv")
    assert [row[-1] for row in rows] == [word] * 3


def test_labels_are_a_further_column(tmp_path):
    write_predictions(tmp_path / "plain.csv", PREDICTIONS, "")
    write_predictions(tmp_path / "labelled.csv", PREDICTIONS, "", labels=[1, 0, 1])
    plain, labelled = read(tmp_path / "plain.csv"), read(tmp_path / "labelled.csv")
    assert [row[:-1] for row in labelled] == plain
    assert [row[-1] for row in labelled] == ["label", "1", "0", "1"]


@pytest.mark.parametrize("score", [0.0, 1.79, 1.8, 1.81])
def test_a_prediction_follows_its_calibration(score):
    prediction = Prediction.scored("a.png", score, CALIBRATION)
    assert (prediction.status, prediction.reason, prediction.patch_scores.shape) == ("ok", "", (0, 0))
    assert prediction.p_value == CALIBRATION.p_value(score)
    assert prediction.abnormal == CALIBRATION.abnormal(score)


def test_a_rejected_prediction_has_no_score():
    prediction = Prediction.rejected("a.png", "empty")
    assert math.isnan(prediction.anomaly_score)
    assert math.isnan(prediction.p_value)
    assert prediction.abnormal is False


NAMES = [
    "=1+1.png",
    "+1.png",
    "-1.png",
    "@SUM(1).png",
    "\t=1.png",
    "\r=1.png",
    "\n=1.png",
    "\uff1d1.png",
    "'=1.png",
    "'a.png",
]


@pytest.mark.parametrize("name", NAMES)
def test_no_cell_starts_a_formula(tmp_path, name):
    predictions = [Prediction.scored(name, -2.0, CALIBRATION), Prediction.rejected(name, "empty")]
    write_predictions(tmp_path / "predictions.csv", predictions, "ab" * 32)
    rows = read(tmp_path / "predictions.csv")[1:]
    assert [row[0] for row in rows] == [f"'{name}"] * 2
    assert unescape_cell(rows[0][0]) == name
    assert float(rows[0][3]) == -2.0  # a number stays a number


@pytest.mark.parametrize("name", ["a=1.png", "folder/=1.png", "/=1.png", " =1.png", "", "1-2.png", "é.png"])
def test_other_cells_stay_as_they_are(name):
    assert escape_cell(name) == unescape_cell(name) == name
