"""The loader: PNG, JPEG, NIfTI, errors common to all formats, and false headers that must not allocate memory."""

import gzip
import os
import pickle
import resource
import struct
import zlib

import nibabel as nib
import numpy as np
import pytest
from PIL import Image, ImageFile

from monai_wscxr.data.radiograph.base import GATES, REASON_CODES, RadiographError
from monai_wscxr.data.radiograph.read import file_digest, read_radiograph
from tests.helpers.radiograph_files import GREY, png, rejected

# ---- PNG and JPEG


def test_png_8_bit_divides_by_255(tmp_path):
    result = read_radiograph(png(tmp_path / "a.png", GREY))
    np.testing.assert_allclose(result.image, [[0, 0.2, 0.4], [0.6, 0.8, 1]], atol=1e-7)
    assert (result.format, result.polarity, result.intensity) == ("png", "as_stored", "full_range_8")
    assert result.image.dtype == np.float32
    assert result.image.flags.c_contiguous


def test_png_16_bit_ramp_is_not_saturated(tmp_path):
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    result = read_radiograph(png(tmp_path / "a.png", ramp))
    assert result.intensity == "full_range_16"
    assert np.unique(result.image).size == 65536
    np.testing.assert_allclose(result.image, ramp / 65535, atol=1e-7)


def test_png_1_bit(tmp_path):
    result = read_radiograph(png(tmp_path / "a.png", Image.fromarray(GREY).convert("1", dither=Image.Dither.NONE)))
    np.testing.assert_array_equal(result.image, [[0, 0, 0], [1, 1, 1]])
    assert result.intensity == "full_range_1"


def test_palette_gives_colours_not_indices(tmp_path):
    image = Image.new("P", (3, 1))
    image.putdata([0, 1, 2])
    image.putpalette([255, 255, 255, 0, 0, 0, 255, 0, 0])
    result = read_radiograph(png(tmp_path / "a.png", image))
    np.testing.assert_allclose(result.image, [[1, 0, 76 / 255]], atol=1e-6)


@pytest.mark.parametrize("mode", ["LA", "RGB", "RGBA"])
def test_alpha_is_ignored_and_grey_colour_stays(tmp_path, mode):
    image = Image.fromarray(GREY).convert(mode)
    if mode.endswith("A"):
        image.putalpha(Image.fromarray(np.full_like(GREY, 7)))
    np.testing.assert_allclose(read_radiograph(png(tmp_path / "a.png", image)).image, GREY / 255.0, atol=1e-7)


def test_rgb_is_luminance(tmp_path):
    pixels = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], dtype=np.uint8)
    np.testing.assert_allclose(
        read_radiograph(png(tmp_path / "a.png", pixels)).image, [[76 / 255, 150 / 255, 29 / 255]], atol=1e-6
    )


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_modes(tmp_path, mode):
    blocks = np.kron(np.array([[0, 255], [255, 0]], dtype=np.uint8), np.ones((16, 16), dtype=np.uint8))
    Image.fromarray(blocks).convert("RGB").convert(mode).save(tmp_path / "a.bin", format="JPEG", quality=100)
    result = read_radiograph(tmp_path / "a.bin")
    assert result.format == "jpeg"
    np.testing.assert_allclose(result.image, blocks / 255.0, atol=0.02)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation, depth):
    upright = GREY if depth == 8 else GREY.astype(np.uint16) * 257
    inverse = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: upright.T[::-1],
        7: upright[::-1, ::-1].T,
        8: upright.T[:, ::-1],
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    png(tmp_path / "a.png", np.ascontiguousarray(inverse[orientation]), exif=exif.tobytes())
    np.testing.assert_allclose(read_radiograph(tmp_path / "a.png").image, GREY / 255.0, atol=1e-6)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
@pytest.mark.parametrize("tolerant", [False, True])
def test_truncated_picture_is_an_error_never_partly_grey(tmp_path, monkeypatch, kind, share, tolerant):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole", format=kind)
    data = (tmp_path / "whole").read_bytes()
    (tmp_path / "part").write_bytes(data[: int(len(data) * share) - 20])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)
    assert rejected(tmp_path / "part").code == "unreadable"
    assert tolerant == ImageFile.LOAD_TRUNCATED_IMAGES


