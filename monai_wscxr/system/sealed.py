"""Files of `torch.save` that end with a checksum, which detects damage by a disk or a copy."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from monai_wscxr.system.atomic import DamagedError, write_bytes_atomic

_SEAL = b"wscxr-b2"  # followed by the BLAKE2b digest, 32 bytes, of everything before the seal


def torch_bytes(value: Any) -> bytes:
    """Return the bytes that `torch.save` would write."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def save_sealed(path: Path, value: Any) -> None:
    """Save a value like `torch.save`, but atomically and with a checksum at the end, which `torch.load` ignores."""
    content = torch_bytes(value)
    write_bytes_atomic(path, content + _SEAL + hashlib.blake2b(content, digest_size=32).digest())


def load_sealed(path: Path) -> Any:
    """Load a file of `save_sealed`, which may hold tensors and plain values only; tensors come to the CPU.

    Raises:
        DamagedError: when the file cannot be read or differs from what was written.
    """
    try:
        whole = path.read_bytes()
    except OSError as error:
        raise DamagedError(f"{path} cannot be read ({error.strerror})") from error
    content, seal = whole[: -len(_SEAL) - 32], whole[-len(_SEAL) - 32 :]
    if seal != _SEAL + hashlib.blake2b(content, digest_size=32).digest():
        raise DamagedError(f"{path} is damaged: the checksum does not match its {len(whole)} bytes")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
