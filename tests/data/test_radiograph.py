"""The loader: every format and mode with pinned values, every reason code, and nothing allocated for a false header."""

import gzip
import io
import os
import pickle
import resource
import struct
import sys
import types
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image, ImageFile
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    JPEG2000,
    MPEG2MPML,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from monai_wscxr.data.phantom import make_phantom
from monai_wscxr.data.radiograph import (
    GATES,
    REASON_CODES,
    RadiographError,
    file_digest,
    read_radiograph,
    sniff_format,
)
from monai_wscxr.data.radiograph_dicom import PROJECTION_MODALITIES, _as_stored, _used_bits
from monai_wscxr.data.radiograph_gates import POLARITY_LIMIT, chest_likeness

GREY = np.array([[0, 51, 102], [153, 204, 255]], dtype=np.uint8)
SECRET = "Doe^Jane"
PINNED = {  # values at a few places, computed once by hand-checked code and kept
    "RG1_J2KR.dcm": [0.370346, 0.645488, 0.891163, 0.903063],
    "mlut_18.dcm": [0.49987, 0.49987, 0.47985, 0.49987, 1.0],
    "vlut_04.dcm": [0.498039, 0.498039, 0.478431, 0.498039, 1.0],
}
WINDOW = {"WindowCenter": 128, "WindowWidth": 256}  # 8 bit to [0, 1]


def rejected(path, **options):
    """The error that reading ``path`` ends with."""
    with pytest.raises(RadiographError) as caught:
        read_radiograph(path, **options)
    return caught.value


def png(path, array_or_image, **options):
    image = array_or_image if isinstance(array_or_image, Image.Image) else Image.fromarray(array_or_image)
    image.save(path, format="PNG", **options)
    return path


