"""DICOM pixels to stored values: which library decodes what, and what is checked before it may.

Lossy JPEG and JPEG 2000 may decode to slightly different numbers in different libraries, so the order of the libraries is
fixed here and never left to what happens to be installed first; the preferred ones come with the package.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pydicom
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
from monai_wscxr.data.radiograph.codestream import frame_size
from monai_wscxr.data.radiograph.pydicom_versions import available_plugins, decoded, first_frame

# syntax -> plugins of pydicom in the order in which they are asked, and what to install when there is none
_JPEG_EXTRA, _JPEG12_EXTRA = "monai-wscxr[dicom-jpeg]", "monai-wscxr[dicom-jpeg12]"


_DECODERS: dict[str, tuple[tuple[str, ...], str]] = {
    "1.2.840.10008.1.2.4.50": (("pillow", "gdcm", "pylibjpeg"), "pillow"),  # JPEG baseline
    "1.2.840.10008.1.2.4.51": (("pillow", "gdcm", "pylibjpeg"), "pillow"),  # JPEG extended of 8 bit; 12 bit: see below
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


def installed_decoders() -> dict[str, str]:
    """For each compressed transfer syntax by name: the library that decodes it here, or what to install."""
    found = {}
    for uid, (wanted, package) in _DECODERS.items():
        syntax = UID(uid)
        plugin = next((name for name in wanted if name in available_plugins(syntax)), None)
        if syntax == JPEGExtended12Bit and "pylibjpeg" not in available_plugins(syntax):
            plugin, package = None, f"{_JPEG12_EXTRA} for 12 bits"
        found[syntax.name] = plugin or f"missing: pip install {package}"
    return found


def decode(path: Any, ds: Any) -> np.ndarray:
    """Stored values ``[H, W]``, from the library that `_DECODERS` prefers."""
    plugin = _choose_decoder(path, ds)
    if plugin and ds.file_meta.TransferSyntaxUID != RLELossless:
        _check_codestream(path, ds)
    stored = decoded(ds, plugin)
    if stored.shape != (ds.Rows, ds.Columns):
        message = (
            f"decoding gave {' x '.join(map(str, stored.shape))} values where the header says {ds.Columns} x {ds.Rows}."
        )
        raise RadiographError("not_a_projection" if stored.ndim != 2 else "unreadable", path, message)
    return stored


def _check_codestream(path: Any, ds: Any) -> None:
    """Refuses compressed pixels that claim another size than the header, before a decoder believes them."""
    try:
        found = frame_size(first_frame(ds.PixelData))
    except (ValueError, struct.error) as error:
        message = "the compressed pixels are damaged or not in the announced format. Export it again."
        raise RadiographError("unreadable", path, message) from error
    if found != (int(ds.Rows), int(ds.Columns), 1):
        message = (
            f"the header says {ds.Columns} x {ds.Rows} pixels of 1 sample, the compressed data {found.columns} x "
            f"{found.rows} of {found.samples}. Export it again."
        )
        raise RadiographError("unreadable", path, message)


def check_deflated(path: Any, content: bytes, max_pixels: int) -> None:
    """A deflated data set is unpacked as a whole by pydicom, so its size is measured first, without keeping it."""
    file = io.BytesIO(content)
    file.seek(132 if content[128:132] == b"DICM" else 0)
    # The same walk as pydicom's own, which trusts no group length: it ends where the data set begins.
    meta: Any = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    inflater, total, limit = zlib.decompressobj(-zlib.MAX_WBITS), 0, 4 * max_pixels + 2**24
    data = file.read(2**20)
    while data and not inflater.eof:
        total += len(inflater.decompress(data, 2**20))
        if total > limit:
            raise RadiographError("too_large", path, f"it inflates to more than {limit} bytes. Export it smaller.")
        data = inflater.unconsumed_tail or file.read(2**20)


def _choose_decoder(path: Any, ds: Any) -> str:
    """Name of the plugin that decodes; empty for native pixels. Completes a missing transfer syntax."""
    if getattr(ds, "file_meta", None) is None:
        ds.file_meta = pydicom.dataset.FileMetaDataset()
    if "TransferSyntaxUID" not in ds.file_meta:  # a bare data set can only be native
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
            raise RadiographError("missing_decoder", path, message)
        return plugin
    if syntax not in (
        ImplicitVRLittleEndian,
        ExplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
    ):
        name = syntax.name if syntax.is_transfer_syntax and not syntax.is_private else "its transfer syntax"
        message = f"there is no decoder for {name}. Export it as Explicit VR Little Endian."
        raise RadiographError("missing_decoder", path, message)
    return ""
