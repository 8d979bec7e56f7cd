"""Paths to inputs: every image once, in order, nothing outside a DICOMDIR's folder."""

import os
import shutil
import socket
import zlib

import pytest

from monai_wscxr.errors import InputError
from monai_wscxr.prediction import inputs as inputs_module
from monai_wscxr.prediction.inputs import Input, find_inputs, shown
from monai_wscxr.prediction.journal import NAME as JOURNAL

pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR CS")  # pydicom, on what the fixture writes


def test_folder_gives_images_in_order(inputs):
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


def test_files_in_a_folder_given_with_dots_keep_them(inputs, monkeypatch):
    monkeypatch.chdir(inputs.parent)
    for folder in ("./inputs", "inputs/b/..", "inputs/"):
        assert find_inputs([folder])[0][0].file == os.path.join(folder, "0.png")


def test_results_of_runs_are_no_inputs(inputs):
    for name in ("earlier", "now"):
        (inputs / name).mkdir()
        shutil.copy(inputs / "0.png", inputs / name / "overlay.png")
    (inputs / "earlier" / JOURNAL).touch()
    found, left_out = find_inputs([str(inputs)], without=str(inputs / "now"))
    assert len(found) == 7
    assert left_out == 1
    named, _ = find_inputs([str(inputs / "earlier")])
    assert [os.path.basename(item.file) for item in named] == ["overlay.png"]


def test_what_cannot_be_read_has_its_row(inputs, monkeypatch):
    (inputs / "IM1").touch()  # empty, so its content cannot tell that it is no image
    gone = inputs / "b"
    listing = inputs_module.list_images

    def remove_first(paths, skip):
        def skip_and_remove(folder):
            shutil.rmtree(gone, ignore_errors=True)
            return skip(folder)

        return listing(paths, skip_and_remove)

    found, _ = find_inputs([str(inputs)])
    assert Input(str(inputs / "IM1"), str(inputs / "IM1")) in found
    monkeypatch.setattr(inputs_module, "list_images", remove_first)
    found, _ = find_inputs([str(inputs)])
    assert found[-1] == Input(str(gone), "", ("unreadable", "this folder cannot be opened. Check its permissions."))


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


def test_pipes_sockets_and_devices_have_their_rows_and_are_never_opened(inputs, monkeypatch):
    monkeypatch.chdir(inputs)  # the address of a socket is short
    for name in ("pipe.png", "pipe", "pipe.txt", "1.2.3"):
        os.mkfifo(name)
    os.symlink("pipe.png", "linked.dcm")
    os.symlink("/dev/zero", "zero.nii")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.jpg")
        for paths in (
            ["."],
            ["pipe.png", "pipe", "pipe.txt", "1.2.3", "linked.dcm", "zero.nii", "socket.jpg", "/dev/null"],
        ):
            found, left_out = find_inputs(paths)
            problems = {os.path.basename(item.file): item.problem for item in found if item.problem}
            kinds = {"socket.jpg": "a socket", "zero.nii": "a device", "null": "a device"}
            wanted = {"pipe.png", "pipe", "pipe.txt", "1.2.3", "linked.dcm", "zero.nii", "socket.jpg"}
            assert set(problems) - {"null"} == wanted
            for name, problem in problems.items():
                kind = kinds.get(name, "a pipe")
                assert problem == ("unreadable", f"this is {kind}, not a file; it was not opened.")
            assert left_out == (1 if paths == ["."] else 0)
            assert all(item.path == "" for item in found if item.problem)


def test_damaged_dicomdir_among_other_inputs_has_its_row(inputs, dicomdir):
    content = dicomdir.read_bytes()
    image = str(inputs / "0.png")
    for broken in (content[: content.index(b"\x04\x00\x20\x12") + 14], _deflated(content)):
        dicomdir.write_bytes(broken)
        with pytest.raises(InputError, match="DICOMDIR"):
            find_inputs([str(dicomdir)])
        found, _ = find_inputs([str(dicomdir), image])
        assert [(item.file, item.path) for item in found] == [(str(dicomdir), ""), (image, image)]
        code, message = found[0].problem
        assert code == "unreadable"
        assert str(dicomdir) not in message


def _deflated(content):
    """Return the DICOMDIR with a header that claims compression, so that a small file could unpack to any size."""
    start = content.index(b"1.2.840.10008.1.2.1")
    length = content[start - 2] + 256 * content[start - 1]
    syntax = b"1.2.840.10008.1.2.1.99"
    packer = zlib.compressobj(wbits=-15)
    meta = content[132 : start - 2] + bytes([len(syntax), 0]) + syntax
    body = packer.compress(bytes(2**24)) + packer.flush()
    assert length == 20
    return content[:132] + meta + body
