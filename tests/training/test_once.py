"""One training inside this process: the same as the command's, with progress, on an extractor that is there already."""

import json

import pytest
import torch

from monai_wscxr.errors import InputError
from monai_wscxr.model import Discriminator
from monai_wscxr.system.atomic import DiskFullError
from monai_wscxr.training import run_folder, train_once
from monai_wscxr.training.once import trainer_on_banks, training_workflow
from tests.helpers.bundle_runs import SMALL, run


def model_of(folder):
    return json.loads((folder / "artefact.json").read_text())["model_sha256"]


def test_it_is_the_training_of_the_command_and_tells_how_far_it_is(phantoms, tmp_path):
    run("train", phantoms, tmp_path / "command")
    told = []
    folder = train_once(
        phantoms, tmp_path / "once", SMALL, on_progress=lambda stage, share: told.append((stage, share))
    )
    assert folder == tmp_path / "once"
    assert model_of(folder) == model_of(tmp_path / "command")
    assert told[:2] == [("mining", 0.0), ("training", 0.0)]
    shares = [share for stage, share in told if stage == "training"]
    assert shares == sorted(shares)
    assert all(0 <= share <= 1 for share in shares)


def test_an_extractor_is_used_again(phantoms, tmp_path):
    extractor = training_workflow(phantoms, tmp_path / "any", SMALL).parser.get_parsed_content("extractor")
    first = train_once(phantoms, tmp_path / "first", SMALL, extractor=extractor)
    reused = extractor.done.reused
    second = train_once(
        phantoms, tmp_path / "second", {**SMALL, "seed": 1}, extractor=extractor, digests=extractor.digests
    )
    assert extractor.done.reused > reused
    assert model_of(first) != model_of(second)


def test_a_trainer_on_banks_takes_the_steps_of_the_options():
    rows = torch.randn(100, 6, generator=torch.Generator().manual_seed(0))
    discriminator = Discriminator(6, zero_start=True)
    options = {"batch_size": 30, "min_batches": 7, "epochs": 2, "device": "cpu"}
    trainer = trainer_on_banks(discriminator, rows, rows[:10] + 3, options)
    trainer.run()
    assert trainer.state.epoch_length == 8  # two passes of four batches
    assert trainer.state.iteration == 16
    assert float(discriminator.layers[-1].weight.abs().sum()) > 0


def test_errors_that_the_user_can_mend_are_not_wrapped(phantoms, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", str(tmp_path / "state"))

    monkeypatch.setattr(run_folder, "save_sealed", full)
    with pytest.raises(DiskFullError, match=r"state could not be written .* are missing"):
        train_once(phantoms, tmp_path / "full", SMALL)
    with pytest.raises(InputError, match="retention"):
        train_once(phantoms, tmp_path / "wrong", {**SMALL, "retention": 7})