def dicom(path, pixels, syntax=ExplicitVRLittleEndian, **elements):
    """Writes a one-frame DICOM file; ``elements`` override or add header elements, None removes them."""
    pixels = np.asarray(pixels)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.PatientName, ds.PatientID = SECRET, SECRET
    ds.Rows, ds.Columns = pixels.shape[-2:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 8 * pixels.dtype.itemsize
    ds.HighBit, ds.PixelRepresentation = ds.BitsAllocated - 1, int(pixels.dtype.kind == "i")
    ds.PixelData = pixels.tobytes()
    if ds.BitsAllocated == 8:
        ds["PixelData"].VR = "OB"
    for name, value in elements.items():
        if value is None:
            delattr(ds, name)
        else:
            setattr(ds, name, value)
    ds.save_as(path)
    return path


def table(entries, first=0, bits=16):
    """A sequence with one lookup table."""
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [len(entries), first, bits], list(entries)
    item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
    return Sequence([item])


def _codes(value, scheme, meaning):
    """A code sequence of one item."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return Sequence([item])


def sample(name):
    path = get_testdata_file(name, download=False)
    return path or pytest.skip(f"{name} is not installed (pydicom-data)")


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
    result = read_radiograph(tmp_path / "a.nii")
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


# ---- DICOM


def test_rg1_is_inverted_once_and_air_is_dark():
    result = read_radiograph(sample("RG1_UNCR.dcm"))
    assert (result.format, result.polarity, result.intensity) == ("dicom", "inverted", "voi_window")
    assert result.image.shape == (1955, 1841)
    stored = pydicom.dcmread(sample("RG1_UNCR.dcm")).pixel_array.astype(np.float64)
    expected = 1 - np.clip((stored - 14999.5) / 29999 + 0.5, 0, 1)  # window 15000 / 30000, PS3.3 C.11.2.1.2
    np.testing.assert_allclose(result.image, expected, atol=1e-6)
    assert float(result.image[0, 0]) == pytest.approx(0.370346, abs=1e-5)
    lung, spine = result.image[900:920, 440:460].mean(), result.image[970:990, 910:930].mean()
    assert lung < 0.7 < 0.85 < spine


@pytest.mark.parametrize("name", ["RG1", "RG3"])
def test_jpeg2000_equals_uncompressed(name):
    pytest.importorskip("openjpeg", reason="pylibjpeg-openjpeg is not installed")
    for loss in "RI":  # reversible, and irreversible against its own decoded pixels
        packed, plain = (
            read_radiograph(sample(f"{name}_{kind}{loss}.dcm"), allow=["other_body_part"]) for kind in ("J2K", "UNC")
        )
        np.testing.assert_array_equal(packed.image, plain.image)
        assert (packed.polarity, packed.intensity) == (plain.polarity, plain.intensity) == ("inverted", "voi_window")


@pytest.mark.parametrize(
    ("meaning", "shape", "polarity"),
    [
        ("MONOCHROME1", None, "inverted"),
        ("MONOCHROME1", "INVERSE", "inverted"),
        ("MONOCHROME1", "IDENTITY", "inverted"),
        ("MONOCHROME2", None, "as_stored"),
        ("MONOCHROME2", "IDENTITY", "as_stored"),
        ("MONOCHROME2", "INVERSE", "inverted"),
    ],
)
def test_polarity_rule(tmp_path, meaning, shape, polarity):
    extra = {} if shape is None else {"PresentationLUTShape": shape}
    path = dicom(tmp_path / "a", GREY, PhotometricInterpretation=meaning, **WINDOW, **extra)
    result = read_radiograph(path)
    assert result.polarity == polarity
    expected = GREY / 255.0 if polarity == "as_stored" else 1 - GREY / 255.0
    np.testing.assert_allclose(result.image, expected, atol=1e-6)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_window_agrees_with_pydicom(tmp_path, function):
    pixels = np.arange(-2048, 2048, dtype=np.int16).reshape(64, 64)
    window = {"WindowCenter": [300, 0], "WindowWidth": [1000, 10], "VOILUTFunction": function}
    rescale = {"RescaleSlope": "0.5", "RescaleIntercept": "7"}
    path = dicom(tmp_path / "a", pixels, BitsStored=12, HighBit=11, **window, **rescale)
    ds = pydicom.dcmread(path)
    try:
        from pydicom.pixels import apply_modality_lut, apply_windowing
    except ImportError:
        from pydicom.pixel_data_handlers.util import apply_modality_lut, apply_windowing
    theirs = apply_windowing(apply_modality_lut(ds.pixel_array, ds), ds, index=0)
    low, high = -2048 * 0.5 + 7, 2047 * 0.5 + 7  # the output range that pydicom maps a window to
    result = read_radiograph(path)
    assert result.intensity == "voi_window"
    np.testing.assert_allclose(result.image, (theirs - low) / (high - low), atol=1e-6)
    assert result.image.max() > 0.9


def test_unusable_window_falls_back_to_percentiles(tmp_path):
    path = dicom(tmp_path / "a", GREY, WindowCenter=128, WindowWidth=0)
    assert read_radiograph(path).intensity == "percentile"


def test_percentile_window_leaves_padding_out_and_dark(tmp_path):
    pixels = np.arange(1001, dtype=np.int16).reshape(7, 143)
    expected = np.clip((pixels - 5) / 990, 0, 1)
    padded = np.concatenate([pixels, np.full((5, 143), -2000, np.int16)])
    for meaning in ("MONOCHROME1", "MONOCHROME2"):
        path = dicom(tmp_path / "a", padded, PixelPaddingValue=-2000, PhotometricInterpretation=meaning)
        result = read_radiograph(path)
        assert result.intensity == "percentile"
        np.testing.assert_allclose(result.image[:7], expected if meaning == "MONOCHROME2" else 1 - expected, atol=1e-6)
        assert (result.image[7:] == 0).all()


def test_padding_range(tmp_path):
    pixels = np.array([[100, 200, 300, 60000, 60001, 60002, 60003]], dtype=np.uint16)
    path = dicom(tmp_path / "a", pixels, PixelPaddingValue=60002, PixelPaddingRangeLimit=60000)
    np.testing.assert_array_equal(read_radiograph(path).image[0, 3:6], [0, 0, 0])
    assert read_radiograph(path).image[0, 6] == 1.0
    path = dicom(tmp_path / "b", pixels[:, :4], PixelPaddingValue=60000)
    np.testing.assert_allclose(read_radiograph(path).image, [[0, 0.5, 1, 0]], atol=0.01)


def test_lookup_tables(tmp_path):
    pixels = np.array([[0, 1, 2, 3, 4]], dtype=np.uint8)
    path = dicom(tmp_path / "voi", pixels, VOILUTSequence=table([0, 1000, 4095], first=1))
    result = read_radiograph(path)  # 12-bit entries under a descriptor that says 16
    assert result.intensity == "voi_lut"
    np.testing.assert_allclose(result.image, [[0, 0, 1000 / 4095, 1, 1]], atol=1e-6)
    modality = table([900, 800, 700, 600, 500])
    path = dicom(tmp_path / "modality", pixels, ModalityLUTSequence=modality, WindowCenter=700.5, WindowWidth=401)
    np.testing.assert_allclose(read_radiograph(path).image, [[1, 0.75, 0.5, 0.25, 0]], atol=1e-6)


@pytest.mark.parametrize(("name", "lut"), [("mlut_18.dcm", "apply_modality_lut"), ("vlut_04.dcm", "apply_voi_lut")])
def test_lookup_tables_agree_with_pydicom(name, lut):
    pixels = pytest.importorskip("pydicom.pixels", reason="pydicom 3")
    ds = pydicom.dcmread(sample(name))
    theirs = getattr(pixels, lut)(ds.pixel_array, ds).astype(np.float64)
    if lut == "apply_modality_lut":
        low, high = np.percentile(theirs, [0.5, 99.5])
        theirs = np.clip((theirs - low) / (high - low), 0, 1)
    else:
        theirs = theirs / 65535
    np.testing.assert_allclose(read_radiograph(sample(name)).image, theirs, atol=1e-6)


def test_bits_above_high_bit_are_dropped(tmp_path):
    pixels = np.arange(16, dtype=np.uint16).reshape(4, 4)
    window = {"WindowCenter": 8, "WindowWidth": 16, "BitsStored": 12, "HighBit": 11}
    plain = read_radiograph(dicom(tmp_path / "a", pixels, **window)).image
    overlaid = read_radiograph(dicom(tmp_path / "b", pixels | 0x8000, **window)).image
    np.testing.assert_array_equal(plain, overlaid)
    header = pydicom.dcmread(tmp_path / "b")
    np.testing.assert_array_equal(_used_bits(header, pixels | 0x8000), pixels)
    np.testing.assert_array_equal(_used_bits(header, np.array([0x0FFF, -5], np.int16)), [-1, -5])


def test_padding_value_written_with_the_other_sign():
    assert _as_stored(-1, np.dtype(np.uint16)) == 65535
    assert _as_stored(65535, np.dtype(np.int16)) == -1
    assert _as_stored(-2000, np.dtype(np.int16)) == -2000


@pytest.mark.parametrize("implicit", [True, False])
def test_dicom_without_preamble(tmp_path, implicit):
    ds = pydicom.dcmread(dicom(tmp_path / "a.dcm", GREY, **WINDOW))
    bare = Dataset()
    bare.update(ds)
    if pydicom.__version__.startswith("2"):
        bare.is_implicit_VR, bare.is_little_endian = implicit, True
        bare.save_as(tmp_path / "bare.png")
    else:
        bare.save_as(tmp_path / "bare.png", implicit_vr=implicit, little_endian=True)
    assert sniff_format(tmp_path / "bare.png") == "dicom"
    np.testing.assert_allclose(read_radiograph(tmp_path / "bare.png").image, GREY / 255.0, atol=1e-6)


def test_rle_header_of_65535_squared_allocates_nothing(tmp_path):
    path = dicom(
        tmp_path / "a", GREY, RLELossless, Rows=65535, Columns=65535, PixelData=b"\xfe\xff\x00\xe0" + b"\0" * 4
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    error = rejected(path)
    assert error.code == "too_large"
    assert "65535 x 65535 = 4294836225 pixels" in str(error)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_deflated_data_set(tmp_path):
    pixels = np.tile(GREY, (300, 1000))
    path = dicom(tmp_path / "a", pixels, DeflatedExplicitVRLittleEndian, **WINDOW)
    np.testing.assert_allclose(read_radiograph(path).image, pixels / 255.0, atol=1e-6)
    # 32 MiB of zeros deflate to almost nothing.
    dicom(tmp_path / "bomb", pixels, DeflatedExplicitVRLittleEndian, ICCProfile=b"\0" * 2**25)
    assert os.path.getsize(tmp_path / "bomb") < 100_000
    assert rejected(tmp_path / "bomb", max_pixels=2**21).code == "too_large"
    (tmp_path / "bare").write_bytes((tmp_path / "bomb").read_bytes()[132:])
    assert sniff_format(tmp_path / "bare") == "dicom"
    assert rejected(tmp_path / "bare", max_pixels=2**21).code == "too_large"


@pytest.mark.parametrize(
    ("elements", "code"),
    [
        ({"NumberOfFrames": 2}, "not_a_projection"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "not_a_projection"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "not_a_projection"),
        ({"Rows": None, "Columns": None, "PixelData": None}, "not_a_projection"),
        ({"Rows": None}, "unreadable"),
        ({"BitsAllocated": None}, "unreadable"),
        ({"PhotometricInterpretation": None}, "unreadable"),
        ({"PixelData": None}, "unreadable"),
        ({"PixelData": b"\0\0"}, "unreadable"),
        ({"Rows": 0}, "empty"),
        ({"PixelData": bytes([9] * 6)}, "no_contrast"),
        ({"PixelData": bytes([9, 9, 9, 9, 3, 3]), "PixelPaddingValue": 3}, "no_contrast"),
        ({"PixelData": bytes([9, 9, 9, 9, 3, 3]), "PixelPaddingValue": 3, **WINDOW}, "no_contrast"),
        ({"WindowCenter": 5000, "WindowWidth": 10}, "no_contrast"),
        (
            {
                "WindowCenter": 230,
                "WindowWidth": 10,
                "PixelPaddingValue": 255,
                "PhotometricInterpretation": "MONOCHROME1",
            },
            "no_contrast",
        ),
        ({"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 255}, "no_contrast"),
    ],
)
def test_dicom_refusals_name_no_patient(tmp_path, elements, code):
    error = rejected(dicom(tmp_path / "a.dcm", GREY, **elements))
    assert error.code == code
    assert SECRET not in str(error)
    assert str(tmp_path / "a.dcm") in str(error)


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")  # pydicom on "dx"
@pytest.mark.parametrize("modality", [*PROJECTION_MODALITIES, "dx", "", None])
def test_modalities_that_are_read(tmp_path, modality):
    path = dicom(tmp_path / "a", GREY, **WINDOW, **({} if modality is None else {"Modality": modality}))
    np.testing.assert_allclose(read_radiograph(path).image, GREY / 255.0, atol=1e-6)


@pytest.mark.parametrize("modality", ["CT", "MR", "PT", "NM", "US", "MG", "IO", "PX", "XC", "SC"])
def test_modalities_that_are_refused(tmp_path, modality):
    error = rejected(dicom(tmp_path / "a", GREY, Modality=modality))
    assert error.code == "not_a_projection"
    assert f"the modality of this DICOM image is {modality!r}; allowed are CR, DX" in str(error)
    assert SECRET not in str(error)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "elements", [{"Modality": SECRET}, {"PhotometricInterpretation": SECRET}, {"Modality": ["CR", SECRET]}]
)
def test_only_defined_terms_are_quoted(tmp_path, elements):
    error = rejected(dicom(tmp_path / "a", GREY, **elements))
    assert error.code == "not_a_projection"
    assert "something else" in str(error)
    assert "DOE" not in str(error).upper()


@pytest.mark.parametrize(("name", "modality"), [("CT_small.dcm", "CT"), ("MR_small.dcm", "MR")])
def test_slices_of_pydicom_are_refused(name, modality):
    error = rejected(sample(name))
    assert error.code == "not_a_projection"
    assert f"the modality of this DICOM image is {modality!r}" in str(error)


def test_missing_header_entries_are_named(tmp_path):
    error = rejected(dicom(tmp_path / "a", GREY, Rows=None, BitsAllocated=None))
    assert "the DICOM header lacks Rows, BitsAllocated" in str(error)


def test_float_pixels_with_nan(tmp_path):
    values = np.array([[0, np.nan, 2]], np.float32)
    path = dicom(tmp_path / "a", values, PixelData=None, PixelRepresentation=None, FloatPixelData=values.tobytes())
    assert rejected(path).code == "not_finite"


def test_missing_decoder_names_the_package(tmp_path, monkeypatch):
    path = dicom(tmp_path / "a", GREY, JPEGLSLossless, PixelData=b"\xfe\xff\x00\xe0" + b"\0" * 4)
    monkeypatch.setattr("monai_wscxr.data.radiograph_dicom.available_plugins", lambda syntax: ())
    error = rejected(path)
    assert error.code == "missing_decoder"
    assert "pip install pyjpegls" in str(error)


@pytest.mark.parametrize(
    ("syntax", "depth", "package"),
    [
        (JPEGLosslessSV1, 8, "monai-wscxr[dicom-jpeg]"),
        (JPEGExtended12Bit, 16, "monai-wscxr[dicom-jpeg12]"),
        (JPEGExtended12Bit, 8, "pillow"),
        (JPEG2000, 8, "pylibjpeg-openjpeg"),
        (MPEG2MPML, 8, "Export it as Explicit VR Little Endian"),
    ],
)
def test_missing_decoders_name_what_to_install(tmp_path, monkeypatch, syntax, depth, package):
    pixels = GREY.astype(np.uint8 if depth == 8 else np.uint16)
    path = dicom(tmp_path / "a", pixels, syntax, PixelData=b"\xfe\xff\x00\xe0" + b"\0" * 4)
    monkeypatch.setattr("monai_wscxr.data.radiograph_dicom.available_plugins", lambda syntax: ())
    error = rejected(path)
    assert error.code == "missing_decoder"
    assert package in str(error)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [
        "JPEGLSNearLossless_08.dcm",
        "JPEGLSNearLossless_16.dcm",
        "SC_jpeg_no_color_transform.dcm",
        "MR_small_RLE.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "JPEG-LL.dcm",
        "image_dfl.dcm",
        "MR_small.dcm",
        "MR_small_implicit.dcm",
    ],
)
def test_syntaxes_decode_as_pydicom_decodes_them(tmp_path, name):
    """Files of other modalities are relabelled: here only the pixels count."""
    ds = pydicom.dcmread(sample(name))
    if "NumberOfFrames" in ds or ds.SamplesPerPixel != 1:
        pytest.skip("not one grey frame")
    ds.Modality, ds.BodyPartExamined = "DX", "CHEST"
    for entry in ("WindowCenter", "WindowWidth", "PixelPaddingValue"):
        if entry in ds:
            delattr(ds, entry)
    try:
        values = ds.pixel_array.astype(np.float64)
    except RuntimeError:
        pytest.skip("no decoder installed")
    if "RescaleSlope" in ds:
        values = values * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
    ds.save_as(tmp_path / "a.dcm")
    result = read_radiograph(tmp_path / "a.dcm", allow=["suspicious_polarity"])
    low, high = np.percentile(values, [0.5, 99.5])
    np.testing.assert_allclose(result.image, np.clip((values - low) / (high - low), 0, 1), atol=1e-6)


@pytest.mark.parametrize(
    ("syntax", "rows", "code"),
    [(JPEG2000Lossless, 8000, "unreadable"), (JPEGLSLossless, 8000, "unreadable"), (JPEGBaseline8Bit, 7, "unreadable")],
)
def test_header_and_codestream_must_agree(tmp_path, syntax, rows, code):
    pixels = np.tile(GREY, (40, 30))
    ds = pydicom.dcmread(dicom(tmp_path / "plain", pixels, **WINDOW))
    if syntax == JPEGBaseline8Bit:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="JPEG")
        ds.PixelData = encapsulate([buffer.getvalue()])
        ds["PixelData"].is_undefined_length = True
        ds.file_meta.TransferSyntaxUID = syntax
    else:
        ds.compress(syntax)
    ds.save_as(tmp_path / "right")
    tolerance = 0.1 if syntax == JPEGBaseline8Bit else 1e-6
    np.testing.assert_allclose(read_radiograph(tmp_path / "right").image, pixels / 255.0, atol=tolerance)
    ds.Rows = rows
    ds.save_as(tmp_path / "wrong")
    error = rejected(tmp_path / "wrong")
    assert error.code == code
    assert f"the header says 90 x {rows} pixels of 1 sample, the compressed data 90 x 80 of 1" in str(error)


def test_entry_that_comes_twice_cannot_pass_the_limit(tmp_path):
    """A second Rows behind the pixels wins in pydicom's full reading, after the header has passed."""
    path = dicom(tmp_path / "a", GREY, RLELossless, PixelData=b"\xfe\xff\x00\xe0" + b"\0" * 4)
    again = struct.pack("<HH2sHH", 0x28, 0x10, b"US", 2, 65535) + struct.pack("<HH2sHH", 0x28, 0x11, b"US", 2, 65535)
    path.write_bytes(path.read_bytes() + again)
    assert rejected(path).code in ("too_large", "unreadable")


def test_element_of_four_gigabytes_is_not_believed(tmp_path):
    """An element behind the pixels claims 4 GiB; pydicom would ask the file for them, and the memory is not there."""
    path = dicom(tmp_path / "a", GREY, **WINDOW)
    path.write_bytes(path.read_bytes() + b"\xfc\xff\xfc\xffOB\0\0\xf0\xff\xff\xff" + b"end")
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (2**31 + 2**30, hard))
    try:
        result = read_radiograph(path)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    np.testing.assert_allclose(result.image, GREY / 255.0, atol=1e-6)


