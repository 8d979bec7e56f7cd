"""Rows in files, read in blocks or gathered by index, without the whole matrix ever being in memory.

A `FileRows` joins pieces of several files, so a bank can consist of many shards, leave out some of their images and contain
others twice. A gather maps the files and releases their pages at once, so the resident memory of the process grows by the
gathered rows only.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Protocol

import torch
from torch import Tensor

from monai_wscxr.errors import InputError
from monai_wscxr.system.memory import available_memory
from monai_wscxr.system.regular_files import open_descriptor, open_regular

BLOCK_ROWS = (
    8192  # rows per step of a pass over a bank; sums depend on it in the last bits, so all passes use this number
)
RowFunction = Callable[[Tensor, Tensor], None]  # computes the second argument [n, C] from the first [n, C]
_GATHER_ROWS = 2048  # rows per step of a gather: the kernel maps up to 64 KiB around each row


class RowSource(Protocol):
    """Rows [N, C] that are read when they are needed.

    Attributes:
        shape: (N, C).
        dtype: floating-point type.
    """

    shape: tuple[int, int]
    dtype: torch.dtype

    def read(self, first: int, out: Tensor) -> Tensor:
        """Read rows [first, first + n) into the contiguous `out` [n, C] of the same type, and return it."""

    def gather(self, index: Tensor) -> Tensor:
        """Return the rows [k, C] at `index` [k] int64, in that order."""


def row_blocks(rows: Tensor | RowSource, size: int = BLOCK_ROWS) -> Iterator[Tensor]:
    """Yield consecutive blocks [size, C] of rows in memory or in files; the last one may be smaller.

    Blocks from files share one buffer, so a block is valid until the next one is requested. A new buffer for every block would
    take six times as long as reading, because the system clears its pages.
    """
    if isinstance(rows, Tensor):
        yield from rows.split(size)
        return
    buffer = torch.empty(min(size, rows.shape[0]), rows.shape[1], dtype=rows.dtype)
    for first in range(0, rows.shape[0], size):
        yield rows.read(first, buffer[: rows.shape[0] - first])


class RowsOnDisk:
    """A row-major matrix [N, C] inside a file.

    Args:
        file: path, or an open file if it has no name.
        offset: byte of the file at which the first row starts.
        rows: N.
    """

    def __init__(self, file: Path | IO[bytes], offset: int, rows: int) -> None:
        self.file, self.offset, self.rows = file, offset, rows
        self._map: mmap.mmap | None = None

    def read_into(self, place: int, into: memoryview) -> None:
        """Fill `into` with the bytes of the matrix from byte `place` on.

        Raises:
            InputError: when the file cannot be read or is too short.
        """
        try:
            descriptor = open_descriptor(self.file) if isinstance(self.file, Path) else self.file.fileno()
            try:
                place += self.offset
                while into:
                    got = os.preadv(descriptor, [into], place)
                    if not got:
                        raise InputError(f"{self.file} ends early; it was changed while it was in use")
                    into, place = into[got:], place + got
            finally:
                if isinstance(self.file, Path):
                    os.close(descriptor)
        except OSError as error:
            raise InputError(f"{self.file} cannot be read: {error.strerror}") from error

    def mapped(self, channels: int, dtype: torch.dtype, read_ahead: bool = True) -> Tensor:
        """Return the matrix, memory-mapped.

        Args:
            channels: C.
            dtype: type of the elements.
            read_ahead: let the system also read what surrounds a row; decided when the file is first mapped.

        Raises:
            InputError: when the file cannot be read or is too short.
        """
        if self._map is None:
            try:
                descriptor = open_descriptor(self.file) if isinstance(self.file, Path) else self.file.fileno()
                try:
                    # writable, and private so that the file does not change, because torch has no read-only tensors
                    self._map = mmap.mmap(descriptor, 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
                finally:
                    if isinstance(self.file, Path):
                        os.close(descriptor)
            except (OSError, ValueError) as error:
                raise InputError(f"{self.file} cannot be read: {error}") from error
            if not read_ahead and hasattr(mmap, "MADV_RANDOM"):
                self._map.madvise(mmap.MADV_RANDOM)
            if len(self._map) < self.offset + self.rows * channels * dtype.itemsize:
                raise InputError(f"{self.file} ends early; it was changed while it was in use")
        whole = torch.frombuffer(self._map, dtype=torch.uint8, offset=self.offset)
        return whole[: self.rows * channels * dtype.itemsize].view(dtype).view(self.rows, channels)

    def want(self, rows: Sequence[int], row_bytes: int) -> None:
        """Advise the system that these rows will be needed, so that it reads many at a time while others are copied."""
        if not hasattr(os, "posix_fadvise"):
            return
        with open_regular(self.file) if isinstance(self.file, Path) else contextlib.nullcontext(self.file) as file:
            for row in rows:
                os.posix_fadvise(file.fileno(), self.offset + row * row_bytes, row_bytes, os.POSIX_FADV_WILLNEED)

    def release(self) -> None:
        """Release the mapped pages; they stay in the system's page cache while there is room."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


