"""The rule for which files are images, each case on which the callers once disagreed, and the search of folders."""

import gzip
import logging
import os
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest

from monai_wscxr.data.datalist import load_datalist
from monai_wscxr.data.listing import Listing, is_image, list_images
from monai_wscxr.errors import InputError
from monai_wscxr.evaluation.items import inference_items
from monai_wscxr.prediction.inputs import find_inputs
from tests.helpers.radiograph_files import GREY, WINDOW, dicom, png

PART_10 = b"\0" * 128 + b"DICM"
BARE = b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100"  # a data set without preamble

DISAGREEMENTS = [  # name, content, whether it is an image, and who disagreed
    ("a.png", b"", True, "nobody: the extension decides, and reading gives the reason"),
    ("a.JPEG", b"", True, "nobody"),
    ("a.nii.gz", b"", True, "nobody"),
    ("a.dicom", PART_10, True, "only predict took it"),
    ("A.IMA", PART_10, True, "only predict took it"),
    ("IM0001", PART_10, True, "nobody"),
    ("IM0001", BARE, True, "nobody"),
    ("1.2.840.10008", PART_10, True, "inferring took no numbers as extension"),
    ("slice.001", BARE, True, "inferring and predict left it out"),
    ("export.tmp", PART_10, True, "only predict and bank took it"),
    ("export.tmp", BARE, False, "two bytes are too little evidence against an extension; only bank took it"),
    ("picture", b"\x89PNG\r\n\x1a\n", True, "training and label left it out"),
    ("picture", b"\xff\xd8\xff\xe0", True, "training and label left it out"),
    ("README", b"read me", False, "inferring, predict and bank took it"),
    ("1.2.840.10008", b"text", False, "predict and bank took it"),
    ("notes.txt", b"text", False, "bank took it"),
    ("DICOMDIR", PART_10, False, "training, label, inferring and bank took it"),
    (".a.png", b"", False, "nobody"),
    ("empty", b"", False, "inferring, predict and bank took it"),
    ("packed", gzip.compress(bytes(range(256)) * 9, mtime=0)[:60], False, "training and label failed on it"),
    ("packed", gzip.compress(b"text" * 99, mtime=0)[:12] + b"\xff" * 40, False, "training and label failed on it"),
]