def test_padding_of_693_is_pinned(tmp_path):
    ds = pydicom.dcmread(sample("693_UNCI.dcm"))
    stored, ds.Modality = ds.pixel_array, "DX"  # it is a CT slice; its padding is what matters here
    ds.save_as(tmp_path / "a.dcm")
    result = read_radiograph(tmp_path / "a.dcm", allow=GATES)
    assert int((stored == -2000).sum()) == int(result.padding.sum()) == 494
    np.testing.assert_array_equal(result.padding, stored == -2000)
    assert (result.image[result.padding] == 0).all()
    center, width = 40.0, float(ds.WindowWidth if np.isscalar(ds.WindowWidth) else ds.WindowWidth[0])
    x = stored.astype(float) * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
    expected = np.clip((x - (center - 0.5)) / (width - 1) + 0.5, 0, 1)
    np.testing.assert_allclose(result.image[~result.padding], expected[~result.padding], atol=1e-6)


# ---- gates


@pytest.mark.parametrize(
    ("elements", "code"),
    [
        ({"ViewPosition": "LL"}, "lateral_view"),
        ({"ViewPosition": "LATERAL"}, "lateral_view"),
        ({"ViewPosition": "RAO"}, "lateral_view"),
        ({"ViewCodeSequence": ("R-10236", "SRT", "left lateral")}, "lateral_view"),
        ({"BodyPartExamined": "HAND"}, "other_body_part"),
        ({"AnatomicRegionSequence": ("T-D8700", "SRT", "Hand")}, "other_body_part"),
        ({"BurnedInAnnotation": "YES"}, "burned_in_annotation"),
    ],
)
def test_header_gates_close_and_open(tmp_path, elements, code):
    elements = {name: _codes(*value) if isinstance(value, tuple) else value for name, value in elements.items()}
    path = dicom(tmp_path / "a", GREY, **WINDOW, **elements)
    assert rejected(path).code == code
    assert rejected(path, allow=set(GATES) - {code}).code == code
    np.testing.assert_allclose(read_radiograph(path, allow=[code]).image, GREY / 255.0, atol=1e-6)


