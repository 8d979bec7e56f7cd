"""A run's output folder: the same run goes on, another run is kept out."""

import json
import os

import pytest
import torch

from monai_wscxr.errors import InputError
from monai_wscxr.model.description import ARTEFACT
from monai_wscxr.system.atomic import DiskFullError
from monai_wscxr.training.run_folder import SETTINGS, RunFolder, epoch_discriminators

OPTIONS = {"k": 8, "retention": 0.2, "layers": None, "backbone": "efficientnet_lite0"}


def state(epoch):
    return {"epoch": epoch, "discriminator": {"w": torch.full((2,), float(epoch))}, "optimizer": {"lr": 1e-3}}


def with_states(path, epochs=3, **options):
    folder = RunFolder(path, {**OPTIONS, **options})
    for epoch in range(1, epochs + 1):
        folder.save_state(epoch, state(epoch))
    return folder


def refusal(path, settings=OPTIONS, **options):
    with pytest.raises(InputError) as caught:
        RunFolder(path, settings, **options)
    return str(caught.value)


@pytest.mark.parametrize("exists", [False, True])
def test_new_or_empty_folder_is_taken(tmp_path, exists):
    path = tmp_path / "a" / "b"
    if exists:
        path.mkdir(parents=True)
    folder = RunFolder(str(path), OPTIONS)
    assert json.loads((path / SETTINGS).read_text()) == OPTIONS
    assert folder.latest_state() is None
    assert folder.path == path


def test_same_settings_continue_after_the_last_epoch(tmp_path):
    with_states(tmp_path, 11)
    folder = RunFolder(tmp_path, dict(reversed(OPTIONS.items())))
    latest = folder.latest_state()
    assert latest["epoch"] == 11
    assert latest["discriminator"]["w"].tolist() == [11.0, 11.0]
    assert latest["optimizer"] == {"lr": 1e-3}
    assert not list(tmp_path.rglob("*.partial"))


def test_settings_that_only_json_changes_are_the_same(tmp_path):
    RunFolder(tmp_path, {**OPTIONS, "layers": ("3", "4")})
    assert RunFolder(tmp_path, {**OPTIONS, "layers": ("3", "4")}).settings["layers"] == ["3", "4"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"k": 4}, "k: 8 there, 4 now"),
        ({"layers": ["3"]}, "layers: None there, ['3'] now"),
        ({"new": 1}, "new: None there, 1 now"),
        ({"k": 4, "retention": 1}, "k: 8 there, 4 now; retention: 0.2 there, 1 now"),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path, change, named):
    with_states(tmp_path)
    message = refusal(tmp_path, {**OPTIONS, **change})
    assert f"belongs to a run with other settings ({named})" in message
    assert "--output_dir" in message
    assert "--overwrite true" in message
    assert RunFolder(tmp_path, OPTIONS).latest_state()["epoch"] == 3  # nothing was touched


def test_overwrite_clears_what_the_other_run_left(tmp_path, caplog):
    with_states(tmp_path)
    for name in (ARTEFACT, "model.pt", "metrics.json", "predictions.csv", "report/index.html"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("old")
    (tmp_path / "predictions" / "maps").mkdir(parents=True)
    (tmp_path / "predictions" / "maps" / "000000.tiff").write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    folder = RunFolder(tmp_path, {**OPTIONS, "k": 2}, overwrite=True)
    assert folder.latest_state() is None
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "notes.txt", SETTINGS, "training"]
    assert json.loads((tmp_path / SETTINGS).read_text())["k"] == 2
    assert "replacing the run" in caplog.text


def test_overwrite_keeps_the_states_of_the_same_run(tmp_path):
    with_states(tmp_path)
    assert RunFolder(tmp_path, OPTIONS, overwrite=True).latest_state()["epoch"] == 3


