"""Transforms from a file to the network input, and their settings."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from monai_wscxr.data.preprocessing import Preprocessing, RadiographLoader
from monai_wscxr.data.radiograph.base import RadiographError
from monai_wscxr.data.radiograph.read import READER_CHAIN, read_radiograph
from monai_wscxr.data.transforms import (
    LoadMaskd,
    LoadRadiographd,
    ResizeRadiographd,
    StandardiseIntensityd,
    radiograph_transforms,
)
from monai_wscxr.errors import InputError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def picture(tmp_path):
    """An 8-bit grey PNG of 50 x 40 pixels (H x W) and its values in [0, 1]."""
    values = np.random.default_rng(0).integers(0, 256, (50, 40), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "picture.png")
    return str(tmp_path / "picture.png"), values.astype(np.float32) / np.float32(255)


def test_loader_gives_one_channel_of_the_one_reader(picture):
    path, values = picture
    out = LoadRadiographd(["image"])({"image": path, "label": 1})
    assert out["image"].shape == (1, 50, 40)
    assert out["image"].dtype == torch.float32
    assert np.array_equal(out["image"][0].numpy(), values)
    assert np.array_equal(values, read_radiograph(path).image)
    assert out["label"] == 1


def test_loader_passes_the_reason_on(tmp_path):
    with pytest.raises(RadiographError) as caught:
        LoadRadiographd(["image"])({"image": str(tmp_path / "none.png")})
    assert caught.value.code == "not_found"
    with pytest.raises(KeyError):
        LoadRadiographd(["image"])({"picture": "x"})


@pytest.mark.parametrize("size", [32, 33, 50, 64, 200])
def test_resized_radiograph_keeps_range_type_and_mean(picture, size):
    values = torch.from_numpy(picture[1])[None]
    out = ResizeRadiographd(["image"], size)({"image": values})["image"]
    assert out.shape == (1, size, size)
    assert out.dtype == torch.float32
    assert 0 <= float(out.min()) < float(out.max()) <= 1
    assert float(out.mean()) == pytest.approx(float(values.mean()), abs=0.01)
    flat = ResizeRadiographd(["image"], size)({"image": torch.full((1, 37, 51), 0.3)})["image"]
    assert float((flat - 0.3).abs().max()) < 1e-6


def test_shrinking_is_antialiased():
    stripes = torch.zeros(1, 256, 256)
    stripes[:, :, 3::8] = stripes[:, :, 4::8] = 1  # just where two neighbours are looked up without it
    out = ResizeRadiographd(["image"], 32)({"image": stripes})["image"]
    assert float(out.max()) < 0.5
    assert float(out.mean()) == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize(("mean", "std"), [(MEAN, STD), ((0.5,) * 3, (0.5,) * 3)])
@pytest.mark.parametrize("size", [32, 64])
def test_chain_is_load_squash_repeat_normalise(picture, size, mean, std):
    path, values = picture
    chain = radiograph_transforms(Preprocessing(size, mean, std), keep_radiograph=True)
    item = chain({"image": path, "label": 0})
    grey = ResizeRadiographd(["image"], size)({"image": torch.from_numpy(values)[None]})["image"]
    assert item["image"].shape == (3, size, size)
    assert item["image"].dtype == torch.float32
    assert type(item["image"]) is torch.Tensor  # no metadata travels on
    for channel in range(3):
        expected = (grey[0].double() - mean[channel]) / std[channel]
        assert float((item["image"][channel] - expected).abs().max()) < 1e-5
    assert torch.equal(torch.as_tensor(item["radiograph"]), grey)
    assert item["label"] == 0
    assert "radiograph" not in radiograph_transforms(Preprocessing(size, mean, std))({"image": path})


@pytest.mark.parametrize("mean", [MEAN, (0.5,)])
@pytest.mark.parametrize("intensity", ["standardised", "as_read"])
@pytest.mark.parametrize("size", [32, 50, 64])
def test_loader_without_monai_takes_the_same_steps(picture, size, intensity, mean):
    preprocessing = Preprocessing(size, mean, mean, intensity=intensity)

    def double(item):
        return {**item, "image": 2 * item["image"]}

    options = {"keep_radiograph": True, "keep_source": True, "after_resize": [double]}
    item = {"image": picture[0], "label": 1}
    own, monai = RadiographLoader(preprocessing, **options)(item), radiograph_transforms(preprocessing, **options)(item)
    assert own.keys() == monai.keys() == {"image", "label", "radiograph", "source"}
    assert own["image"].shape == (len(mean), size, size)
    for key in ("image", "radiograph"):
        assert np.array_equal(own[key], monai[key])
    assert np.array_equal(own["source"].image, monai["source"].image)
    assert item == {"image": picture[0], "label": 1}


@pytest.mark.parametrize("make", [RadiographLoader, radiograph_transforms])
def test_unknown_gate_is_refused(make):
    with pytest.raises(InputError, match="allow: unknown gate 'everything'"):
        make(Preprocessing(32), allow=["everything"])


def test_chain_is_constant(picture):
    preprocessing = Preprocessing(64, MEAN, STD)
    first, second = radiograph_transforms(preprocessing), radiograph_transforms(preprocessing)
    state = torch.random.get_rng_state()
    images = [first({"image": picture[0]})["image"] for _ in range(3)] + [second({"image": picture[0]})["image"]]
    assert all(torch.equal(image, images[0]) for image in images[1:])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_chain_takes_the_size_of_the_preprocessing_whatever_the_aspect(tmp_path):
    for height, width in ((20, 80), (80, 20), (31, 33)):
        values = np.random.default_rng(1).integers(0, 256, (height, width), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / "long.png")
        assert radiograph_transforms(Preprocessing(48))({"image": str(tmp_path / "long.png")})["image"].shape == (
            3,
            48,
            48,
        )


def test_another_reading_chain_is_refused():
    for make in (RadiographLoader, radiograph_transforms):
        with pytest.raises(InputError, match=f"read by chain 0, but this installation reads with chain {READER_CHAIN}"):
            make(Preprocessing(reader_chain="0"))
    assert radiograph_transforms(Preprocessing(reader_chain=READER_CHAIN)).transforms


@pytest.mark.parametrize("size", [31, 4097, 0, -256, 256.0, "256", None])
def test_image_size_outside_its_range_is_refused(size):
    with pytest.raises(InputError, match="whole number from 32 to 4096"):
        Preprocessing(size)


@pytest.mark.parametrize("size", [32, 256, 4096])
def test_preprocessing_survives_json(size):
    before = Preprocessing(size, MEAN, STD, "7")
    after = Preprocessing.from_dict(json.loads(json.dumps(before.to_dict())))
    assert after == before
    assert isinstance(after.mean, tuple)


# --- masks ---------------------------------------------------------------------------------------------------------


def naive_nearest(mask, size):
    """Return the pixel under the centre of each target pixel."""
    h, w = mask.shape
    rows = [int((y + 0.5) * h / size) for y in range(size)]
    columns = [int((x + 0.5) * w / size) for x in range(size)]
    return np.array([[bool(mask[y, x]) for x in columns] for y in rows])


@pytest.mark.parametrize(("shape", "size"), [((8, 8), 4), ((8, 8), 32), ((50, 40), 32), ((7, 13), 33), ((64, 64), 64)])
@pytest.mark.parametrize("value", [1, 128, 255])
def test_mask_is_nearest_and_boolean(tmp_path, shape, size, value):
    mask = (np.random.default_rng(0).random(shape) < 0.4).astype(np.uint8) * np.uint8(value)
    Image.fromarray(mask).save(tmp_path / "mask.png")
    out = LoadMaskd(["mask"], size)({"mask": str(tmp_path / "mask.png"), "label": 1})
    assert out["mask"].shape == (1, size, size)
    assert out["mask"].dtype == torch.bool
    assert np.array_equal(out["mask"][0].numpy(), naive_nearest(mask, size))
    assert out["label"] == 1


@pytest.mark.parametrize("mode", ["1", "L", "I;16", "RGB", "RGBA"])
def test_mask_of_any_mode(tmp_path, mode):
    mask = np.zeros((8, 8), np.uint8)
    mask[2:5, 3:7] = 255
    picture = Image.fromarray(mask.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(mask).convert(mode)
    picture.save(tmp_path / "mask.png")
    out = LoadMaskd(["mask"], 8)({"mask": str(tmp_path / "mask.png")})
    assert np.array_equal(out["mask"][0].numpy(), mask > 0)


def test_missing_mask_is_allowed_where_asked():
    assert LoadMaskd(["mask"], 32, allow_missing_keys=True)({"image": 1}) == {"image": 1}
    with pytest.raises(KeyError):
        LoadMaskd(["mask"], 32)({"image": 1})


@pytest.mark.parametrize("shape", [(1, 64, 64), (1, 40, 72)])
def test_standardised_intensity_forgets_window_and_level(shape):
    standardise = StandardiseIntensityd("image")
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.2
    own = standardise({"image": image})["image"]
    h, w = shape[1] // 8, shape[2] // 8
    centre = image[..., h:-h, w:-w].double()
    expected = ((image - float(centre.mean())) / float(centre.std()) * 0.22 + 0.5).clamp(0, 1)
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-5)
    for scale, offset in ((0.3, 0.5), (2.0, -0.4)):
        torch.testing.assert_close(standardise({"image": scale * image + offset})["image"], own, rtol=0, atol=1e-4)
    framed = image.clone()
    framed[..., :5, :] = 0  # collimation and letters outside the centre change nothing inside
    framed[..., -4:, :9] = 1
    inside = standardise({"image": framed})["image"][..., h:-h, w:-w]
    torch.testing.assert_close(inside, own[..., h:-h, w:-w])
    blank = standardise({"image": torch.full(shape, 0.7)})["image"]
    torch.testing.assert_close(blank, torch.full(shape, 0.5), rtol=0, atol=1e-3)


def test_unknown_intensity_is_refused():
    with pytest.raises(InputError, match="intensity must be one of standardised, as_read"):
        Preprocessing(64, intensity="equalised")


def test_gates_stay_open_on_demand_and_the_source_can_be_kept(tmp_path):
    picture = np.tile(
        np.abs(np.linspace(-1, 1, 96)).astype(np.float32), (96, 1)
    )  # bright sides, dark middle: a negative
    Image.fromarray((255 * picture).astype(np.uint8)).save(tmp_path / "a.png")
    item = {"image": str(tmp_path / "a.png")}
    with pytest.raises(RuntimeError) as caught:
        radiograph_transforms(Preprocessing(64))(item)
    assert caught.value.__cause__.code == "suspicious_polarity"
    loaded = radiograph_transforms(Preprocessing(64), allow=["suspicious_polarity"], keep_source=True)(item)
    assert loaded["source"].image.shape == (96, 96)
    assert loaded["image"].shape == (3, 64, 64)
    with pytest.raises(InputError, match="allow: unknown gate 'lateral'"):
        radiograph_transforms(Preprocessing(64), allow=["lateral"])
