"""Image sizes in the headers of JPEG, JPEG-LS and JPEG 2000 data, read without decoding.

A DICOM header and the codestream inside can disagree. Decoders trust the codestream and allocate the memory that it claims,
so the two are compared first. Sources: ITU-T T.81 B.2.2 (JPEG), T.87 C.2.2 (JPEG-LS), T.800 A.5.1 and I.5 (JPEG 2000).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

_SOF = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7}
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
_MOST_TILES = 4096  # 8192 x 8192 pixels in tiles of 128; a codestream of millions of tiles is an attack


class FrameSize(NamedTuple):
    """Height and width in pixels, and samples per pixel."""

    rows: int
    columns: int
    samples: int


def frame_size(data: bytes) -> FrameSize:
    """Return the size that a JPEG, JPEG-LS or JPEG 2000 codestream claims.

    Args:
        data: the bytes of one frame, at least up to its size marker.

    Raises:
        ValueError: when there is no size marker, or JPEG 2000 data claim more than 4096 tiles.
        struct.error: when the data end inside the header.
    """
    if data.startswith(b"\xff\xd8"):
        return _jpeg(data)
    return _jpeg_2000(data)[0]


def tile_count(data: bytes) -> int:
    """Return the number of tiles that JPEG 2000 data claim; raises like `frame_size`."""
    return _jpeg_2000(data)[1]


def codestream_start(data: bytes) -> int:
    """Return the offset of the JPEG 2000 codestream: 0, or inside its box in a JP2 file.

    Raises:
        ValueError: when the data are neither.
    """
    if data.startswith(b"\xff\x4f\xff\x51"):
        return 0
    if data.startswith(b"\x00\x00\x00\x0cjP"):
        return _codestream_box(data)
    raise ValueError("neither JPEG, JPEG-LS nor JPEG 2000")


def _jpeg(data: bytes) -> FrameSize:
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            raise ValueError("marker expected")
        kind = data[at + 1]
        if kind == 0xFF:  # fill byte
            at += 1
        elif kind in _ALONE:
            at += 2
        elif kind in _SOF:
            _, rows, columns, samples = struct.unpack_from(">BHHB", data, at + 4)
            return FrameSize(rows, columns, samples)
        else:
            at += 2 + max(2, struct.unpack_from(">H", data, at + 2)[0])
    raise ValueError("no start of frame")


def _jpeg_2000(data: bytes) -> tuple[FrameSize, int]:
    """Return the size and the number of tiles."""
    start = codestream_start(data)
    right, bottom, left, top, tile_width, tile_height, tile_left, tile_top, samples = struct.unpack_from(
        ">8IH", data, start + 8
    )
    if not tile_width or not tile_height or right <= left or bottom <= top:
        raise ValueError("an empty image or tile")
    tiles = -(-(right - tile_left) // tile_width) * -(-(bottom - tile_top) // tile_height)
    if tiles > _MOST_TILES:
        raise ValueError(f"{tiles} tiles")
    return FrameSize(bottom - top, right - left, samples), tiles


def _codestream_box(data: bytes) -> int:
    """Return the offset of the codestream in a JP2 file."""
    at = 0
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if length == 1:
            length, head = struct.unpack_from(">Q", data, at + 8)[0], 16
        if kind == b"jp2c":
            if data[at + head : at + head + 4] != b"\xff\x4f\xff\x51":
                raise ValueError("no codestream in its box")
            return at + head
        if length < head:
            break
        at += length
    raise ValueError("no codestream box")