@pytest.mark.parametrize("overwrite", [False, True])
def test_foreign_folder_is_refused(tmp_path, overwrite):
    (tmp_path / "thesis.docx").write_text("years of work")
    message = refusal(tmp_path, overwrite=overwrite)
    assert "is not empty and is no output folder of a training run" in message
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.docx"]


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", "3"])
def test_damaged_settings_are_another_run(tmp_path, content):
    with_states(tmp_path)
    (tmp_path / SETTINGS).write_text(content)
    assert "k: None there, 8 now" in refusal(tmp_path)
    assert RunFolder(tmp_path, OPTIONS, overwrite=True).latest_state() is None


def test_file_instead_of_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("text")
    assert "is a file; give a folder with --output_dir" in refusal(tmp_path / "file")
    assert "cannot be written" in refusal(tmp_path / "file" / "below")
    assert "no output folder was given" in refusal("")


def test_finished_run_starts_again(tmp_path):
    before = with_states(tmp_path)
    (tmp_path / ARTEFACT).write_text("{}")
    before.finish()
    folder = RunFolder(tmp_path, OPTIONS)
    assert folder.latest_state() is None
    assert (tmp_path / ARTEFACT).exists()  # until the new one replaces it


def test_interrupted_repeat_of_a_finished_run_goes_on(tmp_path):
    with_states(tmp_path).finish()
    (tmp_path / ARTEFACT).write_text("{}")
    RunFolder(tmp_path, OPTIONS).save_state(1, state(1))
    assert RunFolder(tmp_path, OPTIONS).latest_state()["epoch"] == 1


def test_repeat_killed_while_it_clears_the_old_states_clears_the_rest(tmp_path):
    with_states(tmp_path).finish()
    (tmp_path / "training" / "epoch_0001.pt").unlink()
    assert RunFolder(tmp_path, OPTIONS).latest_state() is None


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:300] + b"!" + b[301:]])
def test_the_state_before_a_damaged_one_is_used(tmp_path, caplog, damage):
    newest = with_states(tmp_path, 3).states / "epoch_0003.pt"
    newest.write_bytes(damage(newest.read_bytes()))
    folder = RunFolder(tmp_path, OPTIONS)
    assert folder.latest_state()["epoch"] == 2
    assert "epoch_0003.pt is damaged" in caplog.text
    assert newest.with_suffix(".pt.damaged").exists()
    assert len(epoch_discriminators(tmp_path)) == 2
    folder.save_state(3, state(3))
    assert folder.latest_state()["epoch"] == 3


def test_all_states_damaged_is_a_new_start(tmp_path):
    for path in with_states(tmp_path, 2).states.glob("epoch_*.pt"):
        path.write_bytes(b"")
    assert RunFolder(tmp_path, OPTIONS).latest_state() is None


def test_evaluating_a_damaged_epoch_says_what_to_do(tmp_path):
    with_states(tmp_path)
    (tmp_path / "training" / "epoch_0002.pt").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"epoch_0002\.pt is damaged.*command of the training again"):
        epoch_discriminators(tmp_path)


def test_a_kill_before_the_settings_are_written_does_not_block_the_folder(tmp_path):
    (tmp_path / ".lock").write_text("{}")
    (tmp_path / ".settings.json.0123abcd.partial").write_text("{")
    RunFolder(tmp_path, OPTIONS)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", SETTINGS, "training"]


def test_full_disk_keeps_the_states_that_are_there(tmp_path, monkeypatch):
    folder = with_states(tmp_path, 2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(DiskFullError, match=r"epoch_0003.pt could not be written \(No space left on device\)"):
            folder.save_state(3, state(3))
    assert folder.latest_state()["epoch"] == 2
    assert not list(folder.states.glob("*.partial"))


def test_discriminators_of_every_epoch_in_order(tmp_path):
    with_states(tmp_path, 12)
    states = epoch_discriminators(tmp_path)
    assert [float(s["w"][0]) for s in states] == [float(i) for i in range(1, 13)]
    assert epoch_discriminators(tmp_path / "nowhere") == []
