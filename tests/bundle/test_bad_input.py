"""Whatever cannot be used is refused in one sentence, before long work starts, and nothing is left half-written."""

import shutil
import subprocess
import sys
from collections import namedtuple

import pytest
import torch

from monai_wscxr.errors import InputError, find_input_error
from tests.helpers.bundle_runs import CONFIGS, run


def refusal(*arguments, **overrides):
    """The sentence with which a run is refused."""
    with pytest.raises(Exception) as caught:
        run(*arguments, **overrides)
    error = find_input_error(caught.value)
    assert isinstance(error, InputError), repr(caught.value)
    return str(error)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"k": -1}, "k is -1; it must be 1 or more, or 0"),
        ({"k": 0, "whiten": False}, "leave --whiten on"),
        ({"k": 5, "strict": True}, "fewer than k = 5"),
        ({"retention": 0}, r"retention rate r must lie in \(0, 1\]"),
        ({"distance_share": -1}, "distance_share must be 0"),
        ({"region_shrinkage": 0}, "region_shrinkage must lie"),
        ({"score_share": 2}, "score_share must lie"),
        ({"map_sigma": -1}, "map_sigma must be 0"),
        ({"copies": -1}, "copies must be 0"),
        ({"mining_scope": "some"}, "scope"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"optimizer_name": "AdamW"}, "must be SGD or Adam"),
        ({"retention": 1.5}, r"retention rate r must lie in \(0, 1\]"),
        ({"backbone": "densnet121"}, "unknown backbone 'densnet121'"),
        ({"layers": ["9"]}, "no layer '9'; its stages are"),
        ({"weights": "nowhere.pth"}, "'nowhere.pth' does not exist"),
        ({"image_size": 8}, "image_size must be"),
        ({"neighbourhood": 4}, "must be odd"),
        ({"align_to": "middle"}, "align_to must be"),
        ({"alpha_min": 0.0}, "0 < alpha_min"),
        ({"depth": 0}, "must be >= 1"),
        ({"holdout": 1.0}, "between 0 and 1"),
        ({"false_positive_rate": 0.0}, "false_positive_rate must lie"),
        ({"seed": -1}, "--seed must be"),
        ({"device": "cuba"}, "is not a device"),
        ({"max_bad_share": 2}, "max_bad_share must lie"),
    ],
)
def test_an_option_out_of_range(phantoms, tmp_path, overrides, sentence):
    from re import search

    said = refusal("train", phantoms, tmp_path / "run", **overrides)
    assert search(sentence, said), said
    assert not (tmp_path / "run").exists()


def test_a_class_with_fewer_than_k_images_uses_all_and_says_so(phantoms, tmp_path):
    with pytest.warns(UserWarning, match="fewer than k = 5: all of them are used"):
        run("train", phantoms, tmp_path / "run", k=5, epochs=1)


def test_a_missing_folder(tmp_path):
    assert "does not exist" in refusal("train", tmp_path / "nowhere", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_empty_folder(tmp_path):
    (tmp_path / "data").mkdir()
    assert "data" in refusal("train", tmp_path / "data", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_folder_at_all(tmp_path):
    assert "--dataset_dir is missing" in refusal("train", "", tmp_path / "run")
    assert "--output_dir is missing" in refusal("train", tmp_path, "")


def test_too_many_unreadable_images(phantoms, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(phantoms, data)
    for path in sorted((data / "train" / "normal").glob("*.png"))[:6]:
        path.write_bytes(b"")
    said = refusal("train", data, tmp_path / "run")
    assert "more than the allowed share of 5%" in said
    assert "--max_bad_share" in said
    assert not (tmp_path / "run" / "artefact.json").exists()


def test_a_copy_of_a_training_image_among_the_test_images(phantoms, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(phantoms, data)
    for path in sorted((data / "train" / "normal").glob("*.png")):
        shutil.copy(path, data / "test" / "normal" / f"copy_{path.name}")
    assert "--allow_overlap true" in refusal("train", data, tmp_path / "run")
    run("train", data, tmp_path / "run", allow_overlap=True, epochs=1)
    said = refusal("evaluate", data, tmp_path / "run")
    assert "took part in training or adapting this model" in said
    run("evaluate", data, tmp_path / "run", allow_overlap=True)


def test_the_output_folder_of_another_run(trained, phantoms, tmp_path):
    before = (trained / "artefact.json").read_bytes()
    said = refusal("train", phantoms, trained, retention=0.3)
    assert "retention: 0.5 there, 0.3 now" in said
    assert "--overwrite true" in said
    assert (trained / "artefact.json").read_bytes() == before
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("precious")
    assert "is no output folder" in refusal("train", phantoms, foreign)
    assert [p.name for p in foreign.iterdir()] == ["thesis.txt"]


def test_a_disk_without_space_for_the_bank(phantoms, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("monai_wscxr.bank.cache.shutil.disk_usage", lambda _: usage(10**9, 10**9, 10**6))
    said = refusal("train", phantoms, tmp_path / "run", cache=str(tmp_path / "cache"))
    assert "bytes are missing); make room" in said
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_bank_larger_than_memory_and_no_cache_to_keep_it_in(phantoms, tmp_path):
    text = refusal("train", phantoms, tmp_path / "run", cache=False, bank_memory=1)
    assert "leave --cache on, so that the bank can stay on disk" in text


def test_nan_in_the_weights(phantoms, tmp_path):
    import torchvision

    state = torchvision.models.densenet121(weights=None).state_dict()
    state["features.conv0.weight"][0] = torch.nan
    torch.save(state, tmp_path / "weights.pth")
    said = refusal("train", phantoms, tmp_path / "run", backbone="densenet121", weights=str(tmp_path / "weights.pth"))
    assert "hold NaN or Inf" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("factor", "sentence"), [(1.5, "does not hold the weights"), (torch.nan, "weight holds NaN or Inf")]
)
def test_a_model_whose_weights_were_damaged_is_refused(trained, phantoms, tmp_path, factor, sentence):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    state = torch.load(folder / "model.pt", weights_only=True)
    state["discriminator.layers.0.weight"] *= factor
    torch.save(state, folder / "model.pt")
    assert sentence in refusal("evaluate", phantoms, folder)


def test_a_folder_without_a_model(phantoms, tmp_path):
    assert "holds no trained model" in refusal("evaluate", phantoms, tmp_path)
    assert "holds no trained model" in refusal("inference", phantoms, tmp_path)


def test_a_data_set_without_test_images(trained, phantoms, tmp_path):
    shutil.copytree(phantoms / "train", tmp_path / "data" / "train")
    assert "evaluation needs both" in refusal("evaluate", tmp_path / "data", trained)


def test_nothing_to_infer_on(trained, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds no radiograph" in refusal("inference", tmp_path / "empty", trained)


def test_the_command_line_says_it_in_one_line(phantoms, tmp_path):
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", str(CONFIGS / "train.yaml")]
    command += ["--dataset_dir", str(phantoms), "--output_dir", str(tmp_path / "run"), "--retentoin", "0.3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr.rstrip().splitlines()[-1] == "error: unknown option --retentoin: did you mean --retention?"
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("interval", [0, -1, 1.5, "often"])
def test_an_interval_that_is_no_whole_number(phantoms, tmp_path, interval):
    message = refusal("train", phantoms, tmp_path / "run", val_interval=interval)
    assert message == f"val_interval must be a whole number of at least 1, got {interval!r}"
    assert not (tmp_path / "run").exists()