@pytest.mark.parametrize(
    "elements",
    [
        {"ViewPosition": "PA", "BodyPartExamined": "CHEST", "BurnedInAnnotation": "NO"},
        {"ViewPosition": "AP", "BodyPartExamined": "PORT CHEST"},
        {"ViewPosition": "", "BodyPartExamined": "", "BurnedInAnnotation": ""},
        {"BodyPartExamined": "THORAX", "AnatomicRegionSequence": ("T-D3000", "SRT", "Chest")},
        {"BodyPartExamined": "UNKNOWN", "ViewCodeSequence": ("R-10214", "SRT", "postero-anterior")},
    ],
)
def test_header_gates_let_chests_pass(tmp_path, elements):
    elements = {name: _codes(*value) if isinstance(value, tuple) else value for name, value in elements.items()}
    path = dicom(tmp_path / "a", GREY, **WINDOW, **elements)
    np.testing.assert_allclose(read_radiograph(path).image, GREY / 255.0, atol=1e-6)


def test_body_part_is_quoted_only_when_it_is_a_defined_term(tmp_path):
    assert "(HAND)" in str(rejected(dicom(tmp_path / "a", GREY, BodyPartExamined="HAND")))
    assert "DOE" not in str(rejected(dicom(tmp_path / "b", GREY, BodyPartExamined="DOE JANE"))).upper()


