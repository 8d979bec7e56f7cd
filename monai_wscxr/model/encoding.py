"""Arrays as text in artefacts: little-endian float32 in base64."""

from __future__ import annotations

import base64
import binascii

import numpy as np
from numpy.typing import ArrayLike, NDArray


def encode_array(values: ArrayLike) -> str:
    """Return the numbers of an array as text; its shape is not kept."""
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode("ascii")


def decode_array(text: str) -> NDArray[np.float32]:
    """Return the numbers [n] in a text of `encode_array`, float32.

    Raises:
        ValueError: when the text is no base64 or holds no whole numbers.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("not base64") from error
    return np.frombuffer(data, "<f4").astype(np.float32)
