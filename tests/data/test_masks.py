"""Lesion masks as other programs write them: read as they were meant, or refused with the reason."""

import numpy as np
import pytest
from PIL import Image

from monai_wscxr.data.datalist import DatalistError
from monai_wscxr.data.masks import check_masks, read_mask, resize_mask, upright_size
from monai_wscxr.data.split import training_split
from monai_wscxr.data.transforms import LoadMaskd

LESION = np.zeros((60, 80), bool)
LESION[10:30, 20:35] = LESION[40:50, 60:70] = True


def grey(inside=255, outside=0, dtype=np.uint8):
    return Image.fromarray(np.where(LESION, inside, outside).astype(dtype))


def rgba(colour, alpha):
    bands = [
        Image.fromarray(np.broadcast_to(np.asarray(band, np.uint8), LESION.shape).copy()) for band in (*colour, alpha)
    ]
    return Image.merge("RGBA", bands)


def turned(picture, orientation):
    """Store a picture turned, with the EXIF orientation that turns it back."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}[orientation]
    return picture.transpose(stored), {"exif": exif}


def palette(inside, outside):
    picture = Image.fromarray(LESION.astype(np.uint8)).convert("P")
    picture.putpalette([*outside, *inside])
    return picture


M = LESION * 255
READ = {
    "grey": lambda: (grey(), {}),
    "ones": lambda: (grey(1), {}),
    "labels": lambda: (Image.fromarray(np.where(LESION, np.arange(80)[None] // 40 + 1, 0).astype(np.uint8)), {}),
    "bits": lambda: (grey().convert("1"), {}),
    "16 bit": lambda: (grey(700, 0, np.uint16), {}),
    "background 1": lambda: (grey(2, 1), {}),
    "background 7": lambda: (grey(255, 7), {}),
    "background 1 of 16 bit": lambda: (grey(65535, 256, np.uint16), {}),
    "alpha of black": lambda: (rgba((0, 0, 0), M), {}),
    "alpha of white": lambda: (rgba((255, 255, 255), M), {}),
    "alpha of red, half": lambda: (rgba((255, 0, 0), M // 2), {}),
    "alpha and colour": lambda: (rgba((M, M, M), M), {}),
    "white on transparent black": lambda: (rgba((M, 0, 0), M), {}),
    "opaque": lambda: (rgba((M, M, M), 255), {}),
    "invisible": lambda: (rgba((M, M, M), 0), {}),
    "grey and alpha": lambda: (Image.merge("LA", [grey(0), grey()]), {}),
    "dark blue": lambda: (Image.merge("RGB", [grey(0), grey(0), grey(3)]), {}),
    "palette": lambda: (palette((128, 0, 0), (0, 0, 0)), {}),
    "transparent colour": lambda: (palette((5, 5, 5), (9, 9, 9)), {"transparency": 0}),
    "turned 3": lambda: turned(grey(), 3),
    "turned 6": lambda: turned(grey(), 6),
    "turned 8": lambda: turned(grey(), 8),
}


@pytest.mark.parametrize("kind", READ)
def test_masks_that_are_read_right(tmp_path, kind):
    picture, options = READ[kind]()
    picture.save(tmp_path / "m.png", **options)
    assert np.array_equal(read_mask(tmp_path / "m.png"), LESION)


@pytest.mark.parametrize("suffix", ["bmp", "tif", "jpg", "gif"])
def test_other_formats(tmp_path, suffix):
    grey().save(tmp_path / f"m.{suffix}")
    found = read_mask(tmp_path / f"m.{suffix}")
    if suffix == "jpg":
        assert (np.asarray(Image.open(tmp_path / "m.jpg")) > 0).sum() > LESION.sum() + 50  # what compression leaves
        Image.open(tmp_path / "m.jpg").save(tmp_path / "again.png")
        assert np.array_equal(read_mask(tmp_path / "again.png"), LESION)
    assert np.array_equal(found, LESION)


def test_smooth_edges_count_as_lesion(tmp_path):
    small = grey().resize((800, 600), Image.Resampling.BICUBIC).resize((200, 150), Image.Resampling.BOX)
    small.save(tmp_path / "m.png")
    assert np.array_equal(read_mask(tmp_path / "m.png"), np.asarray(small) > 0)


REFUSED = {
    "inverted": (lambda: grey(0, 255), "seems to be inverted .it marks 92% of the picture and 100% of its outermost"),
    "inverted ones": (lambda: grey(1, 2), "seems to be inverted"),
    "inverted alpha": (lambda: rgba((0, 0, 0), 255 - M), "seems to be inverted"),
    "inverted palette": (lambda: palette((0, 0, 0), (255, 255, 255)), "seems to be inverted"),
    "nothing": (lambda: Image.new("L", (60, 40), 0), "marks nothing"),
    "everything": (lambda: Image.new("L", (60, 40), 255), "marks everything"),
    "nothing but alpha": (lambda: rgba((0, 0, 0), 255), "marks nothing"),
    "nearly everything": (
        lambda: Image.fromarray(np.pad(np.full((98, 98), 255, np.uint8), 1)),
        r"marks nearly everything .it marks 96% of the picture; allowed are more than nothing and at most 90%",
    ),
    "no background": (
        lambda: Image.fromarray(np.where(LESION, 9, np.arange(80)[None] % 3 + 1).astype(np.uint8)),
        "has no background",
    ),
    "colours and alpha": (lambda: rgba((np.arange(80)[None] * 3, 0, 0), M), "is ambiguous"),
    "ink": (lambda: grey().convert("CMYK"), "has the colour mode CMYK"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_masks_that_are_refused(tmp_path, kind):
    make, words = REFUSED[kind]
    path = tmp_path / ("m.tif" if kind == "ink" else "m.png")
    make().save(path)
    with pytest.raises(DatalistError, match=rf"m\.\w+: this lesion mask {words}"):
        read_mask(path)
    with pytest.raises(DatalistError, match="Save it as a grey PNG"):
        LoadMaskd("mask", 32)({"mask": str(path)})


def test_pictures_and_damaged_files_are_no_masks(tmp_path):
    Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (64, 1))).save(tmp_path / "a.jpg")
    with pytest.raises(DatalistError, match="is no mask"):
        read_mask(tmp_path / "a.jpg")
    grey().save(tmp_path / "m.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "m.png").read_bytes()[:60])
    (tmp_path / "text.png").write_text("text")
    for name in ("torn.png", "text.png"):
        with pytest.raises(DatalistError, match="cannot be read"):
            read_mask(tmp_path / name)
    grey().save(tmp_path / "two.gif", save_all=True, append_images=[grey(9)])
    with pytest.raises(DatalistError, match="several frames"):
        read_mask(tmp_path / "two.gif")
    Image.fromarray(np.where(LESION, np.nan, 0).astype(np.float32)).save(tmp_path / "nan.tif")
    Image.fromarray(np.where(LESION, 1, -1).astype(np.float32)).save(tmp_path / "minus.tif")
    for name, words in (("nan.tif", "no numbers"), ("minus.tif", "negative values")):
        with pytest.raises(DatalistError, match=words):
            read_mask(tmp_path / name)


def test_small_lesions_do_not_vanish():
    mask = np.zeros((1000, 1000), bool)
    mask[501, 333] = True
    expected = np.zeros((32, 32), bool)
    expected[501 * 32 // 1000, 333 * 32 // 1000] = True
    assert np.array_equal(resize_mask(mask, 32), expected)


def dataset(root, mask):
    for number, name in enumerate(
        ["train/normal/1", "train/normal/2", "train/abnormal/a", "test/normal/n", "test/abnormal/t"]
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(number).integers(0, 256, (60, 80)).astype(np.uint8)
        Image.fromarray(values).save(root / f"{name}.png")
    (root / "masks/test/abnormal").mkdir(parents=True)
    mask.save(root / "masks/test/abnormal/t.png")
    return root


def test_a_training_checks_the_masks_first(tmp_path, caplog):
    training_split(dataset(tmp_path / "good", grey()), 1)
    with pytest.raises(
        DatalistError, match=r"1 lesion mask\(s\) cannot be used: .*t\.png: this lesion mask seems to be inverted"
    ):
        training_split(dataset(tmp_path / "bad", grey(0, 255)), 1)
    assert "stretched" not in caplog.text
    training_split(dataset(tmp_path / "turned", grey().transpose(Image.Transpose.ROTATE_90)), 1)
    assert "1 lesion mask(s) have another ratio of their sides" in caplog.text
    assert "60 x 80 for 80 x 60" in caplog.text


def test_sizes_of_pictures(tmp_path):
    picture, options = turned(grey(), 6)
    picture.save(tmp_path / "a.jpg", **options)
    assert upright_size(tmp_path / "a.jpg") == (80, 60)
    (tmp_path / "b.png").write_text("text")
    assert upright_size(tmp_path / "b.png") is None
    check_masks([{"image": "a.png"}])