def test_negatives_are_noticed_in_every_format(tmp_path):
    picture = make_phantom(0, 128).image
    levels = np.rint(255 * picture / picture.max()).astype(np.uint8)
    png(tmp_path / "right.png", levels)
    png(tmp_path / "wrong.png", 255 - levels)
    dicom(tmp_path / "right.dcm", 255 - levels, PhotometricInterpretation="MONOCHROME1", **WINDOW)
    dicom(tmp_path / "wrong.dcm", 255 - levels, **WINDOW)
    nib.save(nib.Nifti1Image((255 - levels).T, np.eye(4)), tmp_path / "wrong.nii")
    for name in ("right.png", "right.dcm"):
        np.testing.assert_allclose(read_radiograph(tmp_path / name).image, levels / 255.0, atol=1e-6)
    for name in ("wrong.png", "wrong.dcm", "wrong.nii"):
        assert rejected(tmp_path / name).code == "suspicious_polarity"
        read_radiograph(tmp_path / name, allow=["suspicious_polarity"])


def test_polarity_gate_judges_likeness_and_leaves_noise_alone():
    assert chest_likeness(read_radiograph(sample("RG1_UNCR.dcm")).image) > 0.5
    generator = np.random.default_rng(0)
    for _ in range(50):
        noise = generator.random((64, 80), dtype=np.float32)
        assert abs(chest_likeness(noise)) < -POLARITY_LIMIT
    assert chest_likeness(noise) == pytest.approx(-chest_likeness(1 - noise), abs=1e-6)


