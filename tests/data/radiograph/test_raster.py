"""TIFF, BMP and 16-bit PNG: the same grey values as the plain PNG, and refusals with a reason."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from monai_wscxr.data.radiograph.base import GATES
from monai_wscxr.data.radiograph.formats import sniff_format
from monai_wscxr.data.radiograph.read import read_radiograph
from tests.helpers.radiograph_files import GREY, png, rejected, smooth

EIGHT = smooth(8).astype(np.uint8)
SIXTEEN = smooth(16)


def saved(path, picture, kind, **options):
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(path, format=kind, **options)
    return path


@pytest.mark.parametrize("kind", ["TIFF", "BMP"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA", "CMYK"])
def test_8_bit(tmp_path, kind, mode):
    if kind == "BMP" and mode in ("LA", "CMYK"):
        pytest.skip("BMP has no such mode")
    path = saved(tmp_path / "a.dcm", Image.fromarray(EIGHT).convert(mode), kind)  # the name does not matter
    assert sniff_format(path) == kind.lower()
    result = read_radiograph(path, allow=GATES)
    np.testing.assert_array_equal(result.image, read_radiograph(png(tmp_path / "b.png", EIGHT), allow=GATES).image)
    assert (result.format, result.polarity, result.intensity) == (kind.lower(), "as_stored", "full_range_8")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
def test_tiff_16_bit(tmp_path, order, compression):
    options = {"compression": compression} if compression else {}
    result = read_radiograph(saved(tmp_path / "a", SIXTEEN.astype(f"{order}u2"), "TIFF", **options), allow=GATES)
    np.testing.assert_allclose(result.image, SIXTEEN / 65535, atol=1e-7)
    assert result.intensity == "full_range_16"


@pytest.mark.parametrize("kind", ["TIFF", "BMP"])
def test_1_bit(tmp_path, kind):
    image = Image.fromarray(GREY).convert("1", dither=Image.Dither.NONE)
    result = read_radiograph(saved(tmp_path / "a", image, kind))
    np.testing.assert_array_equal(result.image, [[0, 0, 0], [1, 1, 1]])


def patched_photometric(path):
    """Set PhotometricInterpretation of a little-endian TIFF to WhiteIsZero without touching its pixels."""
    data = bytearray(path.read_bytes())
    at = struct.unpack_from("<I", data, 4)[0]
    for entry in range(at + 2, at + 2 + 12 * struct.unpack_from("<H", data, at)[0], 12):
        if struct.unpack_from("<H", data, entry)[0] == 262:
            struct.pack_into("<I", data, entry + 8, 0)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("picture", [EIGHT, SIXTEEN], ids=["8 bit", "16 bit"])
def test_white_is_zero_is_inverted(tmp_path, picture):
    path = patched_photometric(saved(tmp_path / "a", picture, "TIFF"))
    expected = 1 - picture / np.iinfo(picture.dtype).max
    np.testing.assert_allclose(read_radiograph(path, allow=GATES).image, expected, atol=1e-6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff_orientation_is_that_of_png(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain = read_radiograph(png(tmp_path / "a.png", EIGHT, exif=exif.tobytes()), allow=GATES).image
    turned = read_radiograph(saved(tmp_path / "a.tif", EIGHT, "TIFF", tiffinfo={0x0112: orientation}), allow=GATES)
    np.testing.assert_array_equal(turned.image, plain)


def test_refused_tiffs(tmp_path):
    image = Image.fromarray(EIGHT)
    error = rejected(saved(tmp_path / "a", image, "TIFF", save_all=True, append_images=[image]))
    assert (error.code, str(error)) == ("not_a_projection", "this TIFF holds several pages. Export a single image.")
    for mode in ("F", "I"):
        error = rejected(saved(tmp_path / "a", image.convert(mode), "TIFF"))
        assert error.code == "not_a_projection"
        assert "1 sample(s) of 32 bits" in str(error)
    error = rejected(saved(tmp_path / "a", image, "TIFF", compression="jpeg"))
    assert error.code == "missing_decoder"
    assert "allowed are LZW, PackBits, deflate, none" in str(error)
    with open(tmp_path / "a", "wb") as file:
        file.write(b"II*\0\x08\0\0\0" + b"\0" * 30)
    assert rejected(tmp_path / "a").code == "unreadable"


@pytest.mark.parametrize("kind", ["TIFF", "BMP"])
def test_sizes_are_checked_before_decoding(tmp_path, kind, monkeypatch):
    path = saved(tmp_path / "a", EIGHT, kind)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    error = rejected(path, max_pixels=100)
    assert error.code == "too_large"
    assert "80 x 96 = 7680 pixels; allowed are 100" in str(error)


@pytest.mark.parametrize("kind", ["TIFF", "BMP"])
def test_constant_pictures(tmp_path, kind):
    assert rejected(saved(tmp_path / "a", np.full((9, 9), 3, np.uint8), kind)).code == "no_contrast"


def png_16(path, channels, colour):
    """Write a 16-bit PNG [H, W, channels] of a colour type that Pillow cannot write."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in channels)
    header = struct.pack(">IIBBBBB", channels.shape[1], channels.shape[0], 16, colour, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    chunks = (struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in parts)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return path


@pytest.mark.parametrize("picture", [smooth(12), SIXTEEN], ids=["12 bit", "16 bit"])
@pytest.mark.parametrize(("colour", "copies", "alpha"), [(4, 1, True), (2, 3, False), (6, 3, True)])
def test_16_bit_png_with_alpha_or_colour_keeps_its_depth(tmp_path, picture, colour, copies, alpha):
    channels = [picture] * copies + [np.full_like(picture, 700)] * alpha
    result = read_radiograph(png_16(tmp_path / "a.png", np.stack(channels, -1), colour), allow=GATES)
    plain = read_radiograph(png(tmp_path / "b.png", picture), allow=GATES)
    np.testing.assert_array_equal(result.image, plain.image)
    assert result.intensity == plain.intensity == "full_range_16"
    assert np.unique(result.image).size == np.unique(picture).size


def test_16_bit_colour_is_luminance(tmp_path):
    pixels = np.zeros((1, 3, 3), np.uint16)
    pixels[0, range(3), range(3)] = 65535
    result = read_radiograph(png_16(tmp_path / "a.png", pixels, 2))
    np.testing.assert_allclose(result.image, [[0.299, 0.587, 0.114]], atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 500), (500, 1), (100, 20_000), (20_000, 100)])
def test_long_pictures_are_read_or_refused_with_a_reason(tmp_path, shape):
    values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for kind in ("PNG", "TIFF", "BMP"):
        result = read_radiograph(saved(tmp_path / "a", values, kind), allow=GATES)
        np.testing.assert_allclose(result.image, values / 255, atol=1e-6)
    assert rejected(saved(tmp_path / "a", values[:1, :1], "PNG")).code == "no_contrast"
