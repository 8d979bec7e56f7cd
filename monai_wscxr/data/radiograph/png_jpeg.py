"""PNG and JPEG files to radiographs.

8-bit values are divided by 255, 16-bit grey values by 65535, 1-bit values stay. Colour, CMYK and palette images become 8-bit
ITU-R 601 luminance (a 16-bit colour PNG keeps its upper 8 bits); alpha channels and colour profiles are ignored. EXIF
orientation is applied. These formats record no polarity, so air is taken to be dark already.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageFile

from monai_wscxr.data.radiograph.base import Radiograph, RadiographError, check_bytes, check_size

_ORIENTATION_TAG = 0x0112
_truncation_lock = threading.Lock()


def read_png_or_jpeg(path: str | os.PathLike[str], kind: str, max_pixels: int) -> Radiograph:
    """Read a PNG or JPEG file.

    Args:
        path: of the file.
        kind: "png" or "jpeg".
        max_pixels: largest number of pixels, checked before decoding.

    Raises:
        RadiographError: "too_large", "empty" or "not_a_projection".
        Exception: any error of Pillow, for a damaged file.
    """
    check_bytes(path, max_pixels)
    try:
        opened = Image.open(path, formats=("PNG", "JPEG"))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        message = "the header claims more pixels than Pillow's limit for decompression bombs. Export it smaller."
        raise RadiographError("too_large", message) from error
    with opened as image:
        width, height = image.size
        check_size(width * height, f"{width} x {height}", max_pixels)
        if kind == "png" and getattr(image, "n_frames", 1) > 1:
            raise RadiographError("not_a_projection", "this PNG is an animation. Export a single image.")
        with _whole_files_only():
            image.load()
        values, intensity = _grey(image)
        values = _upright(values, image.getexif().get(_ORIENTATION_TAG, 1))
    return Radiograph(np.ascontiguousarray(values, dtype=np.float32), kind, "as_stored", intensity)


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


def _grey(image: Image.Image) -> tuple[np.ndarray, str]:
    """Return grey values [H, W] in [0, 1] and how they were mapped (`Radiograph.intensity`)."""
    if image.mode == "1":
        return np.asarray(image, dtype=np.float32), "full_range_1"
    if image.mode.startswith("I"):  # Pillow's modes for 16-bit grey: I;16 and, in older versions, I
        return np.asarray(image).astype(np.float32) / np.float32(65535), "full_range_16"
    if image.mode != "L":
        image = image.convert("RGB").convert("L")
    return np.asarray(image, dtype=np.float32) / np.float32(255), "full_range_8"


def _upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """Apply EXIF orientation 1 to 8 (TIFF 6.0, tag 274); any other value counts as upright."""
    if orientation in (5, 6, 7, 8):
        values = values.T
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values
