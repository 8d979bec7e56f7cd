"""Seed files and mutations for fuzzing the loader: whole and cropped radiographs in every format, broken in many ways.

All random choices follow from one seed, so every failure can be reproduced.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import nibabel as nib
import numpy as np
import pydicom
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

Generator = np.random.Generator
SIDE = 150  # pixels of the cropped seeds, enough for the polarity gate
_SIZES = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel")
_EXTREMES = (0, 1, 2, 7, 8, 9, 16, 31, 255, 256, 4096, 32767, 32768, 65535)


def large_seeds() -> dict[str, bytes]:
    """Return RG1 and RG3 of pydicom-data unchanged, 0.2 to 7 MB each."""
    names = [f"{body}_{kind}.dcm" for body in ("RG1", "RG3") for kind in ("UNCR", "UNCI", "J2KR", "J2KI")]
    paths = {name: get_testdata_file(name, download=False) for name in names}
    return {name: open(path, "rb").read() for name, path in paths.items() if path}


def small_seeds() -> dict[str, bytes]:
    """Return crops of RG1 and RG3 in many transfer syntaxes, and of RG3 as PNG, JPEG and NIfTI."""
    seeds: dict[str, bytes] = {}
    for body in ("RG1", "RG3"):
        path = get_testdata_file(f"{body}_UNCR.dcm", download=False)
        if path is None:
            continue
        ds = pydicom.dcmread(path)
        pixels = np.ascontiguousarray(ds.pixel_array[::12, ::12][:SIDE, :SIDE])
        for syntax in (
            ExplicitVRLittleEndian,
            ImplicitVRLittleEndian,
            ExplicitVRBigEndian,
            DeflatedExplicitVRLittleEndian,
            RLELossless,
            JPEGLSLossless,
            JPEG2000Lossless,
            JPEGBaseline8Bit,
        ):
            seeds[f"{body}-{syntax.keyword}.dcm"] = _crop(ds, pixels, syntax)
    grey = np.clip(pixels / pixels.max() * 255, 0, 255).astype(np.uint8)
    seeds.update(_pictures(grey))
    seeds.update(_niftis(grey))
    return seeds


def _crop(ds: pydicom.Dataset, pixels: np.ndarray, syntax: pydicom.uid.UID) -> bytes:
    made = pydicom.dcmread(io.BytesIO(_saved(ds)))
    made.Rows, made.Columns = pixels.shape
    made.PixelData = pixels.tobytes()
    if syntax == JPEGBaseline8Bit:
        made.BitsAllocated = made.BitsStored = 8
        made.HighBit = 7
        buffer = io.BytesIO()
        Image.fromarray((pixels >> (ds.BitsStored - 8)).astype(np.uint8)).save(buffer, format="JPEG")
        made.PixelData = encapsulate([buffer.getvalue()])
        made["PixelData"].VR, made["PixelData"].is_undefined_length = "OB", True
        made.file_meta.TransferSyntaxUID = syntax
    elif syntax.is_compressed and syntax != DeflatedExplicitVRLittleEndian:
        made.compress(syntax, generate_instance_uid=False)
    else:
        if syntax == ExplicitVRBigEndian:
            made.PixelData = pixels.byteswap().tobytes()
        made.file_meta.TransferSyntaxUID = syntax
    buffer = io.BytesIO()
    little = syntax != ExplicitVRBigEndian
    pydicom.dcmwrite(buffer, made, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=little)
    return buffer.getvalue()


def _saved(ds: pydicom.Dataset) -> bytes:
    buffer = io.BytesIO()
    ds.save_as(buffer)
    return buffer.getvalue()


def _pictures(grey: np.ndarray) -> dict[str, bytes]:
    image = Image.fromarray(grey)
    wanted = {
        "grey.png": (image, "PNG", {}),
        "deep.png": (Image.fromarray(grey.astype(np.uint16) * 257), "PNG", {}),
        "palette.png": (image.convert("P"), "PNG", {}),
        "alpha.png": (image.convert("RGBA"), "PNG", {}),
        "grey.jpg": (image, "JPEG", {}),
        "progressive.jpg": (image.convert("RGB"), "JPEG", {"progressive": True}),
        "cmyk.jpg": (image.convert("CMYK"), "JPEG", {}),
    }
    made = {}
    for name, (picture, kind, options) in wanted.items():
        buffer = io.BytesIO()
        picture.save(buffer, format=kind, **options)
        made[name] = buffer.getvalue()
    return made


def _niftis(grey: np.ndarray) -> dict[str, bytes]:
    one = nib.Nifti1Image(grey.T[..., None], np.eye(4)).to_bytes()
    two = nib.Nifti2Image(grey.T.astype(np.float32), np.eye(4)).to_bytes()
    packer = zlib.compressobj(wbits=31)
    return {"one.nii": one, "two.nii": two, "packed.nii.gz": packer.compress(one) + packer.flush()}


def mutate(data: bytes, name: str, generator: Generator) -> bytes:
    """Return a broken version of a file."""
    ways: list[Callable[[bytearray, str, Generator], bytes]] = [_flip, _flip_head, _blot, _cut, _splice, _lie, _lie]
    result = ways[int(generator.integers(len(ways)))](bytearray(data), name, generator)
    if generator.random() < 0.15:
        result = ways[int(generator.integers(len(ways)))](bytearray(result), name, generator)
    return result


def _flip(data: bytearray, name: str, generator: Generator) -> bytes:
    for _ in range(int(generator.integers(1, 33))):
        if data:
            data[int(generator.integers(len(data)))] ^= 1 << int(generator.integers(8))
    return bytes(data)


def _flip_head(data: bytearray, name: str, generator: Generator) -> bytes:
    for _ in range(int(generator.integers(1, 9))):
        if data:
            data[int(generator.integers(min(len(data), 2500)))] = int(generator.integers(256))
    return bytes(data)


def _blot(data: bytearray, name: str, generator: Generator) -> bytes:
    start = int(generator.integers(max(1, len(data))))
    length = int(2 ** generator.uniform(0, 14))
    data[start : start + length] = bytes([int(generator.choice([0, 255, 127, 128]))]) * len(
        data[start : start + length]
    )
    return bytes(data)


def _cut(data: bytearray, name: str, generator: Generator) -> bytes:
    if generator.random() < 0.4:
        return bytes(data[: int(generator.integers(min(len(data), 3000) + 1))])
    return bytes(data[: int(generator.integers(len(data) + 1))])


def _splice(data: bytearray, name: str, generator: Generator) -> bytes:
    start, length = int(generator.integers(max(1, len(data)))), int(2 ** generator.uniform(0, 12))
    chunk = data[start : start + length]
    where = int(generator.integers(len(data) + 1))
    if generator.random() < 0.5:
        return bytes(data[:where] + chunk + data[where:])
    return bytes(data[:start] + data[start + length :])


def _lie(data: bytearray, name: str, generator: Generator) -> bytes:
    """Change sizes, depths, lengths or offsets in the header."""
    if len(data) < 400:
        return bytes(data)
    if name.endswith(".png"):
        return _lie_png(data, generator)
    if name.endswith(".jpg"):
        return _lie_at(data, [m + 5 for m in _markers(data, b"\xff\xc0", b"\xff\xc2")], ">H", generator)
    if name.endswith(".nii"):
        places = [40 + 2 * i for i in range(9)] if data[344:347] == b"n+1" else [16 + 8 * i for i in range(9)]
        form = "<h" if data[344:347] == b"n+1" else "<q"
        if generator.random() < 0.3:
            spot, value = (
                int(generator.choice([108, 112, 116, 168, 176])),
                generator.choice([np.nan, np.inf, -1, 1e30, 0]),
            )
            struct.pack_into("<f", data, spot, float(value))
            return bytes(data)
        return _lie_at(data, places, form, generator)
    if name.endswith(".dcm"):
        return _lie_dicom(data, generator)
    return _flip_head(data, name, generator)


def _lie_png(data: bytearray, generator: Generator) -> bytes:
    width, height = (int(generator.choice([0, 1, 149, 151, 10000, 2**16, 2**31 - 1])) for _ in range(2))
    which = int(generator.integers(3))
    if which < 2:
        struct.pack_into(">I", data, 16 + 4 * which, (width, height)[which])
    else:
        data[24], data[25] = int(generator.choice([1, 2, 4, 8, 16, 32])), int(generator.choice([0, 2, 3, 4, 6, 7]))
    struct.pack_into(">I", data, 29, zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def _lie_dicom(data: bytearray, generator: Generator) -> bytes:
    name = str(generator.choice(_SIZES))
    tag = pydicom.datadict.tag_for_keyword(name)
    order = ">" if b"1.2.840.10008.1.2.2\0" in bytes(data[:600]) else "<"
    needle = struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF)
    places = [at + 8 for at in _markers(data[:8000], needle)]
    if generator.random() < 0.3:  # the size inside JPEG 2000, JPEG or JPEG-LS, or of an item
        inside = [at + 4 + 4 * int(generator.integers(1, 9)) for at in _markers(data, b"\xff\x4f\xff\x51")]
        if inside:
            return _lie_at(data, inside, ">I", generator)
        inside = [at + 5 for at in _markers(data, b"\xff\xf7\x00", b"\xff\xc0\x00")]
        inside = inside or [at + 4 for at in _markers(data, b"\xfe\xff\x00\xe0")]
        return _lie_at(data, inside or places, ">H" if inside else f"{order}H", generator)
    if generator.random() < 0.5 and name in ("Rows", "Columns"):  # both at once claim gigabytes
        for keyword in ("Rows", "Columns"):
            other = pydicom.datadict.tag_for_keyword(keyword)
            for at in _markers(data[:8000], struct.pack(f"{order}HH", other >> 16, other & 0xFFFF)):
                struct.pack_into(f"{order}H", data, at + 8, int(generator.choice([65535, 8192, 8191, 1, 0])))
        return bytes(data)
    return _lie_at(data, places, f"{order}H", generator)


def _lie_at(data: bytearray, places: list[int], form: str, generator: Generator) -> bytes:
    places = [at for at in places if 0 <= at <= len(data) - struct.calcsize(form)]
    if places:
        value = int(generator.choice(_EXTREMES))
        if form in ("<h", ">h"):
            value = value - 65536 if value > 32767 else value
        struct.pack_into(form, data, places[int(generator.integers(len(places)))], value)
    return bytes(data)


def _markers(data: bytes | bytearray, *needles: bytes) -> list[int]:
    found = []
    for needle in needles:
        at = data.find(needle)
        while at >= 0 and len(found) < 50:
            found.append(at)
            at = data.find(needle, at + 1)
    return found
