"""Headers of safetensors files: where each tensor lies, checked against the size of the file.

A safetensors file starts with the length of its header (8 bytes, little endian), then the header as JSON, then the bytes of the
tensors. Only the header is read here, so a bank of any size is opened in a moment.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from monai_wscxr.system.atomic import DamagedError

TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_LONGEST_HEADER = 100 << 20


@dataclass(frozen=True)
class TensorEntry:
    """One floating-point tensor of a file.

    Attributes:
        shape: of the tensor.
        dtype: of its elements.
        offset: byte of the file at which its elements start.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int


@dataclass(frozen=True)
class Header:
    """Header of a safetensors file.

    Attributes:
        tensors: entries of the floating-point tensors, by name.
        metadata: texts stored with them, by key.
        crc32: checksum of the header's bytes, its length included.
    """

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    crc32: int


def read_header(path: Path) -> Header:
    """Read the header of a safetensors file and check it against the size of the file.

    Raises:
        DamagedError: when the file cannot be read, its header contradicts itself, or it is shorter or longer than its header
            says.
    """
    try:
        with open(path, "rb") as file:
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or not 0 < length <= _LONGEST_HEADER:
                raise ValueError("its header is damaged")
            text = file.read(length)
            size = file.seek(0, 2)
        content = json.loads(text)
        metadata = content.pop("__metadata__", {})
        start = 8 + length
        tensors, last = {}, 0
        for name, entry in content.items():
            begin, end = (int(place) for place in entry["data_offsets"])
            last = max(last, end)
            if entry["dtype"] not in TYPES:
                continue
            dtype, shape = TYPES[entry["dtype"]], tuple(int(extent) for extent in entry["shape"])
            elements = 1
            for extent in shape:
                elements *= extent
            if begin < 0 or min(shape, default=0) < 0 or end - begin != elements * dtype.itemsize:
                raise ValueError("its header contradicts itself")
            tensors[name] = TensorEntry(shape, dtype, start + begin)
        if size != start + last:
            raise ValueError("it is shorter or longer than its header says")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(str(error) or type(error).__name__) from error
    return Header(tensors, metadata, zlib.crc32(prefix + text))