class FileRows:
    """One matrix [N, C] made of pieces of matrices in files.

    Args:
        files: matrices, all with C columns of type `dtype`.
        pieces: [P, 3] int64; for each piece the number of its file, its first row in it, and its number of rows.
        channels: C.
        dtype: floating-point type.

    Raises:
        ValueError: when a piece lies outside its file.
    """

    def __init__(self, files: Sequence[RowsOnDisk], pieces: Tensor, channels: int, dtype: torch.dtype) -> None:
        self.files, self.dtype = list(files), dtype
        pieces = _joined(pieces)
        self._file, self._first, counts = pieces.unbind(1)
        self._ends = counts.cumsum(0)
        self._starts = self._ends - counts
        self.shape = (int(counts.sum()), channels)
        rows = torch.tensor([file.rows for file in self.files], dtype=torch.int64)
        if len(pieces) and (bool((pieces < 0).any()) or bool((self._first + counts > rows[self._file]).any())):
            raise ValueError("a piece lies outside its file")

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.shape[1] * self.dtype.itemsize

    def read(self, first: int, out: Tensor) -> Tensor:
        """Read rows [first, first + n) into the contiguous `out` [n, C] of the same type, and return it.

        Raises:
            IndexError: when there are no such rows.
            InputError: when a file cannot be read or is too short.
        """
        last = first + len(out)
        if not 0 <= first <= last <= self.shape[0]:
            raise IndexError(f"rows {first} to {last} of {self.shape[0]}")
        if not len(out):
            return out
        into = memoryview(out.view(torch.uint8).numpy().data).cast("B")
        piece = int(torch.searchsorted(self._ends, first, right=True))
        while into:
            within = first - int(self._starts[piece])
            count = min(last, int(self._ends[piece])) - first
            place = (int(self._first[piece]) + within) * self.row_bytes
            self.files[int(self._file[piece])].read_into(place, into[: count * self.row_bytes])
            into, first, piece = into[count * self.row_bytes :], first + count, piece + 1
        return out

    def gather(self, index: Tensor) -> Tensor:
        """Return the rows [k, C] at `index` [k] int64, in that order; they are read in the order of the files.

        While the files fit into free memory, the system may read ahead, so that a few gathers bring all of them into its cache.
        Larger files are read without it: otherwise a gather of scattered rows would read them completely, every time.

        Raises:
            IndexError: when there is no such row.
            InputError: when a file cannot be read or is too short.
        """
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < self.shape[0]:
            raise IndexError(f"row numbers must lie in [0, {self.shape[0]})")
        piece = torch.searchsorted(self._ends, index, right=True)
        file, row = self._file[piece], self._first[piece] + index - self._starts[piece]
        row, by_row = row.sort()
        file, by_file = file[by_row].sort(stable=True)
        order, row = by_row[by_file], row[by_file]
        out = torch.empty(len(index), self.shape[1], dtype=self.dtype)
        numbers, counts = file.unique_consecutive(return_counts=True)
        parts = zip(numbers.tolist(), order.split(counts.tolist()), row.split(counts.tolist()), strict=True)
        read_ahead = sum(file.rows for file in self.files) * self.row_bytes <= available_memory()
        for number, places, rows in parts:
            source = self.files[number]
            matrix = source.mapped(self.shape[1], self.dtype, read_ahead)
            if not read_ahead:
                source.want(rows.tolist(), self.row_bytes)
            for to, at in zip(places.split(_GATHER_ROWS), rows.split(_GATHER_ROWS), strict=True):
                out[to] = matrix[at]
                source.release()
        return out


def _joined(pieces: Tensor) -> Tensor:
    """Drop empty pieces [P, 3], and join pieces that follow each other in one file."""
    pieces = pieces[pieces[:, 2] != 0]
    if not len(pieces):
        return pieces
    before, after = pieces[:-1], pieces[1:]
    new = (before[:, 0] != after[:, 0]) | (before[:, 1] + before[:, 2] != after[:, 1])
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), new.nonzero()[:, 0] + 1])
    total = torch.cat([torch.zeros(1, dtype=torch.int64), pieces[:, 2].cumsum(0)])
    ends = torch.cat([starts[1:], torch.tensor([len(pieces)])])
    return torch.stack([pieces[starts, 0], pieces[starts, 1], total[ends] - total[starts]], dim=1)


def scratch_rows(rows: RowSource, function: RowFunction, folder: Path) -> FileRows:
    """Apply a function to rows, block by block, and keep the result as float32 in an unnamed temporary file.

    Args:
        rows: [N, C], N >= 1.
        function: computes its second argument [n, C] from a block [n, C].
        folder: folder of the file, on a disk with room for 4 * N * C bytes. The file vanishes with the process.

    Raises:
        InputError: when the disk is full; the message names the missing bytes.
    """
    count, channels = rows.shape
    folder.mkdir(parents=True, exist_ok=True)
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - stays open as long as the rows are used
    result = torch.empty(min(BLOCK_ROWS, count), channels)
    done = 0
    for block in row_blocks(rows):
        function(block, result[: len(block)])
        try:
            file.write(result[: len(block)].view(torch.uint8).numpy().data)
            done += len(block)
            if done == count:
                file.flush()
        except OSError as error:
            missing = (count - done) * channels * result.dtype.itemsize
            with contextlib.suppress(OSError):
                file.close()
            raise InputError(
                f"{folder} has no room for the whitened bank ({error.strerror}): {missing:,} bytes are missing. Make room, "
                "or point MONAI_WSCXR_CACHE at another disk, and run again"
            ) from error
    return FileRows([RowsOnDisk(file, 0, done)], torch.tensor([[0, 0, done]]), channels, result.dtype)
