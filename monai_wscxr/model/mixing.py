"""Mixing (Eq. 6) inside MONAI's trainer: batches of normal patches, and the inferer that mixes abnormal patches into them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor
from torch.utils.data import IterableDataset

from monai_wscxr.bank.rows import RowSource
from monai_wscxr.errors import InputError
from monai_wscxr.ops import mixup
from monai_wscxr.system.progress import ahead

LOT_BYTES = 64 << 20  # bytes of rows that are gathered from a bank on disk at a time; two lots are held


class PatchBatches(IterableDataset[dict[str, Any]]):
    """Shuffled batches of normal patches; an epoch is one pass over the bank, or several over a small bank.

    Every batch has the number of its first row in the whole training, from which mixing takes its random numbers. The order
    depends on (seed, epoch) alone, so a resumed training continues exactly. Every rank takes an equal part of every batch.

    Args:
        batch_size: rows per batch over all ranks, >= 2 per rank; the last batch of a pass may be smaller.
        seed: seed of the shuffling.
        rank, world_size: number of this process, and number of processes.
        min_batches: smallest number of batches in an epoch, >= 1. A bank with fewer is passed several times, so that a
            small data set gets as many steps as a large one.

    Attributes:
        epoch: number of epochs that are done.

    Raises:
        InputError: when a number is out of its range.
    """

    def __init__(
        self, batch_size: int = 512, seed: int = 0, rank: int = 0, world_size: int = 1, min_batches: int = 1
    ) -> None:
        if batch_size < 2 * world_size:
            raise InputError(f"batch_size must be at least 2 per process, got {batch_size} for {world_size}")
        if min_batches < 1:
            raise InputError(f"min_batches must be at least 1, got {min_batches}")
        self.batch_size, self.seed, self.min_batches = batch_size, seed, min_batches
        self.rank, self.world_size = rank, world_size
        self.rows: Tensor | RowSource = torch.empty(0, 0)
        self.epoch = 0

    def fill(self, rows: Tensor | RowSource) -> None:
        """Set the rows [N, C] of the normal bank, in memory or on disk.

        Raises:
            InputError: when there are fewer than two rows per rank.
        """
        if rows.shape[0] < 2 * self.world_size:
            raise InputError(
                f"the normal bank holds {rows.shape[0]} patches; at least {2 * self.world_size} are needed"
            )
        self.rows = rows

    def release(self) -> None:
        """Drop the rows."""
        self.rows = torch.empty(0, 0)

    @property
    def batches_per_pass(self) -> int:
        """Number of batches in one pass; a remainder of fewer than two rows per rank is left out."""
        full, rest = divmod(self.rows.shape[0], self.batch_size)
        return full + (rest >= 2 * self.world_size)

    @property
    def passes_per_epoch(self) -> int:
        """Number of passes over the bank in one epoch."""
        return -(-self.min_batches // self.batches_per_pass)

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches in one epoch."""
        return self.batches_per_pass * self.passes_per_epoch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the batches of the next epoch: `normal` [B, C] and `offset`, the number of the first row in the training."""
        for number in range(self.epoch * self.passes_per_epoch, (self.epoch + 1) * self.passes_per_epoch):
            yield from self._one_pass(number)
        self.epoch += 1

    def _one_pass(self, number: int) -> Iterator[dict[str, Any]]:
        n = self.rows.shape[0]
        order = torch.randperm(n, generator=torch.Generator().manual_seed(self.seed * 1_000_003 + number))
        firsts, indices = [], []
        for batch in range(self.batches_per_pass):
            start = batch * self.batch_size
            share = min(self.batch_size, n - start) // self.world_size
            firsts.append(start + self.rank * share)
            indices.append(order[firsts[-1] : firsts[-1] + share])
        for first, normal in zip(firsts, self._batches(indices), strict=True):
            yield {"normal": normal, "offset": number * n + first}

    def _batches(self, indices: list[Tensor]) -> Iterator[Tensor]:
        rows = self.rows
        if isinstance(rows, Tensor):
            for index in indices:
                yield rows[index.to(rows.device)]
            return
        # gathering many batches at once reads neighbouring rows together; the next lot is read in the meantime
        lot = max(1, LOT_BYTES // (self.batch_size * rows.shape[1] * rows.dtype.itemsize))
        lots = [indices[i : i + lot] for i in range(0, len(indices), lot)]
        for some, found in zip(lots, ahead(lambda some: rows.gather(torch.cat(some)), lots, 1, 2), strict=True):
            yield from found.split([len(index) for index in some])


def prepare_patch_batch(
    batch: dict[str, Any], device: torch.device | str | None = None, non_blocking: bool = False, **_: Any
) -> tuple[Tensor, Tensor, tuple[()], dict[str, Any]]:
    """Prepare a batch for MONAI's trainer.

    Args:
        batch: batch of `PatchBatches`.
        device, non_blocking: see `Tensor.to`.

    Returns:
        Normal rows [B, C], targets [2B] (0 for the normal rows, then 1 for their mixtures), and arguments of the inferer.
    """
    normal = batch["normal"].to(device, non_blocking=non_blocking)
    target = torch.zeros(2 * normal.shape[0], device=normal.device)
    target[normal.shape[0] :] = 1
    return normal, target, (), {"offset": batch["offset"]}


class MixingInferer(Inferer):
    """Score a batch of normal patches, and the same batch mixed with mined abnormal patches (Eq. 6).

    Args:
        seed: seed of the random stream; partner and mixing factor of a row depend on (seed, row number) alone.
        alpha_min, alpha_max: range of the mixing factor in (0, 1]; published: [0.1, 1]. With both 1 there is no mixing: the
            rows are replaced by abnormal patches drawn at random.
        mix_hidden: mix after the first layer of the discriminator, which is linear, see `Discriminator.mixed_scores`: the
            same scores up to rounding, in less time.

    Raises:
        InputError: when the range of the mixing factor is not within (0, 1].
    """

    def __init__(self, seed: int = 0, alpha_min: float = 0.1, alpha_max: float = 1.0, mix_hidden: bool = False) -> None:
        if not 0 < alpha_min <= alpha_max <= 1:
            raise InputError(f"the mixing factor needs 0 < alpha_min <= alpha_max <= 1, got {alpha_min}, {alpha_max}")
        self.seed, self.alpha_min, self.alpha_max, self.mix_hidden = seed, alpha_min, alpha_max, mix_hidden
        self.mined = torch.empty(0, 0)

    def fill(self, mined: Tensor) -> None:
        """Set the rows [M, C] of the mined bank."""
        self.mined = mined

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """Return patch scores [2B]: those of the normal rows, then those of their mixtures.

        Args:
            inputs: normal rows [B, C].
            network: discriminator.
            args: not used.
            kwargs: `offset`, the number of the first row in the random stream, from `prepare_patch_batch`.
        """
        options = (self.seed, kwargs["offset"], self.alpha_min, self.alpha_max)
        scores: Tensor
        if self.mix_hidden:  # rows without channels, since partners and factors do not depend on the features
            _, source, alpha = mixup(inputs[:, :0], self.mined[:, :0], *options)
            scores = network(inputs, self.mined, source, alpha)
        else:
            mixed, _, _ = mixup(inputs, self.mined, *options)
            scores = network(torch.cat([inputs, mixed]))
        return scores
