"""DICOM files: transfer syntaxes, windows and tables with pinned values, and refusals that name no patient."""

import io
import os
import resource
import struct
import sys
import types

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEG2000,
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from monai_wscxr.data.radiograph.base import GATES
from monai_wscxr.data.radiograph.dicom import PROJECTION_MODALITIES
from monai_wscxr.data.radiograph.formats import sniff_format
from monai_wscxr.data.radiograph.grey import _as_stored, _used_bits
from monai_wscxr.data.radiograph.read import read_radiograph
from tests.helpers.radiograph_files import GREY, SECRET, WINDOW, dicom, rejected, sample, table

PINNED = {  # values at a few places, computed once by hand-checked code and kept
    "RG1_J2KR.dcm": [0.370346, 0.645488, 0.891163, 0.903063],
    "mlut_18.dcm": [0.49987, 0.49987, 0.47985, 0.49987, 1.0],
    "vlut_04.dcm": [0.498039, 0.498039, 0.478431, 0.498039, 1.0],
}


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
        result = read_radiograph(path, allow=["unlike_a_chest"])
        assert result.intensity == "percentile"
        np.testing.assert_allclose(result.image[:7], expected if meaning == "MONOCHROME2" else 1 - expected, atol=1e-6)
        assert (result.image[7:] == 0).all()


def test_padding_range(tmp_path):
    pixels = np.array([[100, 200, 300, 60000, 60001, 60002, 60003]], dtype=np.uint16)
    path = dicom(tmp_path / "a", pixels, PixelPaddingValue=60002, PixelPaddingRangeLimit=60000)
    np.testing.assert_array_equal(read_radiograph(path, allow=["unlike_a_chest"]).image[0, 3:6], [0, 0, 0])
    assert read_radiograph(path, allow=["unlike_a_chest"]).image[0, 6] == 1.0
    path = dicom(tmp_path / "b", pixels[:, :4], PixelPaddingValue=60000)
    np.testing.assert_allclose(read_radiograph(path, allow=["unlike_a_chest"]).image, [[0, 0.5, 1, 0]], atol=0.01)


def test_lookup_tables(tmp_path):
    pixels = np.array([[0, 1, 2, 3, 4]], dtype=np.uint8)
    path = dicom(tmp_path / "voi", pixels, VOILUTSequence=table([0, 1000, 4095], first=1))
    result = read_radiograph(path, allow=["unlike_a_chest"])  # 12-bit entries under a descriptor that says 16
    assert result.intensity == "voi_lut"
    np.testing.assert_allclose(result.image, [[0, 0, 1000 / 4095, 1, 1]], atol=1e-6)
    modality = table([900, 800, 700, 600, 500])
    path = dicom(tmp_path / "modality", pixels, ModalityLUTSequence=modality, WindowCenter=700.5, WindowWidth=401)
    np.testing.assert_allclose(
        read_radiograph(path, allow=["unlike_a_chest"]).image, [[1, 0.75, 0.5, 0.25, 0]], atol=1e-6
    )


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


def test_declared_bits_above_high_bit_are_dropped(tmp_path):
    pixels = np.arange(16, dtype=np.uint16).reshape(4, 4)
    window = {"WindowCenter": 8, "WindowWidth": 16, "BitsStored": 12, "HighBit": 11}
    plain = read_radiograph(dicom(tmp_path / "a", pixels, **window)).image
    path = dicom(tmp_path / "b", pixels | 0x8000, **window)
    header = pydicom.dcmread(path)
    np.testing.assert_array_equal(_used_bits(header, pixels | 0x8000), pixels)
    np.testing.assert_array_equal(_used_bits(header, np.array([0x0FFF, -5], np.int16)), [-1, -5])
    assert rejected(path).code == "bits_disagree"
    header.add_new(0x60000102, "US", 15)  # an overlay in bit 15
    header.save_as(path)
    np.testing.assert_array_equal(read_radiograph(path).image, plain)
    header[0x60000102].value = 14  # somewhere else
    header.save_as(path)
    assert rejected(path).code == "bits_disagree"


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
    np.testing.assert_allclose(read_radiograph(path, allow=["unlike_a_chest"]).image, pixels / 255.0, atol=1e-6)
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
    monkeypatch.setattr("monai_wscxr.data.radiograph.decoders.available_plugins", lambda syntax: ())
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
    monkeypatch.setattr("monai_wscxr.data.radiograph.decoders.available_plugins", lambda syntax: ())
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
    """Files of other modalities are relabelled, because this test is about pixels only."""
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
    result = read_radiograph(tmp_path / "a.dcm", allow=["suspicious_polarity", "unlike_a_chest"])
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
    """In pydicom's full reading a second Rows after the pixels replaces the one that passed the header check."""
    path = dicom(tmp_path / "a", GREY, RLELossless, PixelData=b"\xfe\xff\x00\xe0" + b"\0" * 4)
    again = struct.pack("<HH2sHH", 0x28, 0x10, b"US", 2, 65535) + struct.pack("<HH2sHH", 0x28, 0x11, b"US", 2, 65535)
    path.write_bytes(path.read_bytes() + again)
    assert rejected(path).code in ("too_large", "unreadable")


def test_element_of_four_gigabytes_is_not_believed(tmp_path):
    """An element after the pixels claims 4 GiB, which pydicom would allocate when it reads from a file."""
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


@pytest.mark.parametrize("itk", [None, types.ModuleType("itk")], ids=["itk missing", "itk there"])
def test_the_same_tensor_whether_itk_is_installed_or_not(monkeypatch, itk):
    """With and without itk MONAI's own readers give opposite polarities for this file."""
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
