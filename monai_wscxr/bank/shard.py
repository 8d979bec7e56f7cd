"""Shards: files that hold the patch features of some images, with a digest and a checksum for each.

A shard is a safetensors file with one tensor `features` [n, h*w, C]; digests and CRC-32 checksums are in the metadata of its
header. A process checks an image when it reads it for the first time, which takes about a millisecond per megabyte: the
checksum must be right and all numbers finite.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from monai_wscxr.bank.header import TYPES, read_header
from monai_wscxr.bank.rows import FileRows, RowsOnDisk
from monai_wscxr.errors import InputError
from monai_wscxr.system.atomic import DamagedError, replacing
from monai_wscxr.system.strict_json import integer, list_of, parse_json, text

_MOST_IMAGES = 1 << 24  # per shard
_DIGESTS = list_of(text(longest=256), 1, _MOST_IMAGES)
_CHECKSUMS = list_of(integer(0, (1 << 32) - 1), 1, _MOST_IMAGES)


@dataclass
class Shard:
    """An open shard: the content of its header, and access to its images.

    Attributes:
        path: path of the file.
        digests: digest of each image, in order.
        checksums: CRC-32 of the features of each image.
        shape: (images n, patches h*w, channels C).
        dtype: float32, float16 or bfloat16.
        rows: patches of all images as rows [n * h*w, C].
        header_crc32: CRC-32 of the header.
    """

    path: Path
    digests: list[str]
    checksums: list[int]
    shape: tuple[int, int, int]
    dtype: torch.dtype
    rows: RowsOnDisk
    header_crc32: int
    _verified: set[int] = field(default_factory=set)

    @classmethod
    def open(cls, path: Path) -> Shard:
        """Open a shard by reading its header.

        Raises:
            DamagedError: when the file is no shard, or shorter or longer than its header says.
        """
        header = read_header(path)
        try:
            entry = header.tensors["features"]
            digests, checksums = parse_json(header.metadata["digests"], 1), parse_json(header.metadata["crc32"], 1)
            _DIGESTS(digests, "digests")
            _CHECKSUMS(checksums, "crc32")
            n, patches, channels = entry.shape
            if len(header.tensors) != 1 or not len(digests) == len(checksums) == n:
                raise ValueError("numbers of images differ")
            if min(entry.shape) < 1 or entry.dtype == torch.float64:
                raise ValueError(f"shape {entry.shape} or type {entry.dtype} is not that of features")
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedError(f"its header is not that of a shard ({type(error).__name__}: {error})") from error
        rows = RowsOnDisk(path, entry.offset, n * patches)
        return cls(path, digests, checksums, (n, patches, channels), entry.dtype, rows, header.crc32)

    @property
    def image_bytes(self) -> int:
        """Bytes of the features of one image."""
        return self.shape[1] * self.shape[2] * self.dtype.itemsize

    def read(self, position: int, out: Tensor) -> None:
        """Read the features of one image into the contiguous `out` [h*w, C].

        Raises:
            DamagedError: when they differ from what was written, or the file can no longer be read.
        """
        into = memoryview(out.view(torch.uint8).numpy().data).cast("B")
        if len(into) != self.image_bytes:
            raise DamagedError(f"its images have {self.image_bytes} bytes, and {len(into)} were expected")
        try:
            self.rows.read_into(position * self.image_bytes, into)
        except InputError as error:
            raise DamagedError(str(error)) from error
        if position not in self._verified:
            if zlib.crc32(into) != self.checksums[position]:
                raise DamagedError(f"the checksum of image {position + 1} of {self.shape[0]} is wrong")
            if not all_finite(out):
                raise DamagedError(f"image {position + 1} of {self.shape[0]} holds NaN or Inf")
            self._verified.add(position)

    def trust_all(self) -> None:
        """Count every image as checked: this process has just written them."""
        self._verified.update(range(self.shape[0]))

    def forget_checks(self) -> None:
        """Check every image again when it is read next."""
        self._verified.clear()

    def verify(self, position: int) -> None:
        """Check one image, unless this process has already done so.

        Raises:
            DamagedError: as `read`.
        """
        if position not in self._verified:
            self.read(position, torch.empty(self.shape[1:], dtype=self.dtype))


def all_finite(numbers: Tensor) -> bool:
    """Return whether a tensor holds neither NaN nor Inf, in one pass and without a copy."""
    return all(bool(torch.isfinite(end)) for end in numbers.aminmax())


def write_shard(path: Path, digests: Sequence[str], features: Tensor) -> Shard:
    """Write a shard atomically and open it.

    Args:
        path: path of the new file.
        digests: digests of n images.
        features: [n, h*w, C] float32, float16 or bfloat16.

    Raises:
        InputError: when the features hold NaN or Inf.
        DiskFullError: when the disk is full; the message names the missing bytes.
        OSError: when the file cannot be written for another reason.
    """
    features = features.contiguous()
    broken = [digest for digest, image in zip(digests, features, strict=True) if not all_finite(image)]
    if broken:
        raise InputError(
            f"the features of {len(broken)} of {len(digests)} images hold NaN or Inf as {features.dtype} (first: image "
            f"{broken[0]:.64}); look for broken weights, or choose float32 or bfloat16"
        )
    checksums = [zlib.crc32(image.view(torch.uint8).numpy().data) for image in features]
    name = next(name for name, dtype in TYPES.items() if dtype == features.dtype)
    header = json.dumps(
        {
            "__metadata__": {"digests": json.dumps(list(digests)), "crc32": json.dumps(checksums)},
            "features": {"dtype": name, "shape": list(features.shape), "data_offsets": [0, features.nbytes]},
        }
    ).encode()
    header += b" " * (-len(header) % 8)
    with replacing(path, features.nbytes + len(header) + 8) as temporary, open(temporary, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.write(features.view(torch.uint8).numpy().data)
    shard = Shard.open(path)
    shard.trust_all()
    return shard


def shard_rows(places: Sequence[tuple[Shard, int]]) -> FileRows:
    """Return the patches of images as rows [n * h*w, C] that stay in their shards.

    Args:
        places: shard and position in it for each of n >= 1 images, all with features of one shape and type.
    """
    shards = list({id(shard): shard for shard, _ in places}.values())
    number = {id(shard): i for i, shard in enumerate(shards)}
    patches = shards[0].shape[1]
    pieces = torch.tensor([[number[id(shard)], position * patches, patches] for shard, position in places])
    return FileRows([shard.rows for shard in shards], pieces, shards[0].shape[2], shards[0].dtype)