def test_animation_is_refused(tmp_path):
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    assert rejected(png(tmp_path / "a.png", frames[0], save_all=True, append_images=frames[1:])).code == (
        "not_a_projection"
    )


def test_size_limit_is_checked_before_decoding(tmp_path):
    path = png(tmp_path / "a.png", GREY)
    error = rejected(path, max_pixels=5)
    assert error.code == "too_large"
    assert "3 x 2 = 6 pixels; allowed are 5" in str(error)
    assert read_radiograph(path, max_pixels=6).image.shape == (2, 3)
    head = bytearray(path.read_bytes()[:33])
    head[16:24] = struct.pack(">II", 20000, 20000)
    head[29:33] = struct.pack(">I", zlib.crc32(head[12:29]))
    (tmp_path / "bomb.png").write_bytes(bytes(head) + path.read_bytes()[33:])
    assert rejected(tmp_path / "bomb.png", max_pixels=2**40).code == "too_large"  # Pillow's own limit


# ---- NIfTI


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
@pytest.mark.parametrize("shape", [(3, 2), (3, 2, 1), (3, 2, 1, 1)])
def test_nifti_round_trip_of_x_y_storage(tmp_path, ending, shape):
    nib.save(nib.Nifti1Image(GREY.T.reshape(shape), np.eye(4)), tmp_path / f"a.{ending}")
    (tmp_path / f"a.{ending}").rename(tmp_path / "no_extension")
    result = read_radiograph(tmp_path / "no_extension")
    np.testing.assert_allclose(result.image, GREY / 255.0, atol=1e-7)
    assert (result.format, result.polarity, result.intensity) == ("nifti", "as_stored", "full_range_8")


def test_nifti_of_itk_shows_the_same_picture(tmp_path):
    nib.save(nib.Nifti1Image(GREY.T[..., None], np.diag([-1, -1, 1, 1])), tmp_path / "a.nii")
    np.testing.assert_allclose(read_radiograph(tmp_path / "a.nii").image, GREY / 255.0, atol=1e-7)


@pytest.mark.parametrize("second", [False, True])
def test_nifti_projection_with_a_body_axis_stands_upright(tmp_path, second):
    # Array axes run to R and S: the head is the last index, the patient's right the last index.
    stored = np.ascontiguousarray(GREY[::-1, ::-1].T)[:, None, :]
    affine = np.eye(4)
    if second:  # the same picture with the body axis first and running to I
        stored, affine = np.ascontiguousarray(GREY[:, ::-1])[:, :, None], np.eye(4)
        affine[:3, :3] = [[0, 1, 0], [0, 0, 1], [-1, 0, 0]]
    nib.save(nib.Nifti1Image(stored, affine), tmp_path / "a.nii")
    np.testing.assert_allclose(read_radiograph(tmp_path / "a.nii").image, GREY / 255.0, atol=1e-7)


def test_nifti2_and_percentile_window(tmp_path):
    values = np.arange(1001, dtype=np.float32).reshape(7, 143)
    nib.save(nib.Nifti2Image(values.T, np.eye(4)), tmp_path / "a.nii")
    result = read_radiograph(tmp_path / "a.nii", allow=["unlike_a_chest"])
    assert result.intensity == "percentile"
    np.testing.assert_allclose(result.image, np.clip((values - 5) / 990, 0, 1), atol=1e-6)


