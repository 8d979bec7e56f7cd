"""PNG, JPEG, TIFF and BMP files to radiographs.

8-bit values are divided by 255, 16-bit values by 65535, 1-bit values stay. Colour, CMYK and palette images become ITU-R 601
luminance; alpha channels and colour profiles are ignored. EXIF and TIFF orientation are applied. These formats record no
polarity apart from TIFF's WhiteIsZero, so air is taken to be dark already. Files of several images are refused.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile

from monai_wscxr.data.radiograph import whole
from monai_wscxr.data.radiograph.base import Radiograph, RadiographError, check_bytes, check_size
from monai_wscxr.data.radiograph.bits import check_byte_order

_ORIENTATION_TAG = 0x0112
_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601
_COLOUR, _GREY_ALPHA = 2, 4  # colour types of PNG
_TIFF_COMPRESSIONS = {1: "none", 5: "LZW", 8: "deflate", 32773: "PackBits", 32946: "deflate"}
_truncation_lock = threading.Lock()


def read_raster(path: str | os.PathLike[str], kind: str, max_pixels: int) -> Radiograph:
    """Read a PNG, JPEG, TIFF or BMP file.

    Args:
        path: of the file.
        kind: "png", "jpeg", "tiff" or "bmp".
        max_pixels: largest number of pixels, checked before decoding.

    Raises:
        RadiographError: "too_large", "empty", "not_a_projection", "unreadable" or "bits_disagree".
        Exception: any error of Pillow, for a damaged file.
    """
    check_bytes(path, max_pixels)
    content = Path(path).read_bytes()
    with _opened(content, kind) as image:
        width, height = image.size
        check_size(width * height, f"{width} x {height}", max_pixels)
        _check_header(image, kind, content)
        with _whole_files_only():
            image.load()
        _check_whole(image, kind, content)
        values, intensity = _grey(image, content)
        values = _upright(values, image.getexif().get(_ORIENTATION_TAG, 1))
    return Radiograph(np.ascontiguousarray(values, dtype=np.float32), kind, "as_stored", intensity)


def _opened(content: bytes, kind: str) -> Image.Image:
    """Open a file without decoding its pixels."""
    try:
        return Image.open(io.BytesIO(content), formats=(kind.upper(),))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        message = "the header claims more pixels than Pillow's limit for decompression bombs. Export it smaller."
        raise RadiographError("too_large", message) from error


@contextlib.contextmanager
def _whole_files_only() -> Iterator[None]:
    """Keep Pillow from filling the missing part of a truncated file with grey, even if other code asked for it."""
    if not ImageFile.LOAD_TRUNCATED_IMAGES:
        yield
        return
    with _truncation_lock:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = True


def _check_header(image: Any, kind: str, content: bytes) -> None:
    """Check, before anything is decoded, that the file holds one image of a supported depth."""
    if kind == "png" and getattr(image, "n_frames", 1) > 1:
        raise RadiographError("not_a_projection", "this PNG is an animation. Export a single image.")
    if kind != "tiff":
        return
    if image.is_animated:
        raise RadiographError("not_a_projection", "this TIFF holds several pages. Export a single image.")
    tags = image.tag_v2
    bits, formats = set(_numbers(tags, 258, 1)), set(_numbers(tags, 339, 1))
    compression = _numbers(tags, 259, 1)[0]
    samples = _numbers(tags, 277, 1)[0]
    if compression not in _TIFF_COMPRESSIONS:
        named = ", ".join(sorted(set(_TIFF_COMPRESSIONS.values())))
        raise RadiographError(
            "missing_decoder", f"TIFF compression {compression} is not read; allowed are {named}. Export it again."
        )
    if formats != {1} or not bits <= {1, 2, 4, 8, 16} or (16 in bits and samples > 1):
        raise RadiographError(
            "not_a_projection",
            f"this TIFF has {samples} sample(s) of {'/'.join(map(str, sorted(bits)))} bits and sample format "
            f"{'/'.join(map(str, sorted(formats)))}; allowed are unsigned samples of up to 8 bits, or one of 16 bits. "
            "Export it as 8- or 16-bit grey.",
        )
    _check_tiff_data(tags, image.size, samples * max(bits), compression, len(content))


def _numbers(tags: Any, tag: int, default: int) -> tuple[int, ...]:
    value = tags.get(tag, default)
    return tuple(int(n) for n in value) if isinstance(value, (tuple, list)) else (int(value),)


def _check_tiff_data(tags: Any, size: tuple[int, int], bits: int, compression: int, length: int) -> None:
    """Check that all strips or tiles of a TIFF lie inside the file, and that uncompressed ones have their full length."""
    tiled = 324 in tags
    offsets, counts = (_numbers(tags, tag, 0) for tag in ((324, 325) if tiled else (273, 279)))
    if len(counts) != len(offsets) or any(at <= 0 or at + n > length for at, n in zip(offsets, counts, strict=False)):
        raise whole.missing_part("strips or tiles lie outside the file")
    planes = _numbers(tags, 277, 1)[0] if _numbers(tags, 284, 1)[0] == 2 else 1
    width, height = size
    if _numbers(tags, _ORIENTATION_TAG, 1)[0] in (5, 6, 7, 8) and _numbers(tags, 256, width)[0] != width:
        width, height = height, width
    if tiled:
        wide, high = _numbers(tags, 322, width)[0], _numbers(tags, 323, height)[0]
        expected = -(-width // wide) * -(-height // high) * planes
    else:
        expected = -(-height // min(height, _numbers(tags, 278, height)[0])) * planes
    if len(offsets) < expected:
        raise whole.missing_part(f"it has {len(offsets)} of {expected} strips or tiles")
    if compression == 1 and sum(counts) < height * -(-width * bits // 8):
        raise whole.missing_part(f"its strips hold {sum(counts)} bytes of {height * -(-width * bits // 8)}")


def _check_whole(image: Image.Image, kind: str, content: bytes) -> None:
    if kind == "png":
        whole.check_png(content, np.asarray(image))
    elif kind == "jpeg":

        def decode(data: bytes) -> np.ndarray:
            with _opened(data, kind) as other, _whole_files_only():
                other.load()
                return np.asarray(other)

        whole.check_jpeg(content, np.asarray(image), decode)


def _grey(image: Image.Image, content: bytes) -> tuple[np.ndarray, str]:
    """Return grey values [H, W] in [0, 1] and how they were mapped (`Radiograph.intensity`)."""
    if image.mode == "1":
        return np.asarray(image, dtype=np.float32), "full_range_1"
    if image.format == "PNG" and content[24] == 16 and image.mode in ("LA", "RGB", "RGBA"):
        return _grey_16(content), "full_range_16"
    if image.mode.startswith("I"):  # Pillow's modes for 16-bit grey: I;16 and, in older versions, I
        stored = np.asarray(image)
        check_byte_order(stored.astype(np.uint16))
        grey = stored.astype(np.float32) / np.float32(65535)
        if image.format == "TIFF" and _numbers(image.tag_v2, 262, 1)[0] == 0:  # type: ignore[attr-defined]
            grey = np.float32(1) - grey  # WhiteIsZero, which Pillow applies to 8 bits only
        return grey, "full_range_16"
    if image.mode != "L":
        image = image.convert("RGB").convert("L")
    return np.asarray(image, dtype=np.float32) / np.float32(255), "full_range_8"


def _grey_16(content: bytes) -> np.ndarray:
    """Return the grey values of a 16-bit PNG with alpha or colour, of which Pillow keeps only the upper 8 bits."""
    if content[25] == _GREY_ALPHA:  # Pillow opens it as RGBA, whose four bytes take the four of a pixel
        both = _unpacked(content, "RGBA").astype(np.uint16)
        channels = [both[..., 0] << 8 | both[..., 1]]
    else:
        mode = "RGB" if content[25] == _COLOUR else "RGBA"
        upper, lower = (_unpacked(content, f"{mode};16{order}").astype(np.uint16) for order in "BL")
        channels = list((upper << 8 | lower)[..., :3].transpose(2, 0, 1))
    red, *others = channels
    if any(not np.array_equal(red, other) for other in others):
        mixed = np.zeros(red.shape, dtype=np.float32)
        for weight, channel in zip(_LUMINANCE, (red, *others), strict=True):
            mixed += np.float32(weight / 65535) * channel
        return mixed
    check_byte_order(red)
    return red.astype(np.float32) / np.float32(65535)


def _unpacked(content: bytes, order: str) -> np.ndarray:
    """Decode a PNG, with the bytes of each pixel taken in another order (Pillow's raw modes): uint8 [H, W, channels]."""
    with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
        image.tile = [(*image.tile[0][:3], order)]  # type: ignore[list-item]
        return np.asarray(image)


def _upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """Apply EXIF orientation 1 to 8 (TIFF 6.0, tag 274); any other value counts as upright."""
    if orientation in (5, 6, 7, 8):
        values = values.T
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values