def test_gates_are_named_or_refused(tmp_path):
    path = png(tmp_path / "a.png", GREY)
    for wrong in (["lateral"], "lateral_view"):
        with pytest.raises(ValueError, match="unknown gate"):
            read_radiograph(path, allow=wrong)


def test_warnings_of_libraries_are_not_said_and_filters_come_back(tmp_path, recwarn, caplog):
    ds = pydicom.dcmread(dicom(tmp_path / "a", GREY, **WINDOW))
    ds.SpecificCharacterSet = SECRET
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds.save_as(tmp_path / "b")
    caplog.clear()
    recwarn.clear()
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read_radiograph, [tmp_path / "b"] * 16))
    assert warnings.filters == before
    assert [str(w.message) for w in recwarn.list] == []
    assert caplog.text == ""
    pydicom.dcmread(tmp_path / "b").PatientName  # noqa: B018 - here pydicom does quote
    assert SECRET in caplog.text


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
    error = pickle.loads(pickle.dumps(RadiographError("empty", "a.png", "nothing in it.")))
    assert isinstance(error, ValueError)
    assert (error.code, error.path, str(error)) == ("empty", "a.png", "a.png: nothing in it.")
    with pytest.raises(ValueError, match="unknown reason code 'bad'"):
        RadiographError("bad", "a.png", "")
    assert len(set(REASON_CODES)) == len(REASON_CODES) == 16
    assert set(GATES) < set(REASON_CODES)


