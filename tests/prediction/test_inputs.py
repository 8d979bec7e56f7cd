"""Paths to inputs: every picture once, in order, nothing outside a DICOMDIR's folder."""

import os

import pytest

from monai_wscxr.errors import InputError
from monai_wscxr.prediction.inputs import find_inputs, shown

pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR CS")  # pydicom, on what the fixture writes


def test_folder_gives_pictures_in_order(inputs):
    found, left_out = find_inputs([str(inputs)])
    names = [os.path.relpath(item.file, inputs) for item in found]
    assert names == ["0.png", "1.png", "2.png", "b/1.2.840.1", "b/3.dcm", "b/broken.png", "b/lateral.dcm"]
    assert left_out == 1  # notes.txt; hidden files do not count at all
    assert all(item.path == item.file and item.problem is None for item in found)


def test_paths_stay_as_given(inputs, monkeypatch):
    monkeypatch.chdir(inputs)
    found, _ = find_inputs(["b/../0.png", "b", "missing.png"])
    assert [item.file for item in found][:2] == ["b/../0.png", "b/1.2.840.1"]
    assert found[-1].file == "missing.png"


def test_nothing_to_do_is_said(tmp_path):
    for paths, words in (
        ([], "nothing to predict"),
        ([str(tmp_path)], "no radiograph"),
        (["a", "b"], "a does not exist"),
    ):
        with pytest.raises(InputError, match=words):
            find_inputs(paths)


def test_dicomdir_lists_and_contains(inputs, dicomdir):
    found, _ = find_inputs([str(dicomdir)])
    assert [item.file for item in found[:2]] == [str(inputs / "b" / "3.dcm"), str(inputs / "b" / "lateral.dcm")]
    assert [item.file for item in found[2:]] == [f"{dicomdir}#{n}" for n in (2, 3, 4, 5)]
    assert all(item.problem[0] == "outside_folder" and item.path == "" for item in found[2:])
    within, _ = find_inputs([str(inputs)])
    assert "DICOMDIR" not in [os.path.basename(item.file) for item in within]


def test_link_out_of_a_dicomdirs_folder_is_not_followed(inputs, dicomdir, tmp_path):
    os.rename(inputs / "b" / "3.dcm", tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", inputs / "b" / "3.dcm")
    found, _ = find_inputs([str(dicomdir)])
    assert found[0].problem[0] == "outside_folder"


def test_damaged_dicomdir_is_said(dicomdir):
    content = dicomdir.read_bytes()
    dicomdir.write_bytes(content[: content.index(b"\x04\x00\x20\x12") + 14])
    with pytest.raises(InputError, match=r"DICOMDIR (is damaged|lists no image)"):
        find_inputs([str(dicomdir)])


def test_names_that_are_no_utf8_can_be_written():
    assert shown(os.fsdecode(b"a\xff.png")) == "a\\xff.png"
    assert shown("ü.png") == "ü.png"
