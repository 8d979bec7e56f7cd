"""Pictures for annotators: the radiograph with the brightness that the model sees, and the anomaly map to lay over it."""

from __future__ import annotations

import io
from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from monai_wscxr.data.encoding import encode_png
from monai_wscxr.data.preprocessing import Preprocessing, standardise_intensity
from monai_wscxr.data.radiograph.read import read_radiograph
from monai_wscxr.model.description import ModelDescription
from monai_wscxr.report.overlay import colour_map, grey_levels, overlay, shrink

LARGEST_SIDE = 1024


def shown_radiograph(file: Path, preprocessing: Preprocessing, allow: Collection[str] = ()) -> NDArray[np.float32]:
    """Read a radiograph for display: float32 [H, W] in [0, 1], aspect kept, longest side at most 1024 pixels.

    Raises:
        RadiographError: when the file cannot be read.
    """
    picture = shrink(read_radiograph(file, allow=allow).image, LARGEST_SIDE)
    if preprocessing.intensity == "standardised":
        picture = standardise_intensity(picture[None])[0]
    return np.clip(picture, 0.0, 1.0)


def radiograph_png(file: Path, preprocessing: Preprocessing, allow: Collection[str] = ()) -> bytes:
    """Encode `shown_radiograph` as an 8-bit grey PNG."""
    return encode_png(grey_levels(shown_radiograph(file, preprocessing, allow)))


def resized_map(values: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Resize an anomaly map [S, S] to a picture's height and width (bilinear)."""
    small = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    return np.asarray(small.resize((shape[1], shape[0]), Image.Resampling.BILINEAR), dtype=np.float32)


def map_png(file: Path, values: NDArray[np.float32], model: ModelDescription, allow: Collection[str] = ()) -> bytes:
    """Encode an anomaly map [S, S] as an RGBA PNG of the size of `radiograph_png`; opacity grows along the colour scale."""
    shape = shrink(read_radiograph(file, allow=allow).image, LARGEST_SIDE).shape
    position = model.colour_scale.position(resized_map(values, (shape[0], shape[1])))
    alpha = np.rint(255 * position).astype(np.uint8)[..., None]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate([colour_map(position), alpha], axis=2)).save(buffer, format="PNG", compress_level=2)
    return buffer.getvalue()


def overlay_png(file: Path, values: NDArray[np.float32], model: ModelDescription, allow: Collection[str] = ()) -> bytes:
    """Encode radiograph and anomaly map [S, S] as one RGB PNG, as reports show them."""
    picture = shown_radiograph(file, model.preprocessing, allow)
    return encode_png(overlay(picture, resized_map(values, picture.shape), model.colour_scale))
