"""DICOM pixel data to stored values: the library for each compression, and the checks before it runs.

Libraries may decode lossy JPEG and JPEG 2000 to slightly different numbers. So the order of preference is fixed here and does
not depend on which library was installed first; the preferred ones are dependencies of the package.
"""

from __future__ import annotations

import copy
import io
import struct
import zlib
from typing import Any

import numpy as np
import pydicom
from pydicom.encaps import encapsulate
from pydicom.filereader import read_dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
    RLELossless,
)

from monai_wscxr.data.radiograph.base import RadiographError
from monai_wscxr.data.radiograph.codestream import frame_size, tile_count
from monai_wscxr.data.radiograph.entries import whole_number
from monai_wscxr.data.radiograph.pydicom_versions import available_plugins, decoded, first_frame
from monai_wscxr.data.radiograph.whole import check_jpeg, check_jpeg_2000

_JPEG_EXTRA, _JPEG12_EXTRA = "monai-wscxr[dicom-jpeg]", "monai-wscxr[dicom-jpeg12]"

# transfer syntax -> plugins of pydicom in order of preference, and the package to install when there is none
_DECODERS: dict[str, tuple[tuple[str, ...], str]] = {
    "1.2.840.10008.1.2.4.50": (("pillow", "gdcm", "pylibjpeg"), "pillow"),  # JPEG baseline
    "1.2.840.10008.1.2.4.51": (
        ("pillow", "gdcm", "pylibjpeg"),
        "pillow",
    ),  # JPEG extended; for 12 bits see `_choose_decoder`
    "1.2.840.10008.1.2.4.57": (("gdcm", "pylibjpeg"), _JPEG_EXTRA),  # JPEG lossless
    "1.2.840.10008.1.2.4.70": (("gdcm", "pylibjpeg"), _JPEG_EXTRA),
    "1.2.840.10008.1.2.4.80": (("pyjpegls", "gdcm", "pylibjpeg"), "pyjpegls"),  # JPEG-LS
    "1.2.840.10008.1.2.4.81": (("pyjpegls", "gdcm", "pylibjpeg"), "pyjpegls"),
    "1.2.840.10008.1.2.4.90": (("pylibjpeg", "gdcm", "pillow"), "pylibjpeg-openjpeg"),  # JPEG 2000
    "1.2.840.10008.1.2.4.91": (("pylibjpeg", "gdcm", "pillow"), "pylibjpeg-openjpeg"),
    "1.2.840.10008.1.2.4.201": (("pylibjpeg",), "pylibjpeg-openjpeg"),  # high-throughput JPEG 2000
    "1.2.840.10008.1.2.4.202": (("pylibjpeg",), "pylibjpeg-openjpeg"),
    "1.2.840.10008.1.2.4.203": (("pylibjpeg",), "pylibjpeg-openjpeg"),
    str(RLELossless): (("pydicom", "pylibjpeg", "gdcm"), "pydicom"),
}


_JPEG = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70))
_JPEG_2000 = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (90, 91, 201, 202, 203))


def installed_decoders() -> dict[str, str]:
    """Return, by name of each compressed transfer syntax, the library that decodes it here or the package to install."""
    found = {}
    for uid, (wanted, package) in _DECODERS.items():
        syntax = UID(uid)
        plugin = next((name for name in wanted if name in available_plugins(syntax)), None)
        if syntax == JPEGExtended12Bit and "pylibjpeg" not in available_plugins(syntax):
            plugin, package = None, f"{_JPEG12_EXTRA} for 12 bits"
        found[syntax.name] = plugin or f"missing: pip install {package}"
    return found


def decodable_syntaxes() -> list[str]:
    """Return the UIDs of the compressed transfer syntaxes that can be decoded here."""
    return [uid for uid, (wanted, _) in _DECODERS.items() if set(wanted) & set(available_plugins(UID(uid)))]


def decode(ds: Any) -> np.ndarray:
    """Decode the pixel data of a data set with the preferred library.

    Args:
        ds: data set of one grey frame; a missing transfer syntax is filled in.

    Returns:
        Stored values [H, W], integer or floating point.

    Raises:
        RadiographError: "missing_decoder", "unreadable" or "not_a_projection".
    """
    plugin = _choose_decoder(ds)
    compressed = bool(plugin) and ds.file_meta.TransferSyntaxUID != RLELossless
    if not plugin:
        _check_length(ds)
    if compressed:
        _check_codestream(ds)
    stored = decoded(ds, plugin)
    if stored.shape != (ds.Rows, ds.Columns):
        message = (
            f"decoding gave {' x '.join(map(str, stored.shape))} values where the header says {ds.Columns} x {ds.Rows}."
        )
        raise RadiographError("not_a_projection" if stored.ndim != 2 else "unreadable", message)
    if compressed:
        _check_whole(ds, stored, plugin)
    return stored


