"""Banks of patch features, in memory or on disk: rows with the image and the patch position each of them comes from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from monai_wscxr.bank.rows import RowFunction, RowSource, row_blocks, scratch_rows
from monai_wscxr.system.heap import give_back_large_blocks


@dataclass(frozen=True)
class FeatureBank:
    """A bank in memory: rows of patch features with their origins.

    Attributes:
        rows: [N, C] floating point.
        files: image paths, to which `file_index` refers.
        file_index: [N] int32, number of each row's image.
        position: [N, 2] int16, patch row y and patch column x of each row.
        grid: patch rows and columns (h, w) of one image.
    """

    rows: Tensor
    files: tuple[str, ...]
    file_index: Tensor
    position: Tensor
    grid: tuple[int, int]

    @classmethod
    def from_images(cls, features: Tensor, files: Sequence[str], grid: tuple[int, int]) -> FeatureBank:
        """Create a bank of whole images.

        Args:
            features: [n, h*w, C], images in the order of `files`, patches in the order y, x.
            files: n image paths.
            grid: (h, w).

        Raises:
            ValueError: when the shapes do not match.
        """
        h, w = grid
        if features.ndim != 3 or features.shape[0] != len(files) or features.shape[1] != h * w:
            raise ValueError(f"features {tuple(features.shape)} do not fit {len(files)} images of {h} x {w} patches")
        n = features.shape[0]
        y, x = torch.meshgrid(torch.arange(h, dtype=torch.int16), torch.arange(w, dtype=torch.int16), indexing="ij")
        return cls(
            rows=features.reshape(n * h * w, features.shape[2]),
            files=tuple(files),
            file_index=torch.arange(n, dtype=torch.int32).repeat_interleave(h * w),
            position=torch.stack([y.flatten(), x.flatten()], dim=1).repeat(n, 1),
            grid=grid,
        )

    def __len__(self) -> int:
        return self.rows.shape[0]

    @property
    def images(self) -> Tensor:
        """Maps [n, C, h, w] of whole images; ValueError unless the bank holds every patch of them, in order."""
        h, w = self.grid
        if len(self) != len(self.files) * h * w:
            raise ValueError(
                f"this bank holds {len(self)} chosen rows, not all {h * w} patches of {len(self.files)} images"
            )
        return self.rows.reshape(len(self.files), h, w, self.rows.shape[1]).permute(0, 3, 1, 2)

    def select(self, index: Tensor) -> FeatureBank:
        """Return the bank of the rows at `index` [k] int64, in that order, with their origins."""
        index = index.to(self.rows.device)
        here = index.cpu()
        return FeatureBank(self.rows[index], self.files, self.file_index[here], self.position[here], self.grid)

    def origin(self, row: int) -> tuple[str, int, int]:
        """Return file, patch row and patch column of a row."""
        y, x = self.position[row].tolist()
        return self.files[int(self.file_index[row])], y, x

    def to(self, device: str | torch.device) -> FeatureBank:
        """Return the bank with its rows on `device`."""
        return FeatureBank(self.rows.to(device), self.files, self.file_index, self.position, self.grid)

    def load(self) -> FeatureBank:
        """Return the bank itself, which is in memory already."""
        return self

    def maps(self, images: int) -> Iterator[Tensor]:
        """Yield maps [images, C, h, w] of consecutive images (fewer at the end); only for a bank of whole images."""
        yield from self.images.split(images)

    def changed(self, function: RowFunction, folder: Path | None = None, in_place: bool = False) -> FeatureBank:
        """Return the bank with a function applied to its rows, block by block.

        Args:
            function: computes its second argument [n, C] from a block of rows [n, C].
            folder: not used; see `BankOnDisk.changed`.
            in_place: overwrite the rows of this bank, which takes no memory for a second copy.
        """
        rows = self.rows if in_place else torch.empty_like(self.rows)
        for block, out in zip(row_blocks(self.rows), row_blocks(rows), strict=True):
            function(block, out)
        return dataclasses.replace(self, rows=rows)


@dataclass(frozen=True)
class BankOnDisk:
    """A bank of whole images whose rows are read when they are needed.

    Training on it gives the same model, bit for bit, as training on the `FeatureBank` of the same images.

    Attributes:
        rows: [N, C], images in the order of `files`, patches in the order y, x.
        files: image paths.
        grid: patch rows and columns (h, w) of one image.

    Raises:
        ValueError: when the number of rows does not match the images.
    """

    rows: RowSource
    files: tuple[str, ...]
    grid: tuple[int, int]

    def __post_init__(self) -> None:
        give_back_large_blocks()  # otherwise block-wise passes over the bank would come to hold as much memory as the bank
        h, w = self.grid
        if self.rows.shape[0] != len(self.files) * h * w:
            raise ValueError(f"{self.rows.shape[0]} rows do not fit {len(self.files)} images of {h} x {w} patches")

    def __len__(self) -> int:
        return self.rows.shape[0]

    def to(self, device: str | torch.device) -> BankOnDisk:
        """Return the bank itself: its rows stay on disk, and blocks of them move to a device when they are used."""
        return self

    def load(self) -> FeatureBank:
        """Read the whole bank into memory, as float32."""
        rows = self.rows.read(0, torch.empty(self.rows.shape, dtype=self.rows.dtype)).float()
        return FeatureBank.from_images(rows.reshape(len(self.files), -1, rows.shape[1]), self.files, self.grid)

    def maps(self, images: int) -> Iterator[Tensor]:
        """Yield maps [images, C, h, w] of consecutive images (fewer at the end), on the CPU.

        They share one buffer: each is valid until the next one is requested.
        """
        h, w = self.grid
        for rows in row_blocks(self.rows, images * h * w):
            yield rows.reshape(-1, h, w, rows.shape[1]).permute(0, 3, 1, 2)

    def changed(self, function: RowFunction, folder: Path | None = None, in_place: bool = False) -> BankOnDisk:
        """Return the bank with a function applied to its rows, block by block, in an unnamed temporary file.

        Args:
            function: computes its second argument [n, C] from a block of rows [n, C].
            folder: folder of the file, see `scratch_rows`.
            in_place: not used; the files of this bank are never changed.

        Raises:
            ValueError: without a folder.
            InputError: when the disk is full.
        """
        if folder is None:
            raise ValueError("changing a bank on disk needs a folder for the new rows")
        return dataclasses.replace(self, rows=scratch_rows(self.rows, function, folder))


def spaced_maps(bank: FeatureBank | BankOnDisk, most: int, images: int) -> Iterator[Tensor]:
    """Yield maps [images, C, h, w] of at most `most` images, evenly spaced over a bank of whole images.

    A bank with no more images is yielded whole, as by its method `maps`; a map may then be valid only until the next one is
    requested. Of a larger bank on disk only the chosen images are read.
    """
    step = -(-len(bank.files) // most)
    if step <= 1:
        yield from bank.maps(images)
        return
    h, w = bank.grid
    for chosen in torch.arange(0, len(bank.files), step).split(images):
        if isinstance(bank, FeatureBank):
            yield bank.images[chosen.to(bank.rows.device)]
        else:
            rows = bank.rows.gather((chosen[:, None] * (h * w) + torch.arange(h * w)).flatten())
            yield rows.reshape(len(chosen), h, w, -1).permute(0, 3, 1, 2)
