"""Folders of models and the link to the one in use."""

import os

import pytest

from monai_wscxr.label.models import ModelFolders


def test_the_link_moves_in_one_step_and_only_to_finished_models(tmp_path):
    folders = ModelFolders(tmp_path, keep=2)
    assert folders.current() is None
    made = []
    for number in range(4):
        folder = folders.new()
        folder.mkdir()
        (folder / "artefact.json").write_text(str(number))
        made.append(folder)
        folders.publish(folder)
        assert folders.current() == folder.resolve()
        assert os.readlink(tmp_path / "model") == f"models/{folder.name}"
    assert [p.exists() for p in made] == [False, False, True, True]
    unfinished = folders.new()
    unfinished.mkdir()  # a training that was killed
    assert folders.current() == made[-1].resolve()
    assert folders.new() != unfinished
    last = folders.new()
    last.mkdir()
    (last / "artefact.json").write_text("x")
    folders.publish(last)
    assert not unfinished.exists()


def test_what_interrupted_trainings_left_is_removed_and_the_model_in_use_stays(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    folders = ModelFolders(tmp_path / "link")
    used = folders.new()
    used.mkdir()
    (used / "artefact.json").write_text("x")
    folders.publish(used)
    left = folders.new()
    left.mkdir()
    (left / "artefact.json").write_text("finished, but not in use")
    left.with_suffix(".json").write_text("{}")
    (folders.models / "000003.json").write_text("{}")  # the list alone
    used.with_suffix(".json").write_text("{}")
    folders.tidy()
    assert sorted(path.name for path in folders.models.iterdir()) == ["000001", "000001.json"]
    assert folders.current() == used.resolve()


def test_a_failure_removes_a_model_that_is_not_in_use(tmp_path):
    folders = ModelFolders(tmp_path)
    for publish in (False, True):
        folder = folders.new()
        folder.mkdir()
        folder.with_suffix(".json").write_text("{}")
        (folder / "artefact.json").write_text("x")
        if publish:
            folders.publish(folder)
        with pytest.raises(KeyError), folders.unfinished(folder):
            raise KeyError
        assert folder.exists() == folder.with_suffix(".json").exists() == publish
