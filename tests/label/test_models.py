"""Folders of models and the link to the one in use."""

import os

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
