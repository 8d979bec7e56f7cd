"""Files whose structure is valid and whose fields lie: DICOM, PNG, JPEG, NIfTI, TIFF, BMP and archives, written field by field.

Unlike `mutations`, which breaks whole files at random places, every file here is assembled from parts, so that parsers reach
the wrong value: sizes, depths, counts, offsets, nesting, compression bombs. All random choices follow from one generator.
"""

from __future__ import annotations

import functools
import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

Generator = np.random.Generator
SIDE = 96  # pixels of the picture, enough for the polarity gate
_SIZES = (0, 1, 2, SIDE - 1, SIDE, SIDE + 1, 255, 8191, 8192, 8193, 32767, 32768, 65535)
_DEPTHS = (0, 1, 2, 7, 8, 10, 12, 15, 16, 24, 32, 64, 255)
_NUMBERS = (
    "0", "1", "-1", "1,5", "1e400", "5e304", "-1.7e308", "nan", "inf", "1e-320", "128",
    "40\\80", "", " 12 ", "abc", "9" * 16, "1" * 40,
)  # fmt: skip


def files(generator: Generator) -> tuple[str, bytes]:
    """Return the extension and the content of one file."""
    made = _KINDS[int(generator.choice(len(_KINDS), p=_SHARES))]
    return made(generator)


@functools.cache
def picture() -> np.ndarray:
    """Return the grey levels of a phantom, uint8 [SIDE, SIDE]."""
    from monai_wscxr.data.phantom import make_phantom

    pixels = np.asarray(make_phantom(3, SIDE).image, dtype=np.float64)
    return np.clip(pixels / pixels.max() * 255, 0, 255).astype(np.uint8)


def _one(generator: Generator, values: tuple) -> object:
    return values[int(generator.integers(len(values)))]


def _sometimes(generator: Generator, share: float) -> bool:
    return bool(generator.random() < share)


# ---- DICOM

_LONG = {b"OB", b"OW", b"OF", b"SQ", b"UN", b"UT", b"OD"}
_SYNTAXES = (
    "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.5",
    "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80",
    "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.100", "1.2.3", "",
)  # fmt: skip
_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.2",
    "1.2.840.10008.1.3.10", "",
)  # fmt: skip


def _element(
    group: int, number: int, vr: bytes, value: bytes, implicit: bool, order: str, length: int | None = None
) -> bytes:
    value += b"\0" * (len(value) % 2)
    size = (len(value) if length is None else length) & 0xFFFFFFFF
    head = struct.pack(f"{order}HH", group, number)
    if implicit:
        return head + struct.pack(f"{order}I", size) + value
    if vr in _LONG:
        return head + vr + b"\0\0" + struct.pack(f"{order}I", size) + value
    return head + vr + struct.pack(f"{order}H", size & 0xFFFF) + value


