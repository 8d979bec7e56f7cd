"""Headers that lie about bits, sign, byte order, numbers or pixels: a true reason instead of a wrapped picture."""

import struct

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRBigEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from monai_wscxr.data.radiograph.base import GATES
from monai_wscxr.data.radiograph.bits import check_byte_order, check_sign
from monai_wscxr.data.radiograph.read import read_radiograph
from tests.helpers.radiograph_files import GREY, SECRET, dicom, png, rejected, smooth, stretched

PICTURE = smooth(12)
SIXTEEN = smooth(16)


def read(path):
    return read_radiograph(path, allow=GATES).image


@pytest.mark.parametrize(
    "elements",
    [
        {"BitsStored": 8, "HighBit": 7},
        {"BitsStored": 10, "HighBit": 9},
        {"BitsStored": 11, "HighBit": 10},
        {"BitsStored": 8, "HighBit": 15},
        {"BitsStored": 12, "HighBit": 15},  # the lowest four bits are used, too
        {"BitsStored": 8, "HighBit": 3},
        {"BitsStored": 17, "HighBit": 16},
        {"BitsStored": 8, "HighBit": 7, "PixelRepresentation": 1},
    ],
)
@pytest.mark.parametrize("syntax", [None, JPEGLSLossless, JPEG2000Lossless, RLELossless])
def test_bits_that_disagree_with_the_values(tmp_path, elements, syntax):
    path = dicom(tmp_path / "a", PICTURE, BitsStored=12, HighBit=11)
    np.testing.assert_allclose(read(path), stretched(PICTURE), atol=1e-6)
    ds = pydicom.dcmread(path)
    if syntax:
        ds.compress(syntax)
    for name, value in elements.items():
        setattr(ds, name, value)
    ds.save_as(path)
    if syntax in (JPEG2000Lossless, JPEGLSLossless) and elements.get("PixelRepresentation"):
        assert rejected(path, allow=GATES).code in (
            "bits_disagree",
            "unreadable",
        )  # the codestream has a sign of its own
    else:
        assert rejected(path, allow=GATES).code == "bits_disagree"


@pytest.mark.parametrize("high", [3, 11, 16, 40, None])
def test_an_impossible_high_bit_is_ignored_where_the_values_fit(tmp_path, high):
    path = dicom(tmp_path / "a", PICTURE, BitsStored=12, HighBit=high)
    np.testing.assert_allclose(read(path), stretched(PICTURE), atol=1e-6)


def test_copies_of_the_sign_and_padding_are_no_stray_bits(tmp_path):
    signed = PICTURE.astype(np.int16) - 2048
    header = {"BitsStored": 12, "HighBit": 11}
    np.testing.assert_allclose(read(dicom(tmp_path / "a", signed, **header)), stretched(PICTURE), atol=1e-6)
    bare = dicom(tmp_path / "b", signed & 0x0FFF, **header)  # the sign is not copied
    np.testing.assert_allclose(read(bare), stretched(PICTURE), atol=1e-6)
    padded = signed.copy()
    padded[:9] = -3000
    result = read_radiograph(dicom(tmp_path / "c", padded, PixelPaddingValue=-3000, **header), allow=GATES)
    np.testing.assert_allclose(result.image[9:], stretched(PICTURE[9:]), atol=1e-6)
    assert rejected(dicom(tmp_path / "d", padded, **header), allow=GATES).code == "bits_disagree"


@pytest.mark.parametrize("pixels", [PICTURE, SIXTEEN], ids=["12 bit", "16 bit"])
@pytest.mark.parametrize("big", [False, True])
def test_swapped_bytes(tmp_path, pixels, big):
    bits = 12 if pixels is PICTURE else 16
    path = dicom(tmp_path / "a", pixels, BitsStored=bits, HighBit=bits - 1)
    ds = pydicom.dcmread(path)
    for wrong in (False, True):
        ds.PixelData = (pixels.byteswap() if big != wrong else pixels).tobytes()
        if big:
            ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        pydicom.dcmwrite(tmp_path / "b", ds, implicit_vr=False, little_endian=not big)
        if wrong:
            assert rejected(tmp_path / "b", allow=GATES).code == "bits_disagree"
        else:
            np.testing.assert_allclose(read(tmp_path / "b"), stretched(pixels), atol=1e-6)


def test_swapped_bytes_in_other_formats(tmp_path):
    read(png(tmp_path / "a.png", SIXTEEN))
    error = rejected(png(tmp_path / "b.png", SIXTEEN.byteswap()), allow=GATES)
    assert error.code == "bits_disagree"
    assert "bytes of each are swapped" in str(error)
    nib.save(nib.Nifti1Image(SIXTEEN.byteswap().T, np.eye(4)), tmp_path / "a.nii")
    assert rejected(tmp_path / "a.nii", allow=GATES).code == "bits_disagree"


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_sign_that_disagrees_with_the_values(tmp_path, bits, signed):
    picture = smooth(bits).astype(np.uint8 if bits == 8 else np.uint16)
    if signed:  # signed values under an unsigned header
        picture = (picture.astype(np.int32) - 2 ** (bits - 1)) & (2**bits - 1)
        picture = picture.astype(np.uint8 if bits == 8 else np.uint16)
    header = {"BitsStored": bits, "HighBit": bits - 1}
    right = dicom(tmp_path / "right", picture, PixelRepresentation=int(signed), **header)
    np.testing.assert_allclose(read(right), stretched(smooth(bits)), atol=1e-6)
    error = rejected(dicom(tmp_path / "a", picture, PixelRepresentation=int(not signed), **header), allow=GATES)
    assert error.code == "bits_disagree"
    assert f"they seem to be {'signed' if signed else 'unsigned'}" in str(error)


