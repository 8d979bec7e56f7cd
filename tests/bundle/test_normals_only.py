"""Training on normal images alone: the score is the distance to them, in every command, or one sentence says why not."""

import csv
import json
import shutil

import pytest
import torch
from monai.bundle import ckpt_export

from monai_wscxr.data import training_split
from monai_wscxr.features import PatchExtractor
from monai_wscxr.model import load_model, predict_files
from monai_wscxr.prediction.interactive import train
from tests.helpers.bundle_runs import CONFIGS, SMALL, run


@pytest.fixture(scope="module")
def alone(phantoms, tmp_path_factory):
    """Output folder of a training on normal images alone, evaluated."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    run("train", phantoms, folder, k=0)
    run("evaluate", phantoms, folder)
    return folder


def test_scores_are_distances_to_the_normals_after_whitening_and_a_share_of_opacities(alone, phantoms):
    model = load_model(alone)
    assert model.normals_only
    assert model.training["abnormal_images"] == {}
    assert model.training["mined_patches"] == 0
    assert model.settings["k"] == 0
    split = training_split(phantoms, 0, progress=False)
    assert split.abnormal == []
    extractor = PatchExtractor(model.network.features, model.preprocessing, cache=False, progress=False)
    rows = model.network.whitening(extractor.bank(split.held_out).rows)
    patches = extractor.grid[0] * extractor.grid[1]
    distances = rows.square().mean(1).reshape(-1, patches).mean(1)
    hints = (rows @ model.network.discriminator.opacity).reshape(-1, patches).mean(1)
    assert hints.std() > 0
    assert model.score_share == 1
    assert model.calibration.normal_scores == pytest.approx(sorted((distances + hints).tolist()), rel=1e-4)


def test_held_out_normals_set_the_threshold(alone):
    calibration = load_model(alone).calibration
    assert len(calibration.normal_scores) == 3
    assert calibration.threshold == calibration.normal_scores[2]  # two of three fewer than the rate of 0.3 would take
    assert calibration.colour_low < calibration.map_line < calibration.colour_high


def test_evaluation_and_its_report(alone):
    metrics = json.loads((alone / "metrics.json").read_text())
    assert metrics["honest"]["auroc"] == pytest.approx(metrics["paper"]["auroc"])  # there is no epoch to choose
    assert metrics["pixel"]["constant_map"]["auroc"] > 0
    assert "trained on normal images alone" in (alone / "report" / "index.html").read_text()


def test_inference_and_predict_score_alike(alone, phantoms, tmp_path):
    run("inference", phantoms / "test", alone, result_dir=str(tmp_path / "results"), allow=["unlike_a_chest"])
    with open(tmp_path / "results" / "predictions.csv") as opened:
        rows = list(csv.DictReader(opened))
    assert len(rows) == 8
    assert len(list((tmp_path / "results" / "maps").iterdir())) == 8
    model = load_model(alone)
    for prediction, row in zip(predict_files(model, [row["file"] for row in rows]), rows, strict=True):
        if prediction.status == "ok":
            assert prediction.anomaly_score == pytest.approx(float(row["anomaly_score"]), rel=1e-4)


def test_an_exported_model_scores_as_the_eager_one(alone, tmp_path):
    options = {
        "net_id": "network_def",
        "ckpt_file": str(alone / "model.pt"),
        "meta_file": str(CONFIGS / "metadata.json"),
        "config_file": str(CONFIGS / "inference.yaml"),
        "output_dir": str(alone),
        "input_shape": [1, 3, 64, 64],
    }
    ckpt_export(filepath=str(tmp_path / "model.ts"), **options)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        eager = load_model(alone).network(image)
        scripted = torch.jit.load(str(tmp_path / "model.ts"))(image)
    torch.testing.assert_close(scripted, eager, rtol=1e-5, atol=1e-5)


def test_a_data_set_without_abnormal_images_gives_the_same_model(alone, phantoms, tmp_path):
    shutil.copytree(phantoms / "train" / "normal", tmp_path / "data" / "train" / "normal")
    options = {name: value for name, value in SMALL.items() if name != "progress"}
    with pytest.warns(UserWarning, match="training on normal images alone, as with --k 0"):
        model = train(tmp_path / "data", tmp_path / "run", **options)  # also as a Python function
    assert model.trained.sha256 == load_model(alone).sha256


@pytest.mark.parametrize("options", [{"depth": 2, "width": 8, "zero_start": False}, {"region_share": 0, "copies": 0}])
def test_a_discriminator_of_any_kind_adds_nothing(phantoms, tmp_path, options):
    folder = tmp_path / "run"
    run("train", phantoms, folder, k=0, local_map=False, opacity_share=0, opacity_map=0, **options)
    discriminator = load_model(folder).network.discriminator
    rows = torch.randn(5, discriminator.regions.centre.shape[1])
    torch.testing.assert_close(discriminator(rows), rows.square().mean(1))
    maps = torch.randn(2, rows.shape[1], 4, 4)
    torch.testing.assert_close(discriminator(maps), maps.square().mean(1, keepdim=True))


def test_a_finished_run_is_repeated_with_the_same_result(alone, phantoms):
    before = load_model(alone).sha256
    run("train", phantoms, alone, k=0)
    assert load_model(alone).sha256 == before