def _check_length(ds: Any) -> None:
    """Check that the native pixel data have the length that the header claims; up to one byte per value more is tolerated."""
    if "PixelData" not in ds:
        return
    allocated = whole_number(ds, "BitsAllocated", 0)
    expected = -(-int(ds.Rows) * int(ds.Columns) * allocated // 8)
    found = len(ds.PixelData)
    if found < expected:
        raise RadiographError(
            "unreadable",
            f"the header claims {expected} bytes of pixels ({ds.Columns} x {ds.Rows} of {allocated} bits), the file has "
            f"{found}: it is truncated, or BitsAllocated is wrong. Copy or export it again.",
        )
    if found >= 2 * expected and found > expected + 1:
        raise RadiographError(
            "bits_disagree",
            f"the header claims {expected} bytes of pixels ({ds.Columns} x {ds.Rows} of {allocated} bits), the file has "
            f"{found}: BitsAllocated, Rows, Columns or NumberOfFrames is wrong. Correct the header, or export the image again.",
        )


def _check_whole(ds: Any, stored: np.ndarray, plugin: str) -> None:
    """Check that the compressed pixels are complete; the decoders of JPEG-LS and RLE check this themselves."""
    frame = first_frame(ds.PixelData)
    kind = str(ds.file_meta.TransferSyntaxUID)

    def decode_again(data: bytes) -> np.ndarray:
        other = copy.copy(ds)
        other.PixelData = encapsulate([data])
        other["PixelData"].is_undefined_length = True
        return decoded(other, plugin)

    try:
        if kind in _JPEG:
            check_jpeg(frame, stored, decode_again)
        elif kind in _JPEG_2000:
            check_jpeg_2000(frame, tile_count(frame))
    except (ValueError, struct.error) as error:
        if isinstance(error, RadiographError):
            raise
        raise RadiographError("unreadable", "the compressed pixels are damaged. Copy or export it again.") from error


def _check_codestream(ds: Any) -> None:
    """Check that the compressed data claim the size of the header, before a decoder allocates memory for them."""
    try:
        found = frame_size(first_frame(ds.PixelData))
    except (ValueError, struct.error) as error:
        message = "the compressed pixels are damaged or in another format than the header names. Export it again."
        raise RadiographError("unreadable", message) from error
    if found != (int(ds.Rows), int(ds.Columns), 1):
        message = (
            f"the header says {ds.Columns} x {ds.Rows} pixels of 1 sample, the compressed data {found.columns} x "
            f"{found.rows} of {found.samples}. Export it again."
        )
        raise RadiographError("unreadable", message)


def check_deflated(content: bytes, max_pixels: int) -> None:
    """Check the inflated size of a deflated data set, which pydicom would unpack as a whole.

    Args:
        content: bytes of the file; other transfer syntaxes pass.
        max_pixels: 4 bytes for each, and 16 MiB for the header, are allowed.

    Raises:
        RadiographError: "too_large".
    """
    file = io.BytesIO(content)
    file.seek(132 if content[128:132] == b"DICM" else 0)
    # Like pydicom itself, do not trust the group length: the meta group ends at the first tag of another group.
    meta: Any = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    inflater, total, limit = zlib.decompressobj(-zlib.MAX_WBITS), 0, 4 * max_pixels + 2**24
    data = file.read(2**20)
    while data and not inflater.eof:
        total += len(inflater.decompress(data, 2**20))
        if total > limit:
            raise RadiographError("too_large", f"it inflates to more than {limit} bytes. Export it smaller.")
        data = inflater.unconsumed_tail or file.read(2**20)


def _choose_decoder(ds: Any) -> str:
    """Return the name of the plugin that decodes, empty for native pixels, and fill in a missing transfer syntax."""
    if getattr(ds, "file_meta", None) is None:
        ds.file_meta = pydicom.dataset.FileMetaDataset()
    if "TransferSyntaxUID" not in ds.file_meta:  # a data set without meta group is not compressed
        implicit, little = ds.original_encoding
        ds.file_meta.TransferSyntaxUID = (
            (ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian) if little else ExplicitVRBigEndian
        )
    syntax = ds.file_meta.TransferSyntaxUID
    if str(syntax) in _DECODERS:
        wanted, package = _DECODERS[str(syntax)]
        if syntax == JPEGExtended12Bit and int(ds.BitsAllocated) > 8:
            wanted, package = ("pylibjpeg",), _JPEG12_EXTRA
        plugin = next((name for name in wanted if name in available_plugins(syntax)), None)
        if plugin is None:
            message = f"no decoder for {syntax.name} is installed. Install one with: pip install {package}"
            raise RadiographError("missing_decoder", message)
        return plugin
    if syntax not in (
        ImplicitVRLittleEndian,
        ExplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
    ):
        name = syntax.name if syntax.is_transfer_syntax and not syntax.is_private else "its transfer syntax"
        message = f"there is no decoder for {name}. Export it as Explicit VR Little Endian."
        raise RadiographError("missing_decoder", message)
    return ""
