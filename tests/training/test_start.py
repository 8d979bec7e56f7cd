"""What a workflow checks before it starts: options, folders, device, seed."""

import random
import sys
from pathlib import Path

import monai.bundle
import pytest
import torch

from monai_wscxr.errors import InputError
from monai_wscxr.training import start as bundle
from monai_wscxr.training.options import check_options, from_command_line
from monai_wscxr.training.start import check_dataset_dir, start_run

CONFIGS = Path(__file__).parents[2] / "bundles" / "wscxr_chest_xray" / "configs"
TRAIN = str(CONFIGS / "train.yaml")


@pytest.fixture(autouse=True)
def _keep_the_random_state():
    """`start` seeds every random stream and turns benchmarks off."""
    state, python, backend = torch.random.get_rng_state(), random.getstate(), torch.backends.cudnn.benchmark
    deterministic = torch.backends.cudnn.deterministic
    yield
    torch.random.set_rng_state(state)
    random.setstate(python)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = backend, deterministic


@pytest.mark.parametrize(
    "options",
    [
        ["--dataset_dir", "d", "--output_dir", "o", "--k", "8", "--retention", "0.2"],
        ["--image_size=256", "--backbone=densenet121", "--overwrite", "true"],
        ["--dataset-dir", "d", "--batch-size=16"],
        ["--train#trainer#max_epochs", "3", "--loss#_target_", "torch.nn.MSELoss"],
        ["--train::trainer::max_epochs=3"],
        ["--meta_file", "metadata.json", "--logging_file", "logging.conf", "--tracking", "mlflow"],
        ["--tracking_uri", "file:runs", "--run_name", "first"],
        ["training"],
    ],
)
def test_known_options_pass(options):
    check_options(["run", "training", "--config_file", TRAIN, *options])


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("--retantion", "did you mean --retention?"),
        ("--epoch", "--epochs"),
        ("--learning-rte=1", "--learning_rate"),
        ("--train#trainer#max_epoch", "unknown option --train#trainer#max_epoch"),
        ("--nonsense_qqq", "see the top of the configuration file"),
    ],
)
def test_unknown_options_are_refused_with_what_comes_close(option, hint):
    with pytest.raises(InputError, match="unknown option --") as caught:
        check_options(["run", "training", "--config_file", TRAIN, "--k", "8", option, "3"])
    assert hint in str(caught.value)


def test_options_of_all_configuration_files_are_known(tmp_path):
    extra = tmp_path / "extra.yaml"
    extra.write_text("my_own_option: 3\n")
    both = f"['{TRAIN}','{extra}']"
    check_options(["run", f"--config_file={both}", "--my_own_option", "4", "--k", "2"])
    with pytest.raises(InputError, match="my_own_option"):
        check_options(["run", f"--config_file={TRAIN}", "--my_own_option", "4"])


def test_nothing_is_checked_without_a_configuration_file():
    check_options(["run", "--whatever", "1"])
    check_options([])


@pytest.mark.parametrize(
    ("program", "answer"), [(monai.bundle.__path__[0] + "/__main__.py", True), ("/usr/bin/pytest", False)]
)
def test_command_line_is_recognised(monkeypatch, program, answer):
    monkeypatch.setattr(sys, "argv", [program, "run"])
    assert from_command_line() is answer


def test_start_checks_the_options_of_its_own_command_line(monkeypatch, tmp_path):
    monkeypatch.setattr(
        sys, "argv", [monai.bundle.__path__[0] + "/__main__.py", "run", "--config_file", TRAIN, "--kk", "8"]
    )
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    inherited = sys.excepthook
    with pytest.raises(InputError, match="unknown option --kk"):
        start_run(str(tmp_path), "out", "cpu")
    assert sys.excepthook is not inherited
    monkeypatch.setattr(sys, "argv", ["pytest", "--kk", "8"])
    start_run(str(tmp_path), "out", "cpu")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dataset_dir": ""}, "--dataset_dir is missing"),
        ({"dataset_dir": None}, "--dataset_dir is missing"),
        ({"output_dir": ""}, "--output_dir is missing"),
        ({"dataset_dir": "nowhere/at/all"}, "--dataset_dir nowhere/at/all does not exist"),
        ({"device": "tpu9"}, "--device tpu9 is not a device; use cpu or cuda"),
        ({"seed": -1}, "--seed must be a whole number from 0 to 4294967295, got -1"),
        ({"seed": 2**32}, "got 4294967296"),
        ({"seed": 1.5}, "got 1.5"),
        ({"seed": "zero"}, "got 'zero'"),
        ({"seed": True}, "got True"),
    ],
)
def test_start_refuses_with_a_sentence(tmp_path, change, reason):
    arguments = {"dataset_dir": str(tmp_path), "output_dir": "out", "device": "cpu", "seed": 0, **change}
    with pytest.raises(InputError) as caught:
        start_run(**arguments)
    assert reason in str(caught.value)


def test_cuda_without_a_device_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(bundle.torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="torch sees no CUDA device here; use --device cpu"):
        start_run(str(tmp_path), "out", "cuda")


def test_same_seed_same_numbers(tmp_path):
    def numbers(seed):
        start_run(str(tmp_path), "out", "cpu", seed)
        return torch.rand(3).tolist()

    assert numbers(7) == numbers(7) != numbers(8)
    numbers(2**32 - 1)


def test_a_run_without_compiled_kernels_says_so_and_why(tmp_path, monkeypatch, caplog):
    start_run(str(tmp_path), "out", "cpu")
    assert "slower" not in caplog.text
    monkeypatch.setattr("monai_wscxr.training.start.EXTENSION", None)
    monkeypatch.setattr("monai_wscxr.training.start.EXTENSION_STATE", "it was not built: there is no C++ compiler")
    start_run(str(tmp_path), "out", "cpu")
    assert (
        "it was not built: there is no C++ compiler; torch's own code runs instead: the same results, slower"
        in caplog.text
    )


def test_images_may_be_named_later(tmp_path):
    start_run("", "out", "cpu", images_later=True)
    with pytest.raises(InputError, match="--dataset_dir is missing"):
        check_dataset_dir("")
    with pytest.raises(InputError, match="does not exist"):
        check_dataset_dir(tmp_path / "nowhere")
    check_dataset_dir(tmp_path)