def test_file_digest(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_digest(tmp_path / "a") == "cf4ab791c62b8d2b2109c90275287816"
    (tmp_path / "b").write_bytes(b"abc" * 10**6)
    assert file_digest(tmp_path / "b") != file_digest(tmp_path / "a")


@pytest.mark.parametrize("itk", [None, types.ModuleType("itk")], ids=["itk missing", "itk there"])
def test_the_same_tensor_whether_itk_is_installed_or_not(monkeypatch, itk):
    """MONAI's own readers give opposite polarity for this file; a child process would only repeat what is pinned here."""
    monkeypatch.setitem(sys.modules, "itk", itk)
    result = read_radiograph(sample("RG1_J2KR.dcm"))
    assert result.polarity == "inverted"
    places = ((0, 0), (900, 450), (980, 920), (1954, 1840))
    np.testing.assert_allclose([result.image[p] for p in places], PINNED["RG1_J2KR.dcm"], atol=2e-6)


@pytest.mark.parametrize("name", ["mlut_18.dcm", "vlut_04.dcm"])
def test_lookup_table_files_are_pinned_by_value(name):
    result = read_radiograph(sample(name))
    places = ((0, 0), (100, 200), (256, 256), (300, 450), (511, 511))
    np.testing.assert_allclose([result.image[p] for p in places], PINNED[name], atol=2e-6)