def _dicom(generator: Generator) -> tuple[str, bytes]:
    """A DICOM file; on average two fields lie."""
    lie = lambda share=0.06: _sometimes(generator, share)  # noqa: E731 - read at every field
    syntax = str(_one(generator, _SYNTAXES)) if lie(0.4) else _SYNTAXES[0]
    implicit, order = syntax == _SYNTAXES[1], ">" if syntax == _SYNTAXES[2] else "<"
    if lie(0.05):
        implicit = not implicit
    size = [int(_one(generator, _SIZES)) if lie() else SIDE for _ in range(2)]
    allocated = int(_one(generator, _DEPTHS)) if lie() else int(_one(generator, (8, 16)))
    stored = int(_one(generator, _DEPTHS)) if lie() else allocated
    pixels = picture()
    data = (pixels.astype(f"{order}u2") * 257).tobytes() if allocated == 16 else pixels.tobytes()
    short = lambda value: struct.pack(f"{order}H", value & 0xFFFF)  # noqa: E731
    text = lambda *choices: str(_one(generator, choices)).encode("utf-8", "surrogateescape")  # noqa: E731
    fields: list[tuple[int, int, bytes, bytes]] = [
        (
            0x08,
            0x05,
            b"CS",
            text("ISO_IR 100", "ISO_IR 192", "", "nonsense", "\\ISO 2022 IR 87") if lie(0.3) else b"ISO_IR 192",
        ),
        (0x08, 0x16, b"UI", text(*_CLASSES) if lie() else _CLASSES[0].encode()),
        (0x08, 0x18, b"UI", text("1.2.3", "1." * 32 + "1", "1.2.03", "abc", "") if lie(0.2) else _uid(generator)),
        (0x08, 0x50, b"SH", text("A" * 17, "A" * 65000, "A\\B", "\x01", "ü" * 16) if lie(0.2) else b"ACC1"),
        (0x08, 0x60, b"CS", text("CT", "", "DX\\CR", "Q" * 300) if lie() else b"DX"),
        (0x10, 0x10, b"PN", text("N" * 70, "a=b=c=d", "=" * 99, "Z\\Y") if lie(0.2) else b"Doe^Jane"),
        (0x10, 0x20, b"LO", text("P" * 65, "P\\Q", "", "\x1b$B") if lie(0.2) else b"P1"),
        (0x10, 0x30, b"DA", text("19310607", "1931.06.07", "unknown", "99999999", "") if lie(0.2) else b"19310607"),
        (0x18, 0x15, b"CS", text("HAND", "", "CHEST\\ABDOMEN") if lie() else b"CHEST"),
        (
            0x18,
            0x1164,
            b"DS",
            text(*(f"{a}\\{b}" for a in _NUMBERS[:8] for b in _NUMBERS[:8])) if lie(0.2) else b"0.1\\0.1",
        ),
        (0x20, 0x0D, b"UI", b"" if lie(0.03) else b"1.2.3.4"),
        (0x20, 0x0E, b"UI", b"" if lie(0.03) else b"1.2.3.5"),
        (0x20, 0x13, b"IS", text(*_NUMBERS) if lie() else b"1"),
        (0x20, 0x20, b"CS", text("L\\F", "A\\F", "L", "L\\H", "L\\F\\X", "") if lie(0.2) else b"L\\F"),
        (0x28, 0x02, b"US", short(int(_one(generator, (0, 2, 3, 4, 65535)))) if lie() else short(1)),
        (
            0x28,
            0x04,
            b"CS",
            text("MONOCHROME1", "RGB", "YBR_FULL", "PALETTE COLOR", "", "X" * 99) if lie(0.2) else b"MONOCHROME2",
        ),
        *([(0x28, 0x08, b"IS", text(*_NUMBERS))] if lie() else []),
        (0x28, 0x10, b"US", short(size[0]) if not lie(0.02) else b""),
        (0x28, 0x11, b"US", short(size[1]) if not lie(0.02) else b"\1\0\2\0"),
        *([(0x28, 0x34, b"IS", text(*(f"{a}\\{b}" for a in _NUMBERS[:6] for b in _NUMBERS[:6])))] if lie(0.2) else []),
        (0x28, 0x100, b"US", short(allocated)),
        (0x28, 0x101, b"US", short(stored)),
        (0x28, 0x102, b"US", short(int(_one(generator, _DEPTHS)) if lie() else stored - 1)),
        (0x28, 0x103, b"US", short(int(_one(generator, (1, 2, 65535)))) if lie() else short(0)),
        *([(0x28, 0x120, b"US", short(int(_one(generator, _SIZES))))] if lie() else []),
        *([(0x28, 0x1050, b"DS", text(*_NUMBERS)), (0x28, 0x1051, b"DS", text(*_NUMBERS))] if lie(0.2) else []),
        *([(0x28, 0x1052, b"DS", text(*_NUMBERS)), (0x28, 0x1053, b"DS", text(*_NUMBERS))] if lie(0.2) else []),
        *([(0x28, 0x3010, b"SQ", _table(generator, implicit, order))] if lie() else []),
        *([(0x28, 0x3000, b"SQ", _table(generator, implicit, order))] if lie(0.03) else []),
        *([(0x40, 0x275, b"SQ", _nested(generator, implicit, order))] if lie() else []),
        *([(0x2050, 0x20, b"CS", text("INVERSE", "IDENTITY", "X"))] if lie() else []),
    ]
    if lie(0.04):
        del fields[int(generator.integers(len(fields)))]
    if lie(0.03):
        fields.append(fields[int(generator.integers(len(fields)))])
    if lie(0.03):
        generator.shuffle(fields)
    body = b"".join(_element(g, e, vr, value, implicit, order) for g, e, vr, value in fields)
    body += _pixel_data(generator, data, syntax, implicit, order, lie)
    if syntax == _SYNTAXES[3]:
        body = _deflated(generator, body)
    meta = _element(2, 2, b"UI", _CLASSES[0].encode(), False, "<") + _element(2, 3, b"UI", b"1.2.3", False, "<")
    meta += _element(2, 0x10, b"UI", syntax.encode(), False, "<") if not lie(0.02) else b""
    length = int(_one(generator, (0, 1, 2**31, 2**32 - 1))) if lie(0.03) else len(meta)
    start = b"\0" * 128 + b"DICM" + _element(2, 0, b"UL", struct.pack("<I", length), False, "<")
    return str(_one(generator, (".dcm", ".dicom", ".ima"))), b"" if lie(0.005) else (
        b"" if lie(0.02) else start + meta
    ) + body


