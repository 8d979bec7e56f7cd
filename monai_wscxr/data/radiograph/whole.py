"""Checks that compressed pictures have arrived whole.

Decoders fill what is missing with grey, black or the last value and report success when the data end in an orderly way: with
an end marker in the middle, a closed deflate stream, or zeros up to the expected length. Each check compares the data with
the size in their own header. Sources: PNG (third edition) 7 and 10, ITU-T T.81 B.2 and G.1 (JPEG), T.800 A.4 (JPEG 2000).
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from monai_wscxr.data.radiograph.base import RadiographError
from monai_wscxr.data.radiograph.codestream import codestream_start

_MARKER = re.compile(
    rb"\xff[\x01-\xcf\xd8-\xfe]"
)  # neither a stuffed byte nor a restart marker, which belong to the data
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_PROGRESSIVE, _LOSSLESS = {0xC2, 0xC6}, {0xC3, 0xC7}
_ARITHMETIC = {0xC9, 0xCA, 0xCB}
_PROBE = bytes(i * 73 % 251 for i in range(4096))  # entropy-coded data of no picture, without 0xFF
_ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)  # x, y, steps
_PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def missing_part(detail: str) -> RadiographError:
    """Return the error of a picture of which a part is missing, for the caller to raise."""
    return RadiographError("unreadable", f"part of the picture is missing: {detail}. Copy or export it again.")


def check_png(data: bytes, decoded: np.ndarray) -> None:
    """Check that the deflate stream of a PNG holds all rows that its header claims.

    Rows that are missing stay zero, so the stream is only counted where the row that is sent last is zero.

    Args:
        data: bytes of a file whose header Pillow accepts.
        decoded: the picture as decoded, [H, W] or [H, W, channels].

    Raises:
        RadiographError: "unreadable".
        zlib.error, struct.error: when the data are damaged.
    """
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    last = height - 1 - (height % 2 if interlaced else 0)  # an interlaced picture ends with its last odd row
    if last >= 0 and decoded[last].any():
        return
    bits = depth * _PNG_SAMPLES[colour]
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    expected = 0
    for x, y, step_x, step_y in passes:
        columns, rows = max(0, -(-(width - x) // step_x)), max(0, -(-(height - y) // step_y))
        expected += rows * (1 + -(-columns * bits // 8)) if columns else 0
    inflater, found = zlib.decompressobj(), 0
    for block in _png_data(data):
        while block and found < expected and not inflater.eof:
            found += len(inflater.decompress(block, 2**20))
            block = inflater.unconsumed_tail
        if found >= expected:
            return
    raise missing_part(f"its header claims {expected} bytes of rows, the data hold {found}")


def _png_data(data: bytes) -> Iterator[bytes]:
    at = 8
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IDAT":
            yield data[at + 8 : at + 8 + length]
        at += 12 + length


class _Scan(NamedTuple):
    """Header of one JPEG scan and where its entropy-coded data lie."""

    components: tuple[int, ...]
    first: int  # first and last coefficient in zigzag order
    last: int
    low: int  # position of the lowest bit that the scan sends
    restarts: int  # units between two restart markers, or 0
    start: int
    end: int


def check_jpeg(data: bytes, decoded: np.ndarray, decode: Callable[[bytes], np.ndarray]) -> None:
    """Check that a JPEG sends all blocks of all components, down to the last bit of every coefficient.

    The number of blocks can only be counted by decoding. So where blocks may be missing, data are inserted at the end of every
    scan and restart interval, and the picture is decoded again: a decoder that still lacks blocks uses them, and the picture
    changes; one that has all of them skips to the next marker. In one scan without restart markers missing blocks are mid-grey
    (in a lossless picture they repeat their neighbour), so most pictures need no second decoding.

    Args:
        data: one JPEG picture: baseline, extended, progressive or lossless, with Huffman coding. With arithmetic coding only
            the scans are checked.
        decoded: the picture as decoded, [H, W] or [H, W, components].
        decode: decodes other data in the same way.

    Raises:
        RadiographError: "unreadable".
        struct.error, ValueError: when the data are damaged.
    """
    kind, frame, scans = _jpeg_structure(data)
    if not frame or not scans:
        raise missing_part("it has no scan")
    precision, rows, columns = struct.unpack_from(">BHH", frame)
    components = {frame[6 + 3 * i]: frame[7 + 3 * i] for i in range(frame[5])}
    _check_scans(kind, components, scans)
    if kind in _ARITHMETIC:
        return
    if kind not in _LOSSLESS:
        for scan in scans:
            _check_restarts(data, scan, components, rows, columns)
    one_part = len(scans) == 1 and not scans[0].restarts
    if one_part and kind not in _LOSSLESS:
        corner = np.abs(decoded[-1, -1].astype(np.int64) - 2 ** (precision - 1))
        if len(components) < 4 and (corner > 2).any():  # colour conversion may shift mid-grey; CMYK may be inverted
            return
    elif one_part and kind == 0xC3 and scans[0].first == 1 and (decoded[-1, -16:] != decoded[-1, -1]).any():
        return  # missing samples would repeat their left neighbour
    parts, at = [], 0
    for scan in scans:
        for marker in _RESTART.finditer(data, scan.start, scan.end):
            parts += [data[at : marker.start()], _PROBE[:64]]
            at = marker.start()
        parts += [data[at : scan.end], _PROBE]
        at = scan.end
    probed = b"".join([*parts, data[at:]])
    try:
        same = np.array_equal(decode(probed), decoded)
    except Exception as error:  # a decoder that had all blocks would not have looked at what was inserted
        raise missing_part("its compressed data end before the last row") from error
    if not same:
        raise missing_part("its compressed data end before the last row")


def _jpeg_structure(data: bytes) -> tuple[int, bytes, list[_Scan]]:
    """Return the kind of frame, its header and all scans up to the end marker."""
    kind, frame, restarts = 0, b"", 0
    scans: list[_Scan] = []
    at = 2
    while at + 2 <= len(data):
        if data[at] != 0xFF:
            raise ValueError("marker expected")
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker == 0xD9:
            return kind, frame, scans
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            at += 2
            continue
        length = struct.unpack_from(">H", data, at + 2)[0]
        body, at = data[at + 4 : at + 2 + length], at + 2 + max(2, length)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            kind, frame = marker, body
        elif marker == 0xDD:
            restarts = struct.unpack_from(">H", body)[0]
        elif marker == 0xDA:
            found = _MARKER.search(data, at)
            end = found.start() if found else len(data)
            count = body[0]
            first, last, bits = body[1 + 2 * count : 4 + 2 * count]
            scans.append(_Scan(tuple(body[1 : 1 + 2 * count : 2]), first, last, bits & 15, restarts, at, end))
            at = end
    raise missing_part("it has no end marker")


def _check_scans(kind: int, components: dict[int, int], scans: list[_Scan]) -> None:
    """Check that every component, and in a progressive picture every coefficient, is sent down to its lowest bit."""
    if kind not in _PROGRESSIVE and kind != 0xCA:
        if set(components) - {component for scan in scans for component in scan.components}:
            raise missing_part("a colour component is not sent")
        return
    left = {component: np.full(64, 99) for component in components}
    for scan in scans:
        for component in set(scan.components) & set(left):
            left[component][scan.first : scan.last + 1] = scan.low
    if any(bits.any() for bits in left.values()):
        raise missing_part("the last scans of this progressive JPEG are not sent")


def _check_restarts(data: bytes, scan: _Scan, components: dict[int, int], rows: int, columns: int) -> None:
    """Check the number of restart markers: decoders fill the parts between missing ones with grey."""
    if not scan.restarts or not rows:
        return
    across, down = (max(sampling >> shift & 15 for sampling in components.values()) for shift in (4, 0))
    if len(scan.components) == 1:  # one block per unit
        sampling = components[scan.components[0]]
        columns, rows = -(-columns * (sampling >> 4) // across), -(-rows * (sampling & 15) // down)
        across = down = 1
    units = -(-columns // (8 * across)) * -(-rows // (8 * down))
    expected, found = -(-units // scan.restarts) - 1, len(_RESTART.findall(data, scan.start, scan.end))
    if found < expected:
        raise missing_part(f"it has {found} of {expected} restart markers")


def check_jpeg_2000(data: bytes, tiles: int) -> None:
    """Check that a JPEG 2000 codestream holds all tile parts in full length and its end marker.

    Args:
        data: one picture, as a codestream or a JP2 file.
        tiles: number of tiles that its header claims.

    Raises:
        RadiographError: "unreadable".
        struct.error, ValueError: when the data are damaged.
    """
    data = data.rstrip(b"\0")
    at = codestream_start(data) + 2
    while data[at : at + 2] != b"\xff\x90":  # main header
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    seen: dict[int, int] = {}
    wanted: dict[int, int] = {}
    while data[at : at + 2] == b"\xff\x90":
        _, tile, length, _, parts = struct.unpack_from(">HHIBB", data, at + 2)
        seen[tile] = seen.get(tile, 0) + 1
        wanted[tile] = max(parts, wanted.get(tile, 0))
        if length == 0:  # up to the end marker
            at = len(data) - 2
        elif length < 14:
            raise ValueError("tile part without data")
        else:
            at += length
    if data[at : at + 2] != b"\xff\xd9":
        raise missing_part("its compressed data end before the last tile")
    if len(seen) < tiles or any(seen[tile] < parts for tile, parts in wanted.items()):
        raise missing_part("tiles are missing")
