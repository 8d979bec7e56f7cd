"""Headers of safetensors files: the place of each tensor, checked against the size of the file.

A safetensors file consists of the length of its header (8 bytes, little endian), the header as JSON, and the bytes of the
tensors. Only the header is read here, so a bank of any size is opened in a moment.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from monai_wscxr.system.atomic import DamagedError
from monai_wscxr.system.regular_files import open_regular
from monai_wscxr.system.strict_json import parse_json

TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_LONGEST_HEADER = 100 << 20  # bytes


@dataclass(frozen=True)
class TensorEntry:
    """A floating-point tensor in a file.

    Attributes:
        shape: shape of the tensor.
        dtype: type of its elements.
        offset: byte of the file at which its elements start.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int


@dataclass(frozen=True)
class Header:
    """Header of a safetensors file.

    Attributes:
        tensors: the floating-point tensors, by name; other tensors are left out.
        metadata: strings stored with the tensors, by key.
        crc32: CRC-32 of the header's bytes, its length included.
    """

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    crc32: int


def read_header(path: Path) -> Header:
    """Read the header of a safetensors file and check it against the size of the file.

    As the format demands, the tensors must lie one behind the other, without gaps and without sharing bytes.

    Raises:
        DamagedError: when the file cannot be read or is no regular file, its header is malformed or contradicts itself, or the
            file is shorter or longer than its header says. The message names no path.
    """
    try:
        with open_regular(path) as file:
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or not 0 < length <= _LONGEST_HEADER:
                raise DamagedError("it does not start with the length of a safetensors header")
            text = file.read(length)
            size = file.seek(0, 2)
        content = parse_json(text)
        metadata = content.pop("__metadata__", {})
        if not all(isinstance(value, str) for value in metadata.values()):
            raise TypeError("metadata must be strings")
        start = 8 + length
        tensors, places = {}, []
        for name, entry in content.items():
            begin, end = _natural_numbers(entry["data_offsets"])
            places.append((begin, end))
            if entry["dtype"] not in TYPES:
                continue
            dtype, shape = TYPES[entry["dtype"]], _natural_numbers(entry["shape"])
            if end - begin != math.prod(shape) * dtype.itemsize:
                raise DamagedError(f"its header contradicts itself about the size of {name!r}")
            tensors[name] = TensorEntry(shape, dtype, start + begin)
        last = 0
        for begin, end in sorted(places):
            if begin != last or end < begin:
                raise DamagedError("its header contradicts itself about the places of the tensors")
            last = end
        if size != start + last:
            raise DamagedError("it is shorter or longer than its header says")
    except DamagedError:
        raise
    except OSError as error:
        raise DamagedError(error.strerror or str(error)) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"its header is malformed ({type(error).__name__}: {error})") from error
    return Header(tensors, metadata, zlib.crc32(prefix + text))


def _natural_numbers(values: list[int]) -> tuple[int, ...]:
    """Return a list of a header as a tuple, if all its values are integers >= 0."""
    if not isinstance(values, list) or not all(type(value) is int and value >= 0 for value in values):
        raise ValueError(f"expected a list of integers >= 0, got {values!r:.60}")
    return tuple(values)