def _uid(generator: Generator) -> bytes:
    return f"2.25.{int(generator.integers(2**60))}".encode()


def _pixel_data(
    generator: Generator, data: bytes, syntax: str, implicit: bool, order: str, lie: Callable[..., bool]
) -> bytes:
    """Native or encapsulated pixels; either may disagree with the transfer syntax."""
    if lie(0.02):
        return b""
    compressed = syntax not in _SYNTAXES[:4] or lie(0.03)
    number = (8, 9)[lie(0.5)] if lie(0.02) else 0x10
    if not compressed:
        length = int(_one(generator, (0, 1, len(data) - 1, 2**31, 2**32 - 2, 2**32 - 1))) if lie() else None
        if lie(0.05):
            data = data[: int(generator.integers(len(data)))]
        return _element(0x7FE0, number, b"OW", data, implicit, order, length)
    frame = _codestream(generator, data)
    if lie():
        frame = frame[: int(generator.integers(len(frame) + 1))]
    cuts = sorted(int(c) for c in generator.integers(0, len(frame) + 1, int(_one(generator, (0, 0, 0, 1, 3, 40)))))
    parts = [frame[a:b] for a, b in zip([0, *cuts], [*cuts, len(frame)], strict=True)]
    offsets = struct.pack("<I", int(_one(generator, (0, 4, 2**31)))) if lie(0.3) else b""
    body = b""
    for part in [offsets, *parts]:
        part += b"\0" * (len(part) % 2)
        body += (
            b"\xfe\xff\x00\xe0"
            + struct.pack("<I", int(_one(generator, (0, 2**32 - 1, 3))) if lie(0.02) else len(part))
            + part
        )
    body += b"" if lie() else b"\xfe\xff\xdd\xe0\0\0\0\0"
    return _element(0x7FE0, 0x10, b"OB", body, implicit, order, 2**32 - 1)