def test_sign_of_a_nifti_type(tmp_path):
    nib.save(nib.Nifti1Image(SIXTEEN.view(np.int16).T, np.eye(4)), tmp_path / "a.nii")
    assert rejected(tmp_path / "a.nii", allow=GATES).code == "bits_disagree"
    nib.save(nib.Nifti1Image(SIXTEEN.T, np.eye(4)), tmp_path / "a.nii")
    np.testing.assert_allclose(read(tmp_path / "a.nii"), stretched(SIXTEEN), atol=1e-6)


def test_saturated_lettering_does_not_look_like_a_wrong_sign():
    letters = np.zeros((128, 128), np.uint8)
    letters[::4] = letters[:, ::4] = 255
    letters[40:60, 40:60] = smooth(8, 20, 20)
    check_sign(letters, 8)
    check_byte_order(letters.astype(np.uint16) * 257)
    with pytest.raises(ValueError, match="wrap around"):
        check_sign(smooth(8).astype(np.uint8).view(np.int8), 8)


@pytest.mark.parametrize(("factor", "code"), [(0.5, "unreadable"), (2, "bits_disagree"), (3, "bits_disagree")])
def test_pixel_data_of_another_length(tmp_path, factor, code):
    data = PICTURE.tobytes() * 3
    path = dicom(tmp_path / "a", PICTURE, PixelData=data[: int(PICTURE.nbytes * factor)])
    error = rejected(path, allow=GATES)
    assert error.code == code
    assert f"the header claims {PICTURE.nbytes} bytes of pixels (80 x 96 of 16 bits)" in str(error)


def test_a_few_bytes_after_the_pixels_are_ignored(tmp_path):
    path = dicom(tmp_path / "a", PICTURE, PixelData=PICTURE.tobytes() + b"\0" * 100)
    np.testing.assert_allclose(read(path), stretched(PICTURE), atol=1e-6)


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"BitsStored": 0}, "the header stores 0 bits in 16 allocated ones"),
        ({"BitsStored": 40}, "the header stores 40 bits in 16 allocated ones"),
        ({"BitsAllocated": 12, "BitsStored": 12}, "the header allocates 12 bits, which is neither 1 nor whole bytes"),
        ({"BitsAllocated": 0}, "the header allocates 0 bits"),
        ({"PixelRepresentation": 7}, "PixelRepresentation is neither 0 (unsigned) nor 1 (signed)"),
    ],
)
def test_impossible_headers(tmp_path, elements, message):
    error = rejected(dicom(tmp_path / "a", PICTURE, **elements), allow=GATES)
    assert error.code == "bits_disagree"
    assert message in str(error)


def test_16_bit_values_under_a_header_of_8_bits(tmp_path):
    path = dicom(tmp_path / "a", PICTURE, BitsAllocated=8, BitsStored=8, HighBit=7)
    assert rejected(path, allow=GATES).code == "bits_disagree"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept", "NumberOfFrames"])
@pytest.mark.parametrize("text", ["1,5", "2048,0", SECRET, "1.5.2"])
def test_entries_that_are_no_numbers_are_named(tmp_path, name, text):
    header = {"WindowCenter": "1.5", "WindowWidth": "1.5", "RescaleSlope": "1.5", "RescaleIntercept": "1.5"}
    path = dicom(tmp_path / "a", PICTURE, NumberOfFrames="1", **header)
    ds = pydicom.dcmread(path)
    element = ds[name]
    raw = path.read_bytes()
    head = struct.pack("<HH", element.tag.group, element.tag.element) + element.VR.encode()
    at = raw.index(head)
    length = struct.unpack_from("<H", raw, at + 6)[0]
    value = text.encode() + b" " * (len(text) % 2)
    path.write_bytes(raw[: at + 6] + struct.pack("<H", len(value)) + value + raw[at + 8 + length :])
    error = rejected(path, allow=GATES)
    assert error.code == "unreadable"
    assert f"the DICOM header entry {name} is not a number by the standard (a decimal comma" in str(error)
    assert text not in str(error)


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"PixelData": None}, "PixelData is missing"),
        ({"PixelData": b""}, "PixelData has zero bytes"),
        ({"BitsStored": None}, "the DICOM header lacks BitsStored"),
        ({"PixelRepresentation": None}, "the DICOM header lacks PixelRepresentation"),
        ({"PixelRepresentation": None, "BitsStored": None}, "the DICOM header lacks BitsStored, PixelRepresentation"),
    ],
)
def test_what_is_missing_is_named(tmp_path, elements, message):
    error = rejected(dicom(tmp_path / "a", GREY, **elements))
    assert error.code == "unreadable"
    assert message in str(error)
