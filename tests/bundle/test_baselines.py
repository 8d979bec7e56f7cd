"""The compared methods as bundle workflows: their configurations on top of train.yaml, with small settings."""

import csv
import json
import shutil

import pytest
from monai.bundle import create_workflow

from monai_wscxr.data.split import training_split
from monai_wscxr.errors import InputError
from monai_wscxr.experiments.baselines.common import normal_split
from monai_wscxr.report.predictions import COLUMNS, LABEL, score_text
from monai_wscxr.training.options import check_options
from tests.helpers.bundle_runs import CONFIGS, SMALL

PLAIN = {"discriminant": {}, "logistic": {}, "nearest": {}}
SHRUNK = {
    **PLAIN,
    "patchcore": {"coreset": 0.5},
    "simplenet": {"simplenet_epochs": 2},
    "cutpaste_reduced": {"steps": 10},
    "cutpaste": {"cutpaste_steps": 2, "cutpaste_batch": 4, "pixels": 32},
    "ddad": {"ddad_epochs": 1, "members": 2, "pixels": 32, "networks_at_once": 1},
    "anatpaste": {"anatpaste_steps": 2, "anatpaste_batch": 4, "pixels": 32},
}


def run(method, dataset_dir, output_dir, **overrides):
    workflow = create_workflow(
        config_file=[str(CONFIGS / "train.yaml"), str(CONFIGS / f"{method}.yaml")],
        workflow_type="train",
        run_id="training",
        dataset_dir=str(dataset_dir),
        output_dir=str(output_dir),
        **{**SMALL, **SHRUNK[method], **overrides},
    )
    workflow.run()
    workflow.finalize()


@pytest.mark.parametrize("method", SHRUNK)
def test_a_method_trains_calibrates_and_evaluates(method, phantoms, tmp_path):
    run(method, phantoms, tmp_path / "run")
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert found["method"] == found["settings"]["method"] == method
    assert (found["n_normal"], found["n_abnormal"]) == (4, 4)
    assert set(found["honest"]) >= {"auroc", "accuracy", "f1", "threshold"}
    with open(tmp_path / "run" / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == (*COLUMNS, LABEL)
    assert len(rows) == 8
    assert all(row["label"] == str(int("/abnormal/" in row["file"])) for row in rows)
    assert {(row["status"], row["reason"], row["model_sha256"]) for row in rows} == {("ok", "", "")}
    threshold = float(score_text(found["honest"]["threshold"]))
    flagged = [float(row["anomaly_score"]) > threshold for row in rows]
    assert [row["abnormal"] == "true" for row in rows] == flagged


def test_a_rejected_test_image_has_its_row(phantoms, tmp_path):
    source = tmp_path / "data"
    shutil.copytree(phantoms, source)
    broken = sorted(source.glob("test/normal/*.png"))[1]
    broken.write_bytes(b"not an image")
    run("patchcore", source, tmp_path / "run", max_bad_share=0.5)
    with open(tmp_path / "run" / "predictions.csv", newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert len(rows) == 8
    row = rows.pop(str(broken))
    assert (row["status"], row["reason"], row["label"]) == ("rejected", "unknown_format", "0")
    assert (row["anomaly_score"], row["p_value"], row["abnormal"]) == ("", "", "")
    assert {row["status"] for row in rows.values()} == {"ok"}


def test_the_same_seed_gives_the_same_figures(phantoms, tmp_path):
    for name in ("a", "b"):
        run("cutpaste_reduced", phantoms, tmp_path / name)
    assert (tmp_path / "a" / "predictions.csv").read_text() == (tmp_path / "b" / "predictions.csv").read_text()


def test_an_output_folder_belongs_to_one_method(phantoms, tmp_path):
    run("patchcore", phantoms, tmp_path / "run")
    with pytest.raises(RuntimeError) as caught:  # MONAI wraps what a component raises
        run("simplenet", phantoms, tmp_path / "run")
    assert "belongs to a run with other settings" in str(caught.value.__cause__)
    assert "method: patchcore there, simplenet now" in str(caught.value.__cause__)


def test_every_method_has_wscxrs_held_out_normals(phantoms):
    ours, theirs = training_split(phantoms, 1, 0.15, 3), normal_split(phantoms, 0.15, 3)
    assert ours.held_out == theirs.held_out
    assert ours.normal == theirs.normal


@pytest.mark.parametrize("method", [method for method, options in SHRUNK.items() if options])
def test_options_of_both_configurations_are_known(method):
    files = f"['{CONFIGS / 'train.yaml'}','{CONFIGS / f'{method}.yaml'}']"
    option = next(iter(SHRUNK[method]))
    check_options(["run", "training", "--config_file", files, f"--{option}", "1", "--image_size", "64"])
    with pytest.raises(InputError, match="unknown option"):
        check_options(["run", "training", "--config_file", files, f"--{option}x", "1"])
