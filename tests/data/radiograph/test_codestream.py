"""Sizes that compressed images claim, read without decoding."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from monai_wscxr.data.radiograph.codestream import FrameSize, frame_size


def encoded(shape, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros(shape, np.uint8)).save(buffer, format=kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("shape", [(7, 9), (300, 20), (16, 24, 3)])
def test_jpeg(shape):
    size = FrameSize(shape[0], shape[1], shape[2] if len(shape) == 3 else 1)
    for options in ({}, {"progressive": True}, {"comment": b"x" * 3000}):
        assert frame_size(encoded(shape, "JPEG", **options)) == size


@pytest.mark.parametrize("shape", [(70, 90), (64, 32, 3)])
def test_jpeg_2000_with_and_without_boxes(shape):
    pytest.importorskip("openjpeg", reason="pylibjpeg-openjpeg is not installed")
    boxed = encoded(shape, "JPEG2000")
    bare = encoded(shape, "JPEG2000", no_jp2=True)
    assert boxed[:12] != bare[:12]
    size = FrameSize(shape[0], shape[1], shape[2] if len(shape) == 3 else 1)
    assert frame_size(boxed) == frame_size(bare) == size


def test_jpeg_ls():
    jpeg_ls = pytest.importorskip("jpeg_ls", reason="pyjpegls is not installed")
    assert frame_size(bytes(jpeg_ls.encode_array(np.zeros((11, 13), np.uint8)))) == FrameSize(11, 13, 1)


def test_offsets_of_a_jpeg_2000_picture_count():
    head = b"\xff\x4f\xff\x51" + struct.pack(">HH8IH", 41, 0, 110, 220, 10, 20, 110, 220, 0, 0, 1)
    assert frame_size(head) == FrameSize(200, 100, 1)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8",
        b"\xff\xd8\x00\x00\x00\x00",
        b"\xff\xd8\xff\xe0\xff\xff" + b"\0" * 30,
        b"GIF89a" + b"\0" * 60,
        b"\xff\x4f\xff\x51" + struct.pack(">HH8IH", 41, 0, 9, 9, 9, 0, 9, 9, 0, 0, 1),  # no width
        b"\xff\x4f\xff\x51" + struct.pack(">HH8IH", 41, 0, 9, 9, 0, 0, 0, 9, 0, 0, 1),  # tiles of no width
        b"\xff\x4f\xff\x51" + struct.pack(">HH8IH", 41, 0, 9999, 9999, 0, 0, 1, 1, 0, 0, 1),  # 10^8 tiles
        b"\x00\x00\x00\x0cjP  \r\n\x87\n" + struct.pack(">I4s", 8, b"ftyp") + struct.pack(">I4s", 0, b"none"),
        b"\x00\x00\x00\x0cjP  \r\n\x87\n" + struct.pack(">I4s", 40, b"jp2c") + b"\0" * 32,
    ],
)
def test_what_is_no_picture_is_an_error(data):
    with pytest.raises(ValueError):
        frame_size(data)


def test_cut_headers_are_errors():
    head = b"\xff\x4f\xff\x51" + struct.pack(">HH8IH", 41, 0, 110, 220, 10, 20, 110, 220, 0, 0, 1)
    for length in range(4, len(head)):
        with pytest.raises((ValueError, struct.error)):
            frame_size(head[:length])
