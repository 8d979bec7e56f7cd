"""One image in many encodings gives the same grey values, and entries that must not change them do not."""

import io

import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from monai_wscxr.data.radiograph.base import GATES
from monai_wscxr.data.radiograph.read import read_radiograph
from tests.helpers.radiograph_files import GREY, WINDOW, dicom, rejected, sample, table

GDCM = "python-gdcm writes JPEG lossless here; it is not installed"
WORDS = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def rewritten(path, syntax, folder):
    """Return a lossless copy of the file in another transfer syntax."""
    target = folder / f"{syntax.keyword}.dcm"
    if syntax == JPEGLosslessSV1:
        gdcm = pytest.importorskip("gdcm", reason=GDCM)
        reader = gdcm.ImageReader()
        reader.SetFileName(str(path))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(target))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        return target
    ds = pydicom.dcmread(path)
    if syntax in (JPEG2000Lossless, JPEGLSLossless, RLELossless):
        ds.compress(syntax, generate_instance_uid=False)
    elif syntax == ExplicitVRBigEndian:
        ds.PixelData = ds.pixel_array.byteswap().tobytes()
    ds.file_meta.TransferSyntaxUID = syntax
    pydicom.dcmwrite(
        target, ds, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=syntax != ExplicitVRBigEndian
    )
    return target


@pytest.mark.parametrize(
    "syntax",
    [
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
        JPEGLSLossless,
        JPEG2000Lossless,
        JPEGLosslessSV1,
    ],
    ids=lambda syntax: syntax.keyword,
)
def test_rg1_is_bit_for_bit_the_same_in_every_lossless_syntax(tmp_path, syntax):
    plain = read_radiograph(sample("RG1_UNCR.dcm"))
    path = rewritten(sample("RG1_UNCR.dcm"), syntax, tmp_path)
    assert pydicom.dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID == syntax
    found = read_radiograph(path)
    np.testing.assert_array_equal(found.image, plain.image)
    assert (found.polarity, found.intensity) == (plain.polarity, plain.intensity) == ("inverted", "voi_window")


def test_rg1_as_its_monochrome2_twin_and_with_a_sign(tmp_path):
    """The same exposure gives the same image when stored inverted, as signed numbers or in 16 bits."""
    ds = pydicom.dcmread(sample("RG1_UNCR.dcm"))
    plain, stored = read_radiograph(sample("RG1_UNCR.dcm")).image, ds.pixel_array.astype(np.int64)

    def read(values, **elements):
        made = pydicom.dcmread(sample("RG1_UNCR.dcm"))
        made.PixelData = values.astype(np.uint16).tobytes()
        for name, value in elements.items():
            setattr(made, name, value)
        path = tmp_path / "twin.dcm"
        made.save_as(path)
        return read_radiograph(path).image

    # the window 15000 / 30000 reaches from 0 to 29999 (PS3.3 C.11.2.1.2); mirrored, from 2768 to 32767
    twin = read(32767 - stored, PhotometricInterpretation="MONOCHROME2", WindowCenter=17768)
    np.testing.assert_allclose(twin, plain, atol=1e-6)
    signed = read(stored - 16384, PixelRepresentation=1, WindowCenter=15000 - 16384)
    np.testing.assert_allclose(signed, plain, atol=1e-6)
    shifted = read(stored << 1, BitsStored=15, HighBit=15)  # the lowest bit is not used
    np.testing.assert_allclose(shifted, plain, atol=1e-6)


def test_overlay_in_the_high_bits_hides_neither_values_nor_padding(tmp_path):
    header = {"BitsStored": 12, "HighBit": 11, "PixelPaddingValue": 0, "WindowCenter": 2048, "WindowWidth": 4096}
    plain = read_radiograph(dicom(tmp_path / "plain", WORDS % 4096, **header))
    drawn = WORDS.copy()
    drawn[:, ::2] |= 0x1000  # group 6000 with overlay bit position 12
    path = dicom(tmp_path / "drawn", drawn, **header)
    ds = pydicom.dcmread(path)
    ds.add_new(0x60000010, "US", 64)
    ds.add_new(0x60000100, "US", 16)
    ds.add_new(0x60000102, "US", 12)
    ds.save_as(path)
    found = read_radiograph(path)
    np.testing.assert_array_equal(found.image, plain.image)
    np.testing.assert_array_equal(found.padding, plain.padding)
    assert found.padding[0, 0]


def test_padding_beyond_the_used_bits_is_found(tmp_path):
    values = WORDS.copy()
    values[0] = 0xF830  # -2000 in 16 bits, where 12 are used
    path = dicom(tmp_path / "a", values, BitsStored=12, HighBit=11, PixelPaddingValue=0xF830)
    found = read_radiograph(path)
    assert found.padding[0].all()
    assert found.padding.sum() == 64


