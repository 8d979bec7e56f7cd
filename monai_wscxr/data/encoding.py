"""Encoding of images as PNG and JPEG."""

from __future__ import annotations

import io
import zlib

import numpy as np
from PIL import Image


def encode_png(array: np.ndarray, quick: bool = False) -> bytes:
    """Encode an image as PNG.

    Args:
        array: uint8 [H, W] or [H, W, 3].
        quick: several times faster, about a tenth larger.

    Raises:
        ValueError: for another type or shape.
    """
    if quick:  # overlays hold runs of equal pixels but few repeated patterns, so zlib need not search for them
        return _encode(array, format="PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return _encode(array, format="PNG", compress_level=9)


def encode_jpeg(array: np.ndarray, quality: int = 85) -> bytes:
    """Encode an image as JPEG with full colour resolution: colours show measurements, and outlines are one pixel wide.

    Args:
        array: uint8 [H, W] or [H, W, 3].
        quality: 1 to 95.

    Raises:
        ValueError: for another type or shape, or a quality out of range.
    """
    if not 1 <= quality <= 95:
        raise ValueError(f"JPEG quality must be in [1, 95], got {quality}")
    return _encode(array, format="JPEG", quality=quality, subsampling=0, optimize=True)


def _encode(array: np.ndarray, **options: object) -> bytes:
    array = np.asarray(array)
    grey_or_rgb = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if array.dtype != np.uint8 or not grey_or_rgb or array.size == 0:
        raise ValueError(f"an image must be uint8 [H, W] or [H, W, 3], got {array.dtype} {array.shape}")
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, **options)  # type: ignore[arg-type]
    return buffer.getvalue()