@pytest.mark.parametrize(("name", "content", "expected", "who"), DISAGREEMENTS)
def test_the_rule(tmp_path, name, content, expected, who):
    (tmp_path / name).write_bytes(content)
    assert is_image(tmp_path / name) == expected, who
    assert (list_images([tmp_path]).images == (tmp_path / name,)) == expected


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (".a.png", b"", "hidden"),
        ("notes.txt", b"", "not_an_image"),
        ("README", b"read me", "not_an_image"),
        ("DICOMDIR", PART_10, "not_an_image"),
        ("empty", b"", "unreadable"),
        ("packed", gzip.compress(bytes(range(256)) * 9, mtime=0)[:60], "unreadable"),
    ],
)
def test_reasons(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    assert list_images([tmp_path]).left_out == ((tmp_path / name, reason),)


@pytest.mark.parametrize("name", ["pipe", "pipe.txt", "pipe.png", "pipe.7", "socket.dcm", "socket"])
def test_pipes_and_sockets_are_not_opened(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)  # the path of a socket may have about 100 characters
    if name.startswith("pipe"):
        os.mkfifo(name)
    else:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(name)
    assert list_images([tmp_path]).left_out == ((tmp_path / name, "not_a_file"),)
    assert list_images([tmp_path / name]) == Listing((), ((tmp_path / name, "not_a_file"),))
    assert not is_image(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jpe", "a.JFIF", "a.tif", "a.TIFF", "a.bmp", "a.IMA", "a.dicom"])
def test_suffixes_of_other_programs(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    assert is_image(tmp_path / name)


def test_folders_are_searched_in_order_and_what_is_left_out_is_counted(tmp_path):
    for name in (
        "b/z.png",
        "b/a.png",
        "a.png",
        "c.png",
        ".git/x.png",
        "__MACOSX/y.png",
        "b/.z.png",
        "b/n.txt",
        "n.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    elsewhere = tmp_path / "b" / "link"
    elsewhere.symlink_to(tmp_path, target_is_directory=True)
    listing = list_images([tmp_path / "b", tmp_path])
    assert [path.relative_to(tmp_path).as_posix() for path in listing.images] == [
        *("b/a.png", "b/z.png"),
        *("a.png", "b/a.png", "b/z.png", "c.png"),
    ]
    assert [(path.relative_to(tmp_path).as_posix(), reason) for path, reason in listing.left_out[3:]] == [
        (".git", "hidden"),
        ("__MACOSX", "hidden"),
        ("b/.z.png", "hidden"),
        ("b/link", "linked_folder"),
        ("b/n.txt", "not_an_image"),
        ("n.txt", "not_an_image"),
    ]
    assert listing.summary() == "9 files or folders left out: 4 hidden, 3 not_an_image, 2 linked_folder"
    assert Listing((), ()).summary() == ""


def test_given_files_are_taken_whatever_their_name(tmp_path):
    for name in (".hidden.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    given = (tmp_path / ".hidden.png", tmp_path / "notes.txt")
    assert list_images(given) == Listing(given, ())
    with pytest.raises(InputError, match="there is no file or folder nowhere"):
        list_images(["nowhere"])


def test_skipped_and_unreadable_folders_are_named(tmp_path):
    for name in ("a/a.png", "results/x.png", "gone/g.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"")

    def skip(folder):
        if folder == tmp_path:
            shutil.rmtree(tmp_path / "gone")  # after its name was read, so that searching it fails
        return folder.name == "results"

    listing = list_images([tmp_path], skip)
    assert listing.images == (tmp_path / "a/a.png",)
    assert listing.left_out == ((tmp_path / "gone", "unreadable_folder"), (tmp_path / "results", "skipped"))
    assert list_images([tmp_path], lambda folder: True) == Listing((), ((tmp_path, "skipped"),))


@pytest.fixture
def dataset(tmp_path):
    """A training folder with every kind of file, and the names of its images."""
    folder = tmp_path / "train" / "normal"
    for name in ("deep", ".thumbnails", "__MACOSX"):
        (folder / name).mkdir(parents=True)
        png(folder / name / "p.png", GREY)
    png(folder / "picture", GREY)
    for name in ("a.dcm", "b.dicom", "c.ima", "IM0001", "1.2.840.1", "slice.001", "export.tmp", "DICOMDIR"):
        dicom(folder / name, np.tile(GREY, (40, 40)), **WINDOW)
    for name in ("notes.txt", "README", ".hidden.png"):
        (folder / name).write_bytes(b"text")
    images = ["1.2.840.1", "IM0001", "a.dcm", "b.dicom", "c.ima", "deep/p.png", "export.tmp", "picture", "slice.001"]
    return folder, images


def test_training_inferring_and_predict_find_the_same(dataset, caplog):
    folder, images = dataset
    caplog.set_level(logging.INFO, "monai_wscxr")
    expected = [str(folder / name) for name in images]
    assert [str(path) for path in list_images([folder]).images] == expected
    assert [item["image"] for item in inference_items(folder)] == expected
    assert [item["image"] for item in load_datalist(folder.parents[1])["training"]] == expected
    found, left_out = find_inputs([str(folder)])
    assert [item.path for item in found] == expected
    assert left_out == 3  # notes.txt, README and DICOMDIR; hidden ones do not count
    summary = "6 files or folders left out: 3 hidden, 3 not_an_image"
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder}: {summary}",
        f"{folder.parents[1]}: {summary}",
        f"{folder.parents[1]}: 2 of 9 images name no patient by datalist, file name or DICOM header; "
        "each is a patient of its own",
    ]


def test_inferring_takes_one_file_and_refuses_folders_without_images(tmp_path):
    (tmp_path / "scan.tmp").write_bytes(b"")
    assert inference_items(tmp_path / "scan.tmp") == [{"image": str(tmp_path / "scan.tmp")}]
    with pytest.raises(InputError, match="holds no radiograph"):
        inference_items(tmp_path)
    with pytest.raises(InputError, match="there is no file or folder"):
        inference_items(tmp_path / "nowhere")


def test_a_link_to_no_file_is_an_image_by_its_name(tmp_path):
    Path(tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    assert list_images([tmp_path]).images == (tmp_path / "gone.png",)
