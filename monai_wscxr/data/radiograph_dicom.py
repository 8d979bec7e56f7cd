"""DICOM to a radiograph.

DICOM polarity. MONOCHROME1 is inverted, whatever PresentationLUTShape says; MONOCHROME2 is inverted when
PresentationLUTShape is INVERSE. MONOCHROME1 normally comes *with* INVERSE, and both mean the same single inversion. A
Presentation LUT Sequence is not applied.

Modality. A file that names one must name one of :data:`PROJECTION_MODALITIES`. A slice of a CT or MR volume, a sonogram
or a photograph is a single grey frame as well, and nothing but this entry tells it from a radiograph. Mammograms and
dental X-rays are refused too. A file without a modality, or with an empty one, is read.

Decoders. Lossy JPEG and JPEG 2000 may decode to slightly different numbers in different libraries, so the order of the
libraries is fixed here and never left to what happens to be installed first; the preferred ones come with the package.

Messages quote from the header only numbers and defined terms of the standard: any other text could be a patient's.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Collection
from pathlib import Path
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

from monai_wscxr.data import radiograph_gates
from monai_wscxr.data.codestream import frame_size
from monai_wscxr.data.pydicom_decoding import available_plugins, decoded, first_frame
from monai_wscxr.data.radiograph_base import (
    Radiograph,
    RadiographError,
    check_bytes,
    check_finite,
    check_size,
    no_contrast,
    own_float64,
    stretch,
    unit,
)

PROJECTION_MODALITIES = (
    "CR",  # computed radiography
    "DX",  # digital radiography
    "DR",  # not in the standard, but written by some for DX
    "RG",  # scanned film
    "RF",  # fluoroscopy
    "XA",  # angiography units take plain exposures too
    "OT",  # other: what Secondary Capture and converters write
)
"""Values of Modality (0008,0060) that may be a chest radiograph."""

_OTHER_MODALITIES = frozenset(
    ("CT", "MR", "PT", "NM", "US", "MG", "IO", "PX", "XC", "SC", "ES", "GM", "SM", "OP", "OPT")
)
_MEANINGS = {"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR", "MONOCHROME1", "MONOCHROME2"}

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
_HEADER_TAGS = [
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "NumberOfFrames",
    "PhotometricInterpretation",
    "BitsAllocated",
    "Modality",
    *radiograph_gates.HEADER_TAGS,
]


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


def is_bare_dicom(head: bytes) -> bool:
    """DICOM without preamble: the data set opens with group 2 or 8 and a known VR or a short length."""
    if len(head) < 8 or head[:2] not in (b"\x08\x00", b"\x02\x00", b"\x00\x08"):
        return False
    explicit = head[4:6] in (b"UL", b"CS", b"UI", b"OB", b"DA", b"TM", b"LO", b"SH", b"US", b"SQ")
    return explicit or (head[0] != 0 and int.from_bytes(head[4:8], "little") <= 64)


def read_dicom(path: Any, kind: str, max_pixels: int, allow: Collection[str] = ()) -> Radiograph:
    """Reads a file whose content is DICOM; `radiograph.read_radiograph` turns what libraries throw."""
    check_bytes(path, max_pixels)
    # From memory, where reading ends at the last byte: from a file, an element that claims 4 GiB would allocate them first.
    content = Path(path).read_bytes()
    _check_deflated(path, content, max_pixels)
    header = pydicom.dcmread(io.BytesIO(content), force=True, stop_before_pixels=True, specific_tags=list(_HEADER_TAGS))
    _check_header(path, header, max_pixels)
    radiograph_gates.check_header(path, header, allow)
    ds = pydicom.dcmread(io.BytesIO(content), force=True)
    del content
    _check_header(path, ds, max_pixels)  # the whole file may hold an entry twice, and the later one wins
    stored = _decode(path, ds)
    ds.PixelData = None  # half of the memory is not needed any more
    check_finite(path, stored)
    padding = _padding(ds, stored)
    values = _modality(ds, _used_bits(ds, stored))
    check_finite(path, values)
    valid = values if padding is None else values[~padding]
    if valid.size == 0:
        raise no_contrast(path)
    image, intensity = _voi(ds, path, values, valid)
    inverted = ds.PhotometricInterpretation == "MONOCHROME1" or ds.get("PresentationLUTShape") == "INVERSE"
    if inverted:
        image = np.float32(1) - image
    shown = image if padding is None else image[~padding]
    if shown.min() == shown.max():  # a window that misses all values; padding would pass for contrast
        raise no_contrast(path)
    if padding is not None:
        image[padding] = 0
    return Radiograph(image, kind, "inverted" if inverted else "as_stored", intensity, padding)


def _decode(path: Any, ds: Any) -> np.ndarray:
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


def _check_deflated(path: Any, content: bytes, max_pixels: int) -> None:
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


def _check_header(path: Any, header: Any, max_pixels: int) -> None:
    """Refuses what is no grey single-frame projection, or too large, by the header alone."""
    if "Rows" not in header and "Columns" not in header:
        message = "this DICOM object holds no image (a report, a directory, ...). Give the image itself."
        raise RadiographError("not_a_projection", path, message)
    modality = str(header.get("Modality") or "").strip()
    if modality and modality.upper() not in PROJECTION_MODALITIES:
        raise RadiographError(
            "not_a_projection",
            path,
            f"the modality of this DICOM image is {_quoted(modality, _OTHER_MODALITIES)}; allowed are "
            f"{', '.join(PROJECTION_MODALITIES)} or none. Give a radiograph, or correct the entry if it is one.",
        )
    missing = [n for n in ("Rows", "Columns", "PhotometricInterpretation", "BitsAllocated") if header.get(n) is None]
    if missing:
        message = f"the DICOM header lacks {', '.join(missing)}, without which pixels mean nothing. Export it again."
        raise RadiographError("unreadable", path, message)
    rows, columns = int(header.Rows), int(header.Columns)
    samples, frames = int(header.get("SamplesPerPixel") or 1), int(header.get("NumberOfFrames") or 1)
    meaning = str(header.PhotometricInterpretation)
    if samples != 1 or frames != 1 or meaning not in ("MONOCHROME1", "MONOCHROME2"):
        raise RadiographError(
            "not_a_projection",
            path,
            f"this DICOM image has {frames} frame(s), {samples} sample(s) per pixel and photometric interpretation "
            f"{_quoted(meaning, _MEANINGS)}; allowed is one frame of MONOCHROME1 or MONOCHROME2. "
            "Export a single grey projection.",
        )
    check_size(path, rows * columns * samples * frames, f"{columns} x {rows}", max_pixels)


def _quoted(value: str, defined: Collection[str]) -> str:
    """A header entry for a message: the value if it is a defined term, else words that tell nothing."""
    return repr(value.upper()) if value.upper() in defined else "something else"


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


def _padding(ds: Any, stored: np.ndarray) -> np.ndarray | None:
    """Where stored values ``[H, W]`` are padding (PS3.3 C.7.5.1.1.2), as a mask; None where there is none."""
    value = ds.get("PixelPaddingValue")
    if value is None or stored.dtype.kind not in "iu":
        return None
    other = ds.get("PixelPaddingRangeLimit")
    low, high = sorted(_as_stored(int(v), stored.dtype) for v in (value, value if other is None else other))
    mask = (stored >= low) & (stored <= high)
    return mask if mask.any() else None


def _as_stored(value: int, dtype: np.dtype) -> int:
    """Reads a value that was written with the other signedness (65535 for -1) the way the pixels are stored."""
    span = 2 ** (8 * dtype.itemsize)
    if dtype.kind == "i" and value >= span // 2:
        return value - span
    return value + span if dtype.kind == "u" and value < 0 else value


def _used_bits(ds: Any, stored: np.ndarray) -> np.ndarray:
    """Drops the bits above HighBit (old overlays live there) and extends the sign, as PS3.5 8.1.1 defines them."""
    bits = int(ds.get("BitsStored") or ds.BitsAllocated)
    high = ds.get("HighBit")
    width = 8 * stored.dtype.itemsize
    left = width - 1 - (bits - 1 if high is None else int(high))
    if stored.dtype.kind not in "iu" or bits >= width or not 0 <= left <= width - bits:
        return stored
    return (stored << left) >> (width - bits)


def _modality(ds: Any, values: np.ndarray) -> np.ndarray:
    """Modality LUT, or rescale to float64, or the values as they are (PS3.3 C.11.1)."""
    if ds.get("ModalityLUTSequence"):
        return _lookup(values, _table(ds, ds.ModalityLUTSequence[0]))
    slope, intercept = ds.get("RescaleSlope"), ds.get("RescaleIntercept")
    if slope is None or intercept is None:
        return values
    rescaled = values.astype(np.float64)
    rescaled *= float(slope)
    rescaled += float(intercept)
    return rescaled


def _voi(ds: Any, path: Any, values: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, str]:
    """VOI LUT, window or percentiles (PS3.3 C.11.2): float32 ``[H, W]`` in [0, 1] and the name of the chain.

    Floating-point ``values`` do not survive it.
    """
    if ds.get("VOILUTSequence"):
        table = _table(ds, ds.VOILUTSequence[0])
        top = float(table[1].max())  # the table's own range; a descriptor of 16 bits over 12-bit entries is common
        if top > 0:
            return unit(_lookup(np.rint(values).astype(np.int64), table) / top), "voi_lut"
    window = _window(ds)
    if window is None:
        return stretch(path, values, valid), "percentile"
    center, width, function = window
    x = own_float64(values)  # in place from here on: a large picture must not be in memory four times
    x -= center
    if function == "SIGMOID":  # 1 / (1 + exp(-4 x / width)), without overflow
        x *= 2
        x /= width
        np.tanh(x, out=x)
        x *= 0.5
    elif function == "LINEAR":
        x += 0.5
        x /= max(width - 1, 1e-6)
    else:
        x /= width
    x += 0.5
    return unit(x), "voi_window"


def _window(ds: Any) -> tuple[float, float, str] | None:
    """The first window as (center, width, function); None when there is none or it cannot be used."""
    function = str(ds.get("VOILUTFunction") or "LINEAR")
    first = []
    for name in ("WindowCenter", "WindowWidth"):
        value = ds.get(name)
        value = value[0] if isinstance(value, (list, pydicom.multival.MultiValue)) and value else value
        if value is None or value == "" or not np.isfinite(float(value)):
            return None
        first.append(float(value))
    narrowest = 1.0 if function == "LINEAR" else 1e-6
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID") or first[1] < narrowest:
        return None
    return first[0], first[1], function


def _table(ds: Any, item: Any) -> tuple[int, np.ndarray]:
    """(first value mapped, entries int64 ``[n]``) of a LUT sequence item."""
    count, first, _ = (int(v) for v in item.LUTDescriptor)
    count = count & 0xFFFF or 2**16  # a count above 32767 reads as negative where the entry is signed
    data = item.LUTData
    if isinstance(data, bytes):
        order = "<" if ds.file_meta.TransferSyntaxUID.is_little_endian else ">"
        entries = np.frombuffer(data, dtype=np.uint8 if len(data) < 2 * count else f"{order}u2")
    else:
        entries = np.atleast_1d(np.asarray(data, dtype=np.int64)) & 0xFFFF
    if entries.size < count:
        raise ValueError(f"lookup table of {entries.size} entries where {count} are claimed")
    return first, entries[:count].astype(np.int64)


def _lookup(values: np.ndarray, table: tuple[int, np.ndarray]) -> np.ndarray:
    """Maps integers through a table; values outside take its first or last entry (PS3.3 C.11.1.1.1)."""
    first, entries = table
    return entries[np.clip(values.astype(np.int64) - first, 0, entries.size - 1)]