def _codestream(generator: Generator, data: bytes) -> bytes:
    """A frame in any of several codecs, whatever the transfer syntax says."""
    kind = int(generator.integers(4))
    if kind == 0:  # RLE with offsets that lie
        offsets = [64, *(int(_one(generator, (0, 64, 10**6, 2**32 - 1))) for _ in range(14))]
        segments = int(_one(generator, (0, 1, 1, 1, 2, 15, 16, 2**31)))
        return (
            struct.pack("<16I", segments, *offsets)
            + bytes(generator.integers(0, 256, 200, dtype=np.uint8))
            + b"\x81\0" * 100
        )
    if kind == 1:
        return _jpeg(generator)[1]
    image, buffer = Image.fromarray(picture()), io.BytesIO()
    if kind == 2:
        image.save(buffer, format="JPEG2000", irreversible=False)
        stream = bytearray(buffer.getvalue())
        at = stream.find(b"\xff\x51")
        if at > 0 and _sometimes(generator, 0.5):  # SIZ: sizes, offsets, tiles, components
            struct.pack_into(
                ">I", stream, at + 6 + 4 * int(generator.integers(8)), int(_one(generator, (0, 1, 7, 2**16, 2**32 - 1)))
            )
        return bytes(stream)
    return (
        b"\xff\xd8\xff\xf7\x00\x0b"
        + bytes([int(_one(generator, _DEPTHS)) & 255])
        + struct.pack(">HHB", int(_one(generator, _SIZES)), int(_one(generator, _SIZES)), 1)
        + b"\x01\x11\0"
        + b"\xff\xda\x00\x08\x01\x01\0\0\0\0"
        + data[:400]
        + b"\xff\xd9"
    )  # JPEG-LS


def _table(generator: Generator, implicit: bool, order: str) -> bytes:
    """A sequence with a lookup table whose descriptor lies."""
    entries = int(_one(generator, (0, 1, 16, 256, 4096, 65535)))
    descriptor = struct.pack(f"{order}3H", entries, int(_one(generator, (0, 5, 40000))), int(_one(generator, _DEPTHS)))
    table = bytes(int(_one(generator, (0, 2, 512, 2 * entries))))
    item = _element(0x28, 0x3002, b"US", descriptor, implicit, order)
    item += _element(0x28, 0x3006, b"OW" if _sometimes(generator, 0.8) else b"US", table, implicit, order)
    return struct.pack(f"{order}HHI", 0xFFFE, 0xE000, len(item)) + item


def _nested(generator: Generator, implicit: bool, order: str) -> bytes:
    """Sequences inside sequences, of undefined length."""
    depth = int(_one(generator, (1, 5, 50, 400, 3000)))
    inner = b""
    for _ in range(depth):
        item = struct.pack(f"{order}HHI", 0xFFFE, 0xE000, 2**32 - 1)
        inner = item + _element(0x40, 0x275, b"SQ", inner, implicit, order, 2**32 - 1)
        if depth > 1000:
            inner = item * 2000 + inner
            break
    return inner


def _deflated(generator: Generator, body: bytes) -> bytes:
    kind = int(generator.integers(6))
    if kind == 0:
        return _bomb("deflate", generator)
    packer = zlib.compressobj(1, wbits=15 if kind == 1 else -15)
    packed = packer.compress(body) + packer.flush()
    return packed[: int(generator.integers(len(packed)))] if kind == 2 else packed


@functools.cache
def _zeros(mebibytes: int, bits: int) -> bytes:
    packer, block = zlib.compressobj(9, wbits=bits), bytes(2**20)
    return b"".join(packer.compress(block) for _ in range(mebibytes)) + packer.flush()


def _bomb(kind: str, generator: Generator) -> bytes:
    """Zeros that unpack to a thousand times their size."""
    return _zeros(int(_one(generator, (1, 64, 600))), {"deflate": -15, "zlib": 15, "gzip": 31}[kind])


# ---- PNG and JPEG


def _chunk(kind: bytes, data: bytes, generator: Generator, lie: float = 0.02) -> bytes:
    check = zlib.crc32(kind + data)
    length = len(data)
    if _sometimes(generator, lie):
        check ^= 1
    if _sometimes(generator, lie):
        length = int(_one(generator, (0, length - 1, length + 1, 2**31 - 1, 2**32 - 1))) & 0xFFFFFFFF
    return struct.pack(">I", length) + kind + data + struct.pack(">I", check)


