"""Tensors as text in artefacts: little-endian float32 in base64."""

from __future__ import annotations

import base64
import binascii

import torch
from torch import Tensor


def encode_tensor(tensor: Tensor) -> str:
    """Return the numbers of a tensor as text; its shape is not kept."""
    return base64.b64encode(tensor.detach().cpu().contiguous().numpy().astype("<f4").tobytes()).decode("ascii")


def decode_tensor(text: str) -> Tensor:
    """Return the numbers [n] in a text of `encode_tensor`, float32.

    Raises:
        ValueError: when the text is no base64 or holds no whole numbers.
    """
    try:
        data = bytearray(base64.b64decode(text, validate=True))
    except binascii.Error as error:
        raise ValueError("not base64") from error
    return torch.frombuffer(data, dtype=torch.float32).clone() if data else torch.empty(0)
