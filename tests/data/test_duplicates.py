"""Copies by equal pixels: over the whole data set, in any format, before anything is chosen; kept in the cache."""

import shutil

import numpy as np
import pytest
from PIL import Image

from monai_wscxr.data import duplicates
from monai_wscxr.data.datalist import DatalistError, load_datalist
from monai_wscxr.data.duplicates import pixel_digests
from monai_wscxr.data.radiograph.read import READER_CHAIN, file_digest
from monai_wscxr.data.selection import check_overlap, join_copies
from monai_wscxr.data.split import training_split
from tests.helpers.radiograph_files import WINDOW, dicom


def values(number, shape=(24, 24)):
    return np.random.default_rng(number).integers(0, 256, shape).astype(np.uint8)


@pytest.fixture
def dataset(tmp_path):
    """12 normal and 12 abnormal training images, 2 and 2 test images, all different."""
    root = tmp_path / "data"
    names = [f"train/{kind}/{number}.png" for kind in ("normal", "abnormal/mass") for number in range(12)]
    names += [f"test/{kind}/{number}.png" for kind in ("normal", "abnormal/mass") for number in range(2)]
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values(number)).save(root / name)
    return root


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    monkeypatch.setenv("MONAI_WSCXR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(duplicates, "_known", {})


def copy_of(source, target, how):
    """Write the picture of `source` to `target` in another way; return the path."""
    array = np.asarray(Image.open(source))
    path = target.with_suffix(
        {"bytes": ".png", "png": ".png", "16 bit": ".png", "rgb": ".png", "turned": ".png"}.get(how, ".dcm")
    )
    if how == "bytes":
        shutil.copy(source, path)
    elif how == "png":
        Image.fromarray(array).save(path, compress_level=1)
    elif how == "16 bit":
        Image.fromarray(array.astype(np.uint16) * 257).save(path)
    elif how == "rgb":
        Image.fromarray(array).convert("RGB").save(path)
    elif how == "turned":
        exif = Image.Exif()
        exif[0x0112] = 3
        Image.fromarray(array[::-1, ::-1].copy()).save(path, exif=exif)
    else:
        dicom(path, array, PatientID="", **WINDOW)
    assert how == "bytes" or path.read_bytes() != source.read_bytes()
    return path


WAYS = ["bytes", "png", "16 bit", "rgb", "turned", "dicom"]


@pytest.mark.parametrize("how", WAYS)
def test_an_abnormal_image_under_normal_is_refused_whatever_is_chosen(dataset, how):
    for number in (0, 5, 11):
        wrong = copy_of(dataset / f"train/abnormal/mass/{number}.png", dataset / "train/normal/copy", how)
        for seed in range(3):
            for allow in (False, True):
                with pytest.raises(
                    DatalistError, match=rf"1 image\(s\) are exact copies.*mass/{number}\.png.*{wrong.name}"
                ):
                    training_split(dataset, 1, seed=seed, allow_overlap=allow)
        wrong.unlink()
    training_split(dataset, 1)


def test_a_jpeg_and_the_png_made_of_it_are_copies(dataset):
    Image.fromarray(values(50)).save(dataset / "train/abnormal/mass/j.jpg")
    Image.open(dataset / "train/abnormal/mass/j.jpg").save(dataset / "train/normal/p.png")
    with pytest.raises(DatalistError, match=r"1 image\(s\) are exact copies"):
        training_split(dataset, 1)


@pytest.mark.parametrize("part", ["train", "test"])
def test_contradictions_with_and_within_the_test_part(dataset, part):
    copy_of(dataset / f"{part}/abnormal/mass/1.png", dataset / "test/normal/copy", "png")
    with pytest.raises(DatalistError, match="contradictory labels"):
        training_split(dataset, 1, allow_overlap=True)


@pytest.mark.parametrize("how", WAYS)
def test_a_training_image_in_the_test_part(dataset, how):
    copy_of(dataset / "train/abnormal/mass/7.png", dataset / "test/abnormal/mass/copy", how)
    for seed in range(3):
        with pytest.raises(
            DatalistError, match=r"1 test image\(s\) are exact copies of training images.*--allow_overlap"
        ):
            training_split(dataset, 1, seed=seed)
    assert len(training_split(dataset, 1, allow_overlap=True).findings) == 1


def test_copies_within_training_stay_on_one_side_and_are_named(dataset, caplog):
    for number in range(12):
        copy_of(dataset / f"train/normal/{number}.png", dataset / f"train/normal/copy{number}", "png")
    copy_of(dataset / "train/abnormal/mass/0.png", dataset / "train/abnormal/0", "png")
    for seed in range(4):
        split = training_split(dataset, 1, holdout=0.3, seed=seed)
        pixels = pixel_digests({i["image"]: file_digest(i["image"]) for i in split.normal + split.held_out})
        sides = [{pixels[item["image"]] for item in items} for items in (split.normal, split.held_out)]
        assert len(split.held_out) in (6, 8)
        assert not sides[0] & sides[1]
    assert "13 training image(s) are exact copies of others in the same part, 1 of them in another class" in caplog.text


def test_methods_that_learn_from_normals_only_check_and_split_alike(dataset):
    from monai_wscxr.experiments.baselines.common import normal_split

    for number in range(12):
        copy_of(dataset / f"train/normal/{number}.png", dataset / f"train/normal/copy{number}", "png")
    for seed in range(3):
        ours, theirs = training_split(dataset, 1, 0.3, seed), normal_split(dataset, 0.3, seed)
        assert (ours.normal, ours.held_out, ours.test) == (theirs.normal, theirs.held_out, theirs.test)
    copy_of(dataset / "train/normal/3.png", dataset / "train/abnormal/mass/copy", "png")
    with pytest.raises(DatalistError, match="contradictory labels"):
        normal_split(dataset)


def test_different_pictures_of_low_contrast_stay_apart(tmp_path):
    files = {}
    for number in range(2):
        path = tmp_path / f"{number}.png"
        Image.fromarray(100 + np.random.default_rng(number).integers(0, 200, (16, 16)).astype(np.uint16)).save(path)
        files[str(path)] = file_digest(path)
    assert len(set(pixel_digests(files).values())) == 2


def test_patients_that_share_a_picture_are_joined():
    items = [{"image": str(n), "patient": p} for n, p in enumerate("abcdbe")]
    pixels = dict(zip("012345", ["p", "q", "p", "r", "r", "s"], strict=True))
    assert [item["patient"] for item in join_copies(items, pixels)] == ["a", "b", "a", "b", "b", "e"]
    assert join_copies(items, {str(n): str(n) for n in range(6)}) == items


def test_a_second_run_decodes_nothing(dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(duplicates, "_SHOWN_FROM", 28)
    first = training_split(dataset, 1)
    assert capsys.readouterr().err == "comparing pixels: 28 of 28 images, 00:00\n"
    kept = tmp_path / "cache" / "pixels" / f"{READER_CHAIN}.txt"
    assert str(dataset) not in kept.read_text()
    monkeypatch.setattr(duplicates, "_known", {})
    monkeypatch.setattr(duplicates, "read_radiograph", None)  # reading would fail
    assert training_split(dataset, 1) == first
    assert capsys.readouterr().err == ""


def test_a_damaged_cache_costs_time_only(dataset, tmp_path, monkeypatch):
    folder = tmp_path / "cache" / "pixels"
    folder.mkdir(parents=True)
    (folder / f"{READER_CHAIN}.txt").write_bytes(b"\xff\xfe torn line" + b"0" * 70)
    first = training_split(dataset, 1)
    text = (folder / f"{READER_CHAIN}.txt").read_bytes()
    assert len(duplicates._read(folder)) == 28
    (folder / f"{READER_CHAIN}.txt").write_bytes(text[:-20])
    assert len(duplicates._read(folder)) == 27
    monkeypatch.setattr(duplicates, "_known", {})
    assert training_split(dataset, 1) == first
    assert len(duplicates._read(folder)) == 28


def test_no_cache_and_one_that_cannot_be_written(dataset, tmp_path, caplog):
    training_split(dataset, 1, cache=False)
    assert not (tmp_path / "cache").exists()
    duplicates._known.clear()
    (tmp_path / "file").write_text("")
    training_split(dataset, 1, cache=tmp_path / "file")
    assert "cannot be kept" in caplog.text


def test_files_that_cannot_be_read_are_compared_by_their_bytes(dataset, tmp_path):
    for name in ("train/normal/bad.png", "test/normal/bad.png"):
        (dataset / name).write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    with pytest.raises(DatalistError, match=r"1 test image\(s\) are exact copies"):
        training_split(dataset, 1)


def test_normal_images_alone_are_not_decoded(dataset, monkeypatch):
    monkeypatch.setattr(duplicates, "read_radiograph", None)
    normal = [item for item in load_datalist(dataset)["training"] if item["label"] == 0]
    digests = {}
    assert check_overlap(normal, [], digests=digests) == []
    assert len(digests) == 12