def _png(generator: Generator) -> tuple[str, bytes]:
    """A PNG file with a right checksum over wrong fields."""
    lie = lambda share=0.1: _sometimes(generator, share)  # noqa: E731
    width, height = (int(_one(generator, (*_SIZES, 10**6, 2**31 - 1, 2**31))) if lie() else SIDE for _ in range(2))
    depth, colour = (
        (int(_one(generator, (0, 1, 2, 4, 8, 16, 32))), int(_one(generator, (0, 2, 3, 4, 6, 7))))
        if lie(0.3)
        else (8, 0)
    )
    head = struct.pack(">IIBBBBB", width, height, depth, colour, *(int(lie(0.05)) for _ in range(2)), int(lie(0.1)))
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 1)
    rows = np.repeat(picture(), channels * (2 if depth == 16 else 1), axis=1)
    raw = b"".join(bytes([int(generator.integers(6)) if lie(0.01) else 0]) + row.tobytes() for row in rows)
    packed = _bomb("zlib", generator) if lie(0.05) else zlib.compress(raw if not lie(0.1) else raw[: len(raw) // 2], 1)
    parts = [b"\x89PNG\r\n\x1a\n", _chunk(b"IHDR", head, generator)]
    extras: dict[bytes, bytes] = {
        b"PLTE": bytes(3 * int(_one(generator, (0, 1, 256, 300)))),
        b"tRNS": bytes(int(_one(generator, (0, 1, 2, 6, 256)))),
        b"gAMA": struct.pack(">I", int(_one(generator, (0, 1, 45455, 2**31)))),
        b"iCCP": b"profile\0\0" + _bomb("zlib", generator) if lie(0.3) else b"x",
        b"zTXt": b"text\0\0" + _bomb("zlib", generator) if lie(0.3) else b"x",
        b"iTXt": b"text\0\1\0\0\0" + zlib.compress(b"x" * 1000),
        b"eXIf": _exif(generator),
        b"acTL": struct.pack(">II", int(_one(generator, (0, 1, 2, 2**31))), 0),
        b"pHYs": struct.pack(">IIB", 0, 2**32 - 1, 1),
        b"abCd": bytes(10),
        b"ABCD": bytes(10),
    }
    for kind, data in extras.items():
        if lie(0.12):
            parts.append(_chunk(kind, data, generator))
    if lie(0.03):
        parts += [_chunk(b"tEXt", b"k\0v", generator)] * int(_one(generator, (100, 20000)))
    count = int(_one(generator, (1, 1, 2, 300)))
    step = -(-len(packed) // count)
    parts += [_chunk(b"IDAT", packed[at : at + step], generator, 0.02 / count) for at in range(0, len(packed), step)]
    parts.append(b"" if lie(0.05) else _chunk(b"IEND", b"", generator))
    if lie(0.05):
        parts.append(bytes(generator.integers(0, 256, 300, dtype=np.uint8)))
    return ".png", b"".join(parts)


def _exif(generator: Generator) -> bytes:
    orientation = int(_one(generator, (0, 1, 3, 6, 8, 9, 65535)))
    count, offset = int(_one(generator, (0, 1, 1, 500, 65535))), int(_one(generator, (8, 8, 0, 2**31)))
    return b"II*\0" + struct.pack(
        "<IHHHIHHI", offset, count, 0x112, 3, int(_one(generator, (1, 0, 2**31))), orientation, 0, 8
    )


def _jpeg(generator: Generator) -> tuple[str, bytes]:
    """A JPEG file with added, doubled, dropped and lying segments."""
    lie = lambda share=0.1: _sometimes(generator, share)  # noqa: E731
    mode = str(_one(generator, ("L", "L", "RGB", "CMYK", "YCbCr")))
    buffer = io.BytesIO()
    Image.fromarray(picture()).convert(mode).save(
        buffer, format="JPEG", progressive=lie(0.3), quality=int(_one(generator, (5, 75, 100))), optimize=lie(0.2)
    )
    data = buffer.getvalue()
    segments, at = [], 2
    while data[at + 1] != 0xDA:
        length = struct.unpack(">H", data[at + 2 : at + 4])[0]
        segments.append(bytearray(data[at : at + 2 + length]))
        at += 2 + length
    scans = data[at:]
    for segment in segments:
        if segment[1] in (0xC0, 0xC1, 0xC2):
            if lie(0.15):
                struct.pack_into(">H", segment, 5 + 2 * int(generator.integers(2)), int(_one(generator, _SIZES)))
            if lie():
                segment[1] = int(_one(generator, (0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCB)))
            if lie():
                segment[4] = int(_one(generator, (0, 2, 8, 12, 16)))
            if lie():
                segment[9] = int(_one(generator, (0, 1, 2, 4, 255)))
            if lie():
                segment[11 if len(segment) > 11 else -1] = int(_one(generator, (0, 0x11, 0x22, 0x44, 0xFF)))
        elif lie(0.05):
            segment[int(generator.integers(4, len(segment)))] ^= 1 << int(generator.integers(8))
        if lie(0.03):
            struct.pack_into(">H", segment, 2, int(_one(generator, (0, 1, 2, 65535))))
    if lie():
        segments.insert(
            0, bytearray(b"\xff\xe1" + struct.pack(">H", 40) + b"Exif\0\0" + _exif(generator)[:32].ljust(32, b"\0"))
        )
    if lie():
        segments.insert(1, bytearray(b"\xff\xdd\0\4" + struct.pack(">H", int(_one(generator, (0, 1, 3, 65535))))))
    if lie(0.05):
        segments = segments * int(_one(generator, (2, 50)))
    if lie(0.05):
        del segments[int(generator.integers(len(segments)))]
    if lie():
        scans = scans[: int(generator.integers(len(scans)))] + (b"\xff\xd9" if lie(0.5) else b"")
    if lie(0.05):
        scans = scans[:-2] * int(_one(generator, (2, 30))) + b"\xff\xd9"
    return str(_one(generator, (".jpg", ".jpeg"))), b"\xff\xd8" + b"".join(map(bytes, segments)) + scans


# ---- NIfTI, TIFF, BMP, archives


def _nifti(generator: Generator) -> tuple[str, bytes]:
    """A NIfTI-1 file with lying dimensions, types, offsets, scales and forms; sometimes compressed."""
    lie = lambda share=0.08: _sometimes(generator, share)  # noqa: E731
    order = ">" if lie(0.1) else "<"
    code, bits, form = _one(generator, ((2, 8, "u1"), (4, 16, "i2"), (16, 32, "f4"), (64, 64, "f8"), (512, 16, "u2")))  # type: ignore[misc]
    if lie():
        code = int(_one(generator, (0, 1, 32, 128, 1536, 2304, -1, 9999)))
    values = picture().astype(f"{order}{form}")
    if form in ("f4", "f8") and lie(0.3):
        values[int(generator.integers(SIDE)), :] = float(_one(generator, (np.nan, np.inf, 3e38, -3e38, 1e-40)))
        if form == "f8" and lie(0.3):
            values[:2] = [[1.7e308], [-1.7e308]]
    dimensions = [int(_one(generator, (0, 1, 3, 4, 7, 8, -1))) if lie() else 2, SIDE, SIDE, *[1] * 5]
    for index in range(1, 8):
        if lie(0.03):
            dimensions[index] = int(_one(generator, (0, -1, 1, 2, SIDE + 1, 32767)))
    header = bytearray(352)
    struct.pack_into(f"{order}i", header, 0, int(_one(generator, (0, 540, -1))) if lie(0.02) else 348)
    struct.pack_into(f"{order}8h", header, 40, *dimensions)
    struct.pack_into(f"{order}hh", header, 70, code, int(_one(generator, _DEPTHS)) if lie() else bits)
    struct.pack_into(
        f"{order}8f",
        header,
        76,
        *(float(_one(generator, (0, -1, 1e30, np.nan))) if lie(0.03) else 1.0 for _ in range(8)),
    )
    struct.pack_into(
        f"{order}f", header, 108, float(_one(generator, (0, 1, 348, 353, 1e9, -1, np.nan, np.inf))) if lie() else 352.0
    )
    for at in (112, 116):
        if lie():
            struct.pack_into(f"{order}f", header, at, float(_one(generator, (0, 1, -1, 3e38, np.nan, np.inf, 1e-40))))
    struct.pack_into(
        f"{order}hh", header, 252, *(int(_one(generator, (-1, 0, 1, 2, 9))) if lie(0.3) else 0 for _ in range(2))
    )
    for at in range(256, 328, 4):
        if lie(0.1):
            struct.pack_into(f"{order}f", header, at, float(_one(generator, (0, 1, -1, 1e30, np.nan))))
    header[344:348] = bytes(_one(generator, (b"ni1\0", b"n+2\0", b"\0\0\0\0"))) if lie(0.03) else b"n+1\0"  # type: ignore[arg-type]
    if lie():
        header[348] = 1  # extensions follow
    data = bytes(header) + values.tobytes()
    if lie():
        data = data[: int(generator.integers(len(data)))]
    if lie(0.4):
        packed = gzip.compress(data, 1, mtime=0)
        kind = int(generator.integers(6))
        packed = _gzip_lie(kind, packed, bytes(header), generator)
        return ".nii.gz", packed
    return ".nii", data


def _gzip_lie(kind: int, packed: bytes, header: bytes, generator: Generator) -> bytes:
    if kind == 0:
        return packed[: int(generator.integers(len(packed)))]
    if kind == 1:
        return gzip.compress(header, 1, mtime=0) + _bomb("gzip", generator)  # zeros in the place of the pixels
    if kind == 2:
        return packed[:-8] + bytes(8)  # wrong checksum and size
    if kind == 3:
        return gzip.compress(packed, 1, mtime=0)
    return packed


def _tiff(generator: Generator) -> tuple[str, bytes]:
    """A TIFF file whose directory lies, or leads in circles."""
    lie = lambda share=0.1: _sometimes(generator, share)  # noqa: E731
    order = ">" if lie(0.3) else "<"
    deep = lie(0.4)
    pixels = (picture().astype(f"{order}u2") * 257).tobytes() if deep else picture().tobytes()
    compression = int(_one(generator, (2, 5, 7, 8, 32773, 50000))) if lie() else 1
    tags = {
        256: int(_one(generator, (*_SIZES, 2**32 - 1))) if lie() else SIDE,
        257: int(_one(generator, (*_SIZES, 2**32 - 1))) if lie() else SIDE,
        258: int(_one(generator, _DEPTHS)) if lie() else 16 if deep else 8,
        259: compression,
        262: int(_one(generator, (0, 2, 3, 6, 99))) if lie() else 1,
        273: int(_one(generator, (0, 7, 2**31, 2**32 - 1))) if lie() else 200,
        274: int(_one(generator, (0, 3, 6, 9))) if lie() else 1,
        277: int(_one(generator, (0, 2, 3, 4, 65535))) if lie() else 1,
        278: int(_one(generator, (0, 1, 2**32 - 1))) if lie() else SIDE,
        279: int(_one(generator, (0, 1, 2**31, 2**32 - 1))) if lie() else len(pixels),
        **({339: int(_one(generator, (0, 2, 3, 4, 9)))} if lie() else {}),
        **({317: int(_one(generator, (2, 3, 9)))} if lie() else {}),
    }
    if lie(0.05):
        del tags[int(_one(generator, tuple(tags)))]
    entries = b"".join(
        struct.pack(
            f"{order}HHII",
            tag,
            int(_one(generator, (0, 1, 2, 5, 12, 99))) if lie(0.02) else 4,
            2**31 if lie(0.02) else 1,
            value,
        )
        for tag, value in tags.items()
    )
    following = int(_one(generator, (8, 9, 2**31))) if lie() else 0
    head = (b"MM" if order == ">" else b"II") + struct.pack(
        f"{order}HI", 43 if lie(0.05) else 42, 8 if not lie(0.03) else 2**31
    )
    data = (
        head
        + struct.pack(f"{order}H", 65535 if lie(0.03) else len(tags))
        + entries
        + struct.pack(f"{order}I", following)
    )
    return str(_one(generator, (".tif", ".tiff"))), data.ljust(200, b"\0") + pixels


def _bmp(generator: Generator) -> tuple[str, bytes]:
    lie = lambda share=0.12: _sometimes(generator, share)  # noqa: E731
    sides = [int(_one(generator, (*_SIZES, -SIDE, -(2**31), 2**31 - 1))) if lie() else SIDE for _ in range(2)]
    bits = int(_one(generator, (0, 1, 4, 16, 24, 32, 64))) if lie() else 8
    head = struct.pack(
        "<IiiHHIIiiII", int(_one(generator, (0, 12, 64, 124, 2**31))) if lie() else 40, *sides, 1, bits,
        int(_one(generator, (1, 2, 3, 4, 5, 99))) if lie() else 0, 0, 0, 0,
        int(_one(generator, (0, 1, 2**31))) if lie() else 256, 0,
    )  # fmt: skip
    palette = b"".join(bytes([i, i, i, 0]) for i in range(256))
    offset = int(_one(generator, (0, 14, 2**31))) if lie() else 14 + 40 + 1024
    data = (
        b"BM"
        + struct.pack("<IHHI", int(_one(generator, (0, 2**31))) if lie() else 10**4, 0, 0, offset)
        + head
        + palette
    )
    return ".bmp", data + picture()[::-1].tobytes()[: None if not lie() else 500]


def _archive(generator: Generator) -> tuple[str, bytes]:
    """Something else under the name of an image: archives, text, a page, an object of another program."""
    buffer, suffix = io.BytesIO(), str(_one(generator, (".png", ".jpg", ".dcm", ".nii", ".nii.gz", "")))
    kind = int(generator.integers(7))
    if kind == 0:
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in ("a.png", "../../b.png", "/etc/c.png", "=1.png"):
                archive.writestr(zipfile.ZipInfo(name), picture().tobytes())
    elif kind == 1:
        plain = io.BytesIO()
        with tarfile.open(fileobj=plain, mode="w") as archive:
            info = tarfile.TarInfo("../a.png")
            info.size = 100
            archive.addfile(info, io.BytesIO(bytes(100)))
        buffer.write(gzip.compress(plain.getvalue(), 1, mtime=0))
    elif kind == 2:
        buffer.write(b"<!doctype html><img src=a.png>")
    elif kind == 3:
        buffer.write(b"\x80\x04\x95" + b"c__builtin__\neval\n")
    elif kind == 4:
        buffer.write(_bomb("gzip", generator))
    elif kind == 5:
        buffer.write(b"\x93NUMPY\x01\0" + b"v\0{'descr': '|O', 'fortran_order': False, 'shape': (2,)}")
    else:
        buffer.write(
            bytes(generator.integers(0, 256, int(_one(generator, (0, 1, 2, 131, 132, 600, 5000))), dtype=np.uint8))
        )
    return suffix, buffer.getvalue()


_KINDS = (_dicom, _png, _jpeg, _nifti, _tiff, _bmp, _archive)
_SHARES = (0.36, 0.18, 0.12, 0.14, 0.08, 0.04, 0.08)