@pytest.mark.parametrize(
    "elements",
    [
        {"RescaleType": "OD", "RescaleSlope": "1", "RescaleIntercept": "0"},
        {"PixelIntensityRelationship": "LOG", "PixelIntensityRelationshipSign": -1},
        {"PixelIntensityRelationship": "LIN", "PixelIntensityRelationshipSign": 1},
        {"PixelIntensityRelationship": "DISP"},
        {"LossyImageCompression": "01"},
    ],
)
def test_entries_that_change_nothing(tmp_path, elements):
    path = dicom(tmp_path / "a", GREY, **WINDOW, **elements)
    np.testing.assert_allclose(read_radiograph(path).image, GREY / 255.0, atol=1e-6)


def test_first_window_counts_and_a_lookup_table_goes_before_it(tmp_path):
    pixels = np.array([[0, 1, 2, 3, 4]], dtype=np.uint8)
    several = {"WindowCenter": [2, 100, 7], "WindowWidth": [5, 3, 1]}
    result = read_radiograph(dicom(tmp_path / "a", pixels, **several), allow=GATES)
    assert result.intensity == "voi_window"
    np.testing.assert_allclose(result.image, np.clip([[0.125, 0.375, 0.625, 0.875, 1]], 0, 1), atol=1e-6)
    tables = table([0, 1, 4, 9, 16])
    tables.append(table([16, 9, 4, 1, 0])[0])
    result = read_radiograph(dicom(tmp_path / "b", pixels, VOILUTSequence=tables, **several), allow=GATES)
    assert result.intensity == "voi_lut"
    np.testing.assert_allclose(result.image, [[0, 1 / 16, 4 / 16, 9 / 16, 1]], atol=1e-6)
    empty = table([0, 0, 0, 0, 0])  # a table that shows nothing is no table
    assert (
        read_radiograph(dicom(tmp_path / "c", pixels, VOILUTSequence=empty, **several), allow=GATES).intensity
        == "voi_window"
    )


def test_modality_table_goes_before_rescale(tmp_path):
    pixels = np.array([[0, 1, 2]], dtype=np.uint8)
    rescale = {"RescaleSlope": "-1", "RescaleIntercept": "0"}
    window = {"WindowCenter": 100.5, "WindowWidth": 201}
    path = dicom(tmp_path / "a", pixels, ModalityLUTSequence=table([0, 100, 200]), **rescale, **window)
    np.testing.assert_allclose(read_radiograph(path).image, [[0, 0.5, 1]], atol=1e-6)


def test_first_value_of_a_table_below_zero_in_implicit_vr(tmp_path):
    """Implicit VR stores no sign, so pydicom reads 65534 for -2 when the pixels are unsigned."""
    pixels = np.array([[0, 1, 2, 3, 4]], dtype=np.uint8)
    tables = table([0, 10, 20, 30, 40], first=65534)
    path = dicom(
        tmp_path / "a", pixels, ImplicitVRLittleEndian, VOILUTSequence=tables, RescaleSlope="1", RescaleIntercept="-2"
    )
    np.testing.assert_allclose(read_radiograph(path, allow=GATES).image, [[0, 0.25, 0.5, 0.75, 1]], atol=1e-6)


def test_window_function_in_any_case(tmp_path):
    exact = {"WindowCenter": 127.5, "WindowWidth": 255}
    with pydicom.config.disable_value_validation():
        path = dicom(tmp_path / "a", GREY, VOILUTFunction="linear_exact", **exact)
    result = read_radiograph(path)
    assert result.intensity == "voi_window"
    np.testing.assert_allclose(result.image, GREY / 255.0, atol=1e-6)


def test_window_of_another_image_is_refused_not_believed(tmp_path):
    """An 8-bit window left on 12-bit values makes almost every pixel white."""
    path = dicom(tmp_path / "stale", WORDS, **WINDOW)
    error = rejected(path, allow=GATES)
    assert error.code == "no_contrast"
    assert "makes 94% of the pixels black or white" in str(error)
    assert read_radiograph(dicom(tmp_path / "free", WORDS), allow=GATES).intensity == "percentile"
    wide = dicom(tmp_path / "wide", WORDS, WindowCenter=400, WindowWidth=600)  # hard, but a tenth is left
    assert read_radiograph(wide, allow=GATES).intensity == "voi_window"


def test_written_again_by_pydicom_it_is_the_same(tmp_path):
    """Archives write the files they pass on again."""
    buffer = io.BytesIO()
    pydicom.dcmread(sample("RG1_J2KR.dcm")).save_as(buffer)
    (tmp_path / "a").write_bytes(buffer.getvalue())
    again, first = read_radiograph(tmp_path / "a"), read_radiograph(sample("RG1_J2KR.dcm"))
    np.testing.assert_array_equal(again.image, first.image)