def test_nifti_slope_and_intercept_are_honoured(tmp_path):
    image = nib.Nifti1Image(GREY.T, np.eye(4))
    image.header.set_slope_inter(-2.0, 10.0)
    nib.save(image, tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[112:120] = struct.pack("<ff", -2.0, 10.0)
    (tmp_path / "a.nii").write_bytes(raw)
    result = read_radiograph(tmp_path / "a.nii")
    assert result.intensity == "percentile"
    assert result.image[0, 0] == 1.0
    assert result.image[1, 2] == 0.0


@pytest.mark.parametrize(
    ("shape", "code"), [((30000, 30000, 30), "not_a_projection"), ((32000, 32000, 1), "too_large")]
)
def test_tiny_nifti_claiming_gigabytes_allocates_nothing(tmp_path, shape, code):
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float32)
    header.set_data_shape(shape)
    header["magic"], header["vox_offset"] = b"n+1", 352
    for name, opener in (("a.nii", open), ("a.nii.gz", gzip.open)):
        with opener(tmp_path / name, "wb") as file:
            file.write(header.binaryblock + b"\0" * 104)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert rejected(tmp_path / name).code == code
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
    assert os.path.getsize(tmp_path / "a.nii") == 452
    error = rejected(tmp_path / "a.nii", max_pixels=2**31)
    assert error.code == ("unreadable" if code == "too_large" else code)
    assert code == "not_a_projection" or "the header claims 4096000352 bytes, the file has 452" in str(error)


def test_nifti_volume_colour_truncation_and_nan(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 2), np.uint8), np.eye(4)), tmp_path / "volume.nii")
    assert rejected(tmp_path / "volume.nii").code == "not_a_projection"
    colour = np.zeros((4, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colour, np.eye(4)), tmp_path / "colour.nii")
    assert rejected(tmp_path / "colour.nii").code == "not_a_projection"
    values = np.random.default_rng(0).random((64, 64), dtype=np.float32)
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii.gz")
    (tmp_path / "cut.nii.gz").write_bytes((tmp_path / "a.nii.gz").read_bytes()[:4000])
    assert rejected(tmp_path / "cut.nii.gz").code == "unreadable"
    for bad in (np.nan, np.inf):
        values[3, 5] = bad
        nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "nan.nii")
        assert rejected(tmp_path / "nan.nii").code == "not_finite"


# ---- all formats


def test_files_that_are_no_files(tmp_path):
    assert rejected(tmp_path / "nothing.png").code == "not_found"
    assert rejected(tmp_path).code == "not_found"
    (tmp_path / "zero.dcm").touch()
    assert rejected(tmp_path / "zero.dcm").code == "empty"
    (tmp_path / "text.png").write_text("not a picture, whatever the name says")
    assert rejected(tmp_path / "text.png").code == "unknown_format"
    (tmp_path / "text.gz").write_bytes(gzip.compress(b"no NIfTI in here"))
    assert rejected(tmp_path / "text.gz").code == "unknown_format"


def test_constant_pictures(tmp_path):
    assert rejected(png(tmp_path / "a.png", np.full((4, 4), 128, np.uint8))).code == "no_contrast"
    nib.save(nib.Nifti1Image(np.full((4, 4), 2.5, np.float32), np.eye(4)), tmp_path / "a.nii")
    assert rejected(tmp_path / "a.nii").code == "no_contrast"


def test_errors_of_libraries_are_turned_and_interrupts_are_not(tmp_path, monkeypatch):
    path = png(tmp_path / "a.png", GREY)

    def fail(error):
        def load(self):
            raise error

        monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)

    original = SyntaxError("inside a decoder")
    fail(original)
    error = rejected(path)
    assert error.code == "unreadable"
    assert error.__cause__ is original
    fail(MemoryError())
    assert rejected(path).code == "too_large"
    fail(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        read_radiograph(path)


def test_error_is_a_value_error_with_known_codes_and_can_be_pickled():
    error = pickle.loads(pickle.dumps(RadiographError("empty", "nothing in it.")))
    assert isinstance(error, ValueError)
    assert (error.code, error.message, str(error)) == ("empty", "nothing in it.", "nothing in it.")
    with pytest.raises(ValueError, match="unknown reason code 'bad'"):
        RadiographError("bad", "")
    assert len(set(REASON_CODES)) == len(REASON_CODES) == 21
    assert set(GATES) < set(REASON_CODES)


def test_file_digest(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a") == "cf4ab791c62b8d2b2109c90275287816"
    (tmp_path / "b").write_bytes(b"abc" * 10**6)
    assert file_digest(tmp_path / "b") != file_digest(tmp_path / "a")
