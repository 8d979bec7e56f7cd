"""The model card: complete, true to artefact and metrics, and without names of files."""

import dataclasses
import json
import re

import pytest

from monai_wscxr.commands.main import main
from monai_wscxr.errors import InputError
from monai_wscxr.model.artefact import load_model
from monai_wscxr.report.card import model_card, read_metrics

TRAINING = {
    "normal_images": 120,
    "held_out_images": 19,
    "abnormal_images": {"effusion": 4, "no|dule": 2},
    "mined_patches": 1234,
    "rejected": [["unreadable", "it ends early"], ["unreadable", ""], ["too_small", ""]],
    "overlap": ["2 test image(s) are exact copies of training images: /data/a.png and /data/b.png."],
}
SETTINGS = {
    "k": 4,
    "retention": 0.5,
    "dataset_dir": "/data/hospital",
    "weights": "/home/me/weights.pth",
    "layers": ["3"],
}


@pytest.fixture
def model(make_model, tmp_path):
    """A model whose artefact records the training above."""
    make_model(tmp_path)
    described = json.loads((tmp_path / "artefact.json").read_text())
    described |= {"settings": SETTINGS, "training": TRAINING}
    (tmp_path / "artefact.json").write_text(json.dumps(described))
    return load_model(tmp_path)


def figures(sha256, threshold=1.8):
    honest = {
        "auroc": 0.9123,
        "accuracy": 0.8,
        "f1": 0.75,
        "sensitivity": 0.7,
        "specificity": 0.9,
        "threshold": threshold,
    }
    paper = {**honest, "auroc": 0.95}
    return {"model_sha256": sha256, "n_normal": 50, "n_abnormal": 40, "honest": honest, "paper": paper}


def test_it_says_what_the_model_was_trained_on(model):
    card = model_card(model, None, {"k": 8, "retention": 0.5})
    for row in (
        "| normal | 120 |",
        "held out for calibration | 19 |",
        "| abnormal: effusion | 4 |",
        "| rejected: unreadable | 2 |",
    ):
        assert row in card
    assert r"abnormal: no\|dule | 2 |" in card
    assert "1,234 patches were mined" in card
    assert "| `k` | `4` | changed |" in card
    assert "| `retention` | `0.5` |  |" in card
    assert model.sha256 in card
    assert "not been evaluated" in card
    assert "Terms of the training images: not stated" in card


def test_it_names_no_file_and_no_folder(model):
    card = model_card(model)
    assert "2 test image(s) are exact copies of training images." in card
    assert "| `weights` | `weights.pth` |" in card
    for private in ("/data/", "/home", "hospital"):
        assert private not in card


def test_it_shows_the_operating_points_with_their_intervals(model):
    sensitivity = {"value": 0.7, "low": 0.6123, "high": 0.8}
    point = {"sensitivity": sensitivity, "specificity": 0.9, "threshold": 1.5, "few_normal": True}
    points = {"auroc": {"value": 0.91, "low": 0.85, "high": 0.95}, "patients": 61, "at_90": point}
    points |= {"own": {**point, "few_normal": False}, "at_95": {**point, "sensitivity": None}}
    card = model_card(model, figures(model.sha256) | {"operating_points": points})
    assert "| the model's own threshold | 0.70 [0.61, 0.80] | 0.90 | 1.5000 |" in card
    assert "| 90 % specificity | 0.70 [0.61, 0.80]* | 0.90 | 1.5000 |" in card
    assert "| 95 % specificity | n/a* |" in card
    assert "AUROC 0.91 [0.85, 0.95]; in brackets 95 % intervals over 61 patients" in card


def test_its_promises_are_those_of_the_calibration(model):
    card = model_card(model)
    assert f"exceeds {model.calibration.threshold:.4f}: {model.calibration.rate_text}" in card
    assert "(1 + number of 19 held-out normals that score at least as high) / 20; the smallest is 0.05." in card
    assert "If a normal image is exchangeable" in card


def test_an_adapted_model_says_what_it_rests_on(model):
    calibration = dataclasses.replace(model.calibration, basis="site_unlabelled")
    site = {"images": 60, "rejected": 3}
    card = model_card(dataclasses.replace(model, calibration=calibration, site=site))
    assert "Adapted to another site with 60 of its images (3 rejected)." in card
    assert "of 19 unlabelled images of the site that score at least as high" in card
    assert "estimated from unlabelled ones" in card
    assert "If a normal image is exchangeable" not in card


def test_figures_are_those_of_this_model_only(model):
    path = model.folder / "metrics.json"
    assert read_metrics(model) is None
    path.write_text(json.dumps(figures("0" * 64)))
    assert read_metrics(model) is None
    path.write_text(json.dumps(figures(model.sha256, threshold=1.7)))
    assert read_metrics(model) is None  # adapted since
    path.write_text(json.dumps(figures(model.sha256, model.calibration.threshold)))
    card = model_card(model, read_metrics(model))
    assert "| AUROC | 0.912 | 0.950 |" in card
    assert "On 50 normal and 40 abnormal test images" in card
    path.write_text("{")
    with pytest.raises(InputError, match="evaluate the model again"):
        read_metrics(model)


def test_the_command_prints_or_writes_it(model, tmp_path, capsys):
    (tmp_path / "terms.txt").write_text("CC BY 4.0\n")
    main(["card", "--model", str(model.folder), "--data_licence", str(tmp_path / "terms.txt")])
    printed = capsys.readouterr().out
    assert "Terms of the training images: CC BY 4.0\n" in printed
    main(
        [
            "card",
            "--model",
            str(model.folder),
            "--data_licence",
            str(tmp_path / "terms.txt"),
            "--output",
            str(tmp_path / "card.md"),
        ]
    )
    assert (tmp_path / "card.md").read_text() == printed


def test_a_file_that_cannot_be_written_is_one_sentence(model, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["card", "--model", str(model.folder), "--output", str(tmp_path / "nowhere" / "card.md")])
    assert ended.value.code == 2
    assert re.fullmatch(
        r"error: --output \S+ cannot be written \(No such file or directory\)\n", capsys.readouterr().err
    )
