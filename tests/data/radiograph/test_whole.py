"""Pictures that arrived in part: cut anywhere and closed in an orderly way, in every format that is read."""

import gzip
import io
import struct
import zlib

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from monai_wscxr.data.radiograph.base import GATES
from monai_wscxr.data.radiograph.read import read_radiograph
from tests.helpers.radiograph_files import dicom, rejected, smooth, stretched

PICTURE = smooth(12, 128, 120)
EIGHT = smooth(8, 128, 120).astype(np.uint8)
SHARES = [0.1, 0.5, 0.9, 0.97]
END = b"\xff\xd9"


def reason(path, content):
    """Return the reason code of a file with this content."""
    path.write_bytes(content)
    return rejected(path, allow=GATES).code


def jpeg(mode="L", **options):
    buffer = io.BytesIO()
    Image.fromarray(EIGHT).convert("RGB").convert(mode).save(buffer, format="JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimize": True},
        {"progressive": True},
        {"restart_marker_blocks": 7},
        {"restart_marker_rows": 1},
        {"progressive": True, "restart_marker_rows": 2},
        {"subsampling": 0},
    ],
    ids=str,
)
def test_jpeg_cut_in_the_middle_and_closed(tmp_path, mode, options, share):
    data = jpeg(mode, **options)
    (tmp_path / "whole").write_bytes(data)
    assert read_radiograph(tmp_path / "whole", allow=GATES).image.shape == (128, 120)
    start = data.index(b"\xff\xda") + 14
    cut = data[: start + int((len(data) - start) * share)].removesuffix(b"\xff")
    for end in (END, b"", b"\0" * 500):
        assert reason(tmp_path / "cut", cut + end) == "unreadable"
    # a part in the middle is missing, and the end is there
    gap = data[: start + int((len(data) - start) * share * 0.5)].removesuffix(b"\xff") + data[len(cut) :]
    if "progressive" not in options:
        assert reason(tmp_path / "gap", gap) == "unreadable"


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_progressive_jpeg_without_its_last_scans(tmp_path, mode):
    data = jpeg(mode, progressive=True)
    starts = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
    assert len(starts) > 3
    for start in starts[1:]:
        table = data.rindex(b"\xff\xc4", 0, start)  # the Huffman table of that scan
        assert reason(tmp_path / "a", data[:table] + END) == "unreadable"


def test_a_picture_that_ends_in_mid_grey_is_whole(tmp_path):
    grey = EIGHT.copy()
    grey[64:] = 128
    for options in ({}, {"progressive": True}, {"restart_marker_blocks": 5}, {"optimize": True}):
        for mode in ("L", "RGB", "CMYK"):
            Image.fromarray(grey).convert("RGB").convert(mode).save(tmp_path / "a", format="JPEG", **options)
            np.testing.assert_allclose(read_radiograph(tmp_path / "a", allow=GATES).image[72:], 128 / 255, atol=0.01)


