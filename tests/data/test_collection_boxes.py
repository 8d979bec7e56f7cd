"""Lesion boxes of collections: scaled from the original's size to the file's, or refused with both sizes."""

import json

import numpy as np
import pytest
from PIL import Image

from monai_wscxr.data.collections import Limits, make_datalist
from monai_wscxr.data.collections.common import box_mask
from monai_wscxr.data.datalist import DatalistError
from tests.helpers.radiograph_files import WINDOW, dicom


def picture(path, width, height):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.arange(width * height, dtype=np.uint32).reshape(height, width).astype(np.uint8)).save(path)


def lines(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n")


def mask_of(listed):
    """Return the mask of the only test image with one."""
    (item,) = [item for item in json.loads(listed.read_text())["test"] if "mask" in item]
    return np.asarray(Image.open(listed.parent / item["mask"]))


def box(shape, top, bottom, left, right):
    expected = np.zeros(shape, np.uint8)
    expected[top:bottom, left:right] = 255
    return expected


@pytest.mark.parametrize("side", [224, 512, 1024])
def test_nih_copies_of_any_size(tmp_path, side):
    header = "Image Index,Finding Labels,Follow-up #,Patient ID,View Position,OriginalImage[Width,Height]"
    lines(
        tmp_path / "Data_Entry_2017.csv",
        header,
        "00000001_000.png,No Finding,0,1,PA,2500,2048",
        "00000002_000.png,Mass,0,2,PA,2500,2048",
    )
    lines(tmp_path / "train_val_list.txt", "00000001_000.png")
    lines(tmp_path / "test_list.txt", "00000002_000.png")
    lines(tmp_path / "BBox_List_2017.csv", "Image Index,Finding Label,x,,,", "00000002_000.png,Mass,256,512,128,320,,,")
    for number in (1, 2):
        picture(tmp_path / "images" / f"0000000{number}_000.png", side, side)
    make_datalist("nih", tmp_path, tmp_path / "list.json")
    assert np.array_equal(
        mask_of(tmp_path / "list.json"),
        box((side, side), side // 2, side * 832 // 1024, side // 4, side * 3 // 8),
    )


@pytest.mark.parametrize(("suffix", "side"), [("dcm", 1024), ("dcm", 256), ("png", 224), ("jpg", 512)])
def test_rsna_copies_of_any_size(tmp_path, suffix, side):
    ill = [f"b{n}" for n in range(20)]
    rows = [f"{name},256,512,256,128,1" for name in ill]
    lines(tmp_path / "stage_2_train_labels.csv", "patientId,x,y,width,height,Target", "a,,,,,0", *rows)
    classes = [f"{name},Lung Opacity" for name in ill]
    normal = [f"a{n},Normal" for n in range(20)]
    lines(tmp_path / "stage_2_detailed_class_info.csv", "patientId,class", *normal, *classes)
    values = np.arange(side * side, dtype=np.uint32).reshape(side, side).astype(np.uint8)
    folder = tmp_path / "stage_2_train_images"
    folder.mkdir()
    for name in [*ill, *(f"a{n}" for n in range(20))]:
        if suffix == "dcm":
            dicom(folder / f"{name}.dcm", values, **WINDOW)
        else:
            Image.fromarray(values).save(folder / f"{name}.{suffix}")
    make_datalist("rsna", tmp_path, tmp_path / "list.json", Limits(test_normal=1, test_abnormal=1))
    expected = box((side, side), side // 2, side * 5 // 8, side // 4, side // 2)
    assert np.array_equal(mask_of(tmp_path / "list.json"), expected)


def vindr(root, suffix, size, columns=(), meta=False):
    header = "image_id,class_name,x_min,y_min,x_max,y_max"
    more = "".join(f",{name}" for name in columns)
    values = ",2000,3000" if columns else ""
    lines(root / "annotations" / "annotations_train.csv", header, "n,No finding,,,,")
    lines(root / "annotations" / "annotations_test.csv", header + more, f"t,Mass,400,600,800,1500{values}")
    if meta:
        lines(root / "test_meta.csv", "image_id,dim0,dim1", "t,3000,2000")
    for part, name in (("train", "n"), ("test", "t")):
        (root / part).mkdir()
        if suffix == "dicom":
            values = (np.arange(size[0] * size[1]) % 251).reshape(size[::-1]).astype(np.uint8)
            dicom(root / part / f"{name}.dicom", values, **WINDOW)
        else:
            picture(root / part / f"{name}.{suffix}", *size)


@pytest.mark.parametrize("given", [{"columns": ("width", "height")}, {"meta": True}])
def test_vindr_copies_of_known_originals(tmp_path, given):
    vindr(tmp_path, "png", (200, 300), **given)
    make_datalist("vindr", tmp_path, tmp_path / "list.json")
    assert np.array_equal(mask_of(tmp_path / "list.json"), box((300, 200), 60, 150, 40, 80))


def test_vindr_originals_need_no_size(tmp_path):
    vindr(tmp_path, "dicom", (900, 1600))
    make_datalist("vindr", tmp_path, tmp_path / "list.json")
    assert np.array_equal(mask_of(tmp_path / "list.json"), box((1600, 900), 600, 1500, 400, 800))


@pytest.mark.parametrize(
    ("suffix", "size", "given", "words"),
    [
        ("png", (512, 512), {}, r"512 x 512 pixels.*do not give the size.*reach to 800 x 1500"),
        ("png", (512, 512), {"meta": True}, r"original of 2000 x 3000.*the file has 512 x 512 pixels.*squashed"),
        ("dicom", (700, 700), {}, r"from \(400, 600\) of 400 x 900 pixels does not fit the original of 700 x 700"),
    ],
)
def test_boxes_of_another_size_are_refused_with_both_sizes(tmp_path, suffix, size, given, words):
    vindr(tmp_path, suffix, size, **given)
    with pytest.raises(DatalistError, match=words):
        make_datalist("vindr", tmp_path, tmp_path / "list.json")
    assert not (tmp_path / "list.json").exists()


def test_boxes_slightly_beyond_the_original_are_cut(tmp_path):
    picture(tmp_path / "a.png", 100, 100)
    mask = box_mask(tmp_path / "a.png", [(-2, 90, 8, 12), (99.9, 0, 0.1, 0.1)], (100, 100))
    assert mask.sum() // 255 == 6 * 10 + 1  # the smallest box still marks a pixel
    assert mask[90:, :6].all()
    assert mask[0, 99]


@pytest.mark.parametrize(
    "wrong",
    [(10, 10, 0, 5), (10, 10, -5, 5), (200, 10, 5, 5), (90, 10, 20, 5), (float("nan"), 0, 5, 5), (-9, 0, 20, 5)],
)
def test_boxes_that_cannot_be(tmp_path, wrong):
    picture(tmp_path / "a.png", 50, 50)
    with pytest.raises(DatalistError, match=r"does not fit the original of 100 x 100 \(the file has 50 x 50"):
        box_mask(tmp_path / "a.png", [wrong], (100, 100))


def test_files_that_exif_turns_have_their_upright_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    values = np.arange(40 * 20, dtype=np.uint32).reshape(20, 40).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "a.jpg", exif=exif)
    assert np.array_equal(box_mask(tmp_path / "a.jpg", [(0, 0, 10, 60)], (40, 80)), box((40, 20), 0, 30, 0, 5))