def png_chunks(*chunks):
    parts = (struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize(
    ("depth", "colour"), [(8, 0), (16, 0), (8, 2), (8, 4), (16, 4), (16, 2), (16, 6), (1, 0), (8, 3)]
)
def test_png_with_a_closed_but_short_stream(tmp_path, depth, colour, interlaced, share):
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    generator = np.random.default_rng(0)

    def rows(height, width):
        each = -(-width * bits // 8)
        return b"".join(b"\0" + generator.bytes(each) for _ in range(height)) if width else b""

    passes = [(5, 4), (5, 4), (4, 8), (9, 7), (9, 15), (18, 15), (17, 30)]  # of 35 x 30 pixels
    data = b"".join(rows(*one) for one in passes) if interlaced else rows(35, 30)
    palette = [(b"PLTE", generator.bytes(768))] if colour == 3 else []

    def file(content):
        header = struct.pack(">IIBBBBB", 30, 35, depth, colour, 0, 0, interlaced)
        half = len(content) // 2
        parts = [(b"IDAT", content[:half]), (b"IDAT", content[half:])]
        return png_chunks((b"IHDR", header), *palette, *parts, (b"IEND", b""))

    (tmp_path / "whole").write_bytes(file(zlib.compress(data)))
    assert read_radiograph(tmp_path / "whole").image.shape == (35, 30)
    assert reason(tmp_path / "a", file(zlib.compress(data[: int(len(data) * share)]))) == "unreadable"
    assert reason(tmp_path / "a", file(zlib.compress(data)[: int(len(data) * share)])) == "unreadable"


def compressed(folder, syntax, picture=PICTURE):
    """Return a data set in this syntax and its only frame."""
    if syntax == JPEGBaseline8Bit:
        ds = pydicom.dcmread(dicom(folder / "plain", EIGHT))
        ds.PixelData = encapsulate([jpeg()])
        ds["PixelData"].is_undefined_length = True
        ds.file_meta.TransferSyntaxUID = syntax
    elif syntax == JPEGLosslessSV1:
        gdcm = pytest.importorskip("gdcm", reason="python-gdcm writes JPEG lossless here; it is not installed")
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(str(dicom(folder / "plain", picture)))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFileName(str(folder / "lossless"))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        ds = pydicom.dcmread(folder / "lossless")
        ds.Modality = "DX"  # GDCM writes that of the SOP class
    else:
        ds = pydicom.dcmread(dicom(folder / "plain", picture, BitsStored=12, HighBit=11))
        options = {"j2k_cr": [4]} if syntax == JPEG2000 else {}
        ds.compress(syntax, generate_instance_uid=False, **options)
    return ds, get_frame(ds.PixelData, 0, number_of_frames=1)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize(
    "syntax",
    [JPEGBaseline8Bit, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, JPEG2000, RLELossless],
    ids=lambda syntax: syntax.keyword,
)
def test_compressed_dicom(tmp_path, syntax, share):
    ds, frame = compressed(tmp_path, syntax)
    ds.save_as(tmp_path / "whole")
    assert read_radiograph(tmp_path / "whole", allow=GATES).image.shape == (128, 120)
    cut = frame[: int(len(frame) * share)].removesuffix(b"\xff")
    for part in (cut, cut + END, cut + b"\0" * (len(frame) - len(cut))):
        ds.PixelData = encapsulate([part])
        ds["PixelData"].is_undefined_length = True
        ds.save_as(tmp_path / "a")
        assert rejected(tmp_path / "a", allow=GATES).code == "unreadable"
    whole = (tmp_path / "whole").read_bytes()
    assert reason(tmp_path / "a", whole[: len(whole) - int(len(frame) * (1 - share)) - 20]) == "unreadable"


@pytest.mark.parametrize("share", SHARES)
def test_jpeg_2000_cut_with_lengths_that_fit(tmp_path, share):
    ds, frame = compressed(tmp_path, JPEG2000Lossless)
    start = frame.index(b"\xff\x90")
    end = start + 20 + int((len(frame) - start - 20) * share)
    for length in (0, end - start):  # 0: up to the end marker
        part = bytearray(frame[:end] + END)
        struct.pack_into(">I", part, start + 6, length)
        ds.PixelData = encapsulate([bytes(part)])
        ds["PixelData"].is_undefined_length = True
        ds.save_as(tmp_path / "a")
        assert rejected(tmp_path / "a", allow=GATES).code == "unreadable"
    part = bytearray(frame)
    struct.pack_into(">I", part, start + 6, 0)
    ds.PixelData = encapsulate([bytes(part)])
    ds["PixelData"].is_undefined_length = True
    ds.save_as(tmp_path / "a")
    np.testing.assert_allclose(read_radiograph(tmp_path / "a", allow=GATES).image, stretched(PICTURE), atol=1e-6)


def test_lossless_jpeg_that_ends_in_equal_pixels_is_whole(tmp_path):
    picture = PICTURE.copy()
    picture[64:] = 99
    ds, _ = compressed(tmp_path, JPEGLosslessSV1, picture)
    ds.save_as(tmp_path / "a")
    np.testing.assert_allclose(read_radiograph(tmp_path / "a", allow=GATES).image, stretched(picture), atol=1e-6)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize(
    "syntax",
    [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian],
    ids=lambda syntax: syntax.keyword,
)
def test_native_dicom_cut(tmp_path, syntax, share):
    ds = pydicom.dcmread(dicom(tmp_path / "plain", PICTURE, BitsStored=12, HighBit=11))
    ds.file_meta.TransferSyntaxUID = syntax
    pydicom.dcmwrite(tmp_path / "a", ds, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True)
    data = (tmp_path / "a").read_bytes()
    assert reason(tmp_path / "a", data[: 900 + int((len(data) - 900) * share)]) == "unreadable"


@pytest.mark.parametrize("share", SHARES)
def test_nifti_cut_and_closed(tmp_path, share):
    nib.save(nib.Nifti1Image(PICTURE.T, np.eye(4)), tmp_path / "a.nii")
    data = (tmp_path / "a.nii").read_bytes()
    part = data[: 400 + int((len(data) - 400) * share)]
    packed = gzip.compress(data)
    for content in (part, gzip.compress(part), packed[: int(len(packed) * share)]):
        assert reason(tmp_path / "a", content) == "unreadable"


def tiff(compression):
    buffer = io.BytesIO()
    options = {"compression": compression} if compression else {}
    Image.fromarray(EIGHT).save(buffer, format="TIFF", **options)
    return bytearray(buffer.getvalue())


def patch(data, wanted, change):
    """Change the value of a TIFF tag of one number."""
    at = struct.unpack_from("<I", data, 4)[0]
    for entry in range(at + 2, at + 2 + 12 * struct.unpack_from("<H", data, at)[0], 12):
        tag, kind, count, value = struct.unpack_from("<HHII", data, entry)
        if tag == wanted:
            assert (count, kind in (3, 4)) == (1, True)
            struct.pack_into("<I", data, entry + 8, change(value))
    return data


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "packbits"])
def test_tiff_with_short_strips(tmp_path, compression):
    data = tiff(compression)
    (tmp_path / "whole").write_bytes(data)
    np.testing.assert_allclose(read_radiograph(tmp_path / "whole", allow=GATES).image, EIGHT / 255, atol=1e-6)
    assert reason(tmp_path / "a", patch(tiff(compression), 279, lambda n: n // 2)) == "unreadable"
    assert reason(tmp_path / "a", patch(tiff(compression), 279, lambda n: n + 10**6)) == "unreadable"
    assert reason(tmp_path / "a", patch(tiff(compression), 278, lambda n: n // 2)) == "unreadable"  # one strip of two
    assert reason(tmp_path / "a", data[: len(data) // 2]) == "unreadable"


@pytest.mark.parametrize("share", SHARES)
def test_bmp_cut(tmp_path, share):
    Image.fromarray(EIGHT).save(tmp_path / "a.bmp")
    data = (tmp_path / "a.bmp").read_bytes()
    assert reason(tmp_path / "a", data[: 1078 + int((len(data) - 1078) * share)]) == "unreadable"
