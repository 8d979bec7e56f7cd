"""Eq. 6 inside MONAI's trainer: batches of normal patches, and the inferer that mixes abnormal patches into them."""

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

LOT_BYTES = 64 << 20  # rows that are gathered from a bank on disk at a time; two lots are held


class PatchBatches(IterableDataset):
    """Shuffled batches of normal patches; an epoch is one pass over the bank, or several over a small one.

    Every batch carries the number of its first row in the whole training run, which keys the mixing. The order depends on
    (seed, epoch) alone, so a resumed run continues exactly. With several ranks each takes its equal part of every batch.

    Args:
        batch_size: rows per batch over all ranks, >= 2; the last batch of an epoch may be smaller.
        seed: of the shuffling.
        rank, world_size: of this process.
        min_batches: least number of batches in an epoch; a bank that gives fewer is passed as often as that takes, so
            that a small data set gets as many steps as a large one.
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
        """Set the normal bank's rows [N, C], in memory or on disk; N must give every rank at least two rows."""
        if rows.shape[0] < 2 * self.world_size:
            raise InputError(
                f"the normal bank holds {rows.shape[0]} patches; at least {2 * self.world_size} are needed"
            )
        self.rows = rows

    def release(self) -> None:
        """Hold no rows any more."""
        self.rows = torch.empty(0, 0)

    @property
    def batches_per_pass(self) -> int:
        """Number of batches in one pass; a remainder too small for every rank is left out."""
        full, rest = divmod(self.rows.shape[0], self.batch_size)
        return full + (rest >= 2 * self.world_size)

    @property
    def passes_per_epoch(self) -> int:
        """Passes over the bank in one epoch."""
        return -(-self.min_batches // self.batches_per_pass)

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches in one epoch."""
        return self.batches_per_pass * self.passes_per_epoch

    def __iter__(self) -> Iterator[dict[str, Any]]:
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
        # many batches at a time, so that rows which lie near each other are read together; the next lot is read meanwhile
        lot = max(1, LOT_BYTES // (self.batch_size * rows.shape[1] * rows.dtype.itemsize))
        lots = [indices[i : i + lot] for i in range(0, len(indices), lot)]
        for some, found in zip(lots, ahead(lambda some: rows.gather(torch.cat(some)), lots, 1, 2), strict=True):
            yield from found.split([len(index) for index in some])


def prepare_patch_batch(
    batch: dict[str, Any], device: torch.device | str | None = None, non_blocking: bool = False, **_: Any
) -> tuple[Tensor, Tensor, tuple, dict]:
    """MONAI `prepare_batch`: normal rows [B, C], targets [2B] (0 normal, then 1 mixed), and the mixing offset."""
    normal = batch["normal"].to(device, non_blocking=non_blocking)
    target = torch.zeros(2 * normal.shape[0], device=normal.device)
    target[normal.shape[0] :] = 1
    return normal, target, (), {"offset": batch["offset"]}


class MixingInferer(Inferer):
    """Scores of a batch of normal patches and of the same batch mixed with mined abnormal patches (Eq. 6).

    Args:
        seed: of the random stream; a row's partner and factor depend on (seed, row number) alone.
        alpha_min, alpha_max: range of the mixing factor; the paper draws from [0.1, 1].
            Both 1 means no mixing: plain abnormal patches, drawn with replacement.
        mix_hidden: mix behind the discriminator's first layer, which is linear (`Discriminator.mixed_scores`): the same
            scores but for rounding, in less time.
    """

    def __init__(self, seed: int = 0, alpha_min: float = 0.1, alpha_max: float = 1.0, mix_hidden: bool = False) -> None:
        if not 0 < alpha_min <= alpha_max <= 1:
            raise InputError(f"the mixing factor needs 0 < alpha_min <= alpha_max <= 1, got {alpha_min}, {alpha_max}")
        self.seed, self.alpha_min, self.alpha_max, self.mix_hidden = seed, alpha_min, alpha_max, mix_hidden
        self.mined = torch.empty(0, 0)

    def fill(self, mined: Tensor) -> None:
        """Set the mined bank's rows [M, C]."""
        self.mined = mined

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """Patch scores [2B]: of the normal rows [B, C], then of their mixtures.

        The keyword `offset`, from `prepare_patch_batch`, numbers the first row in the random stream.
        """
        options = (self.seed, kwargs["offset"], self.alpha_min, self.alpha_max)
        if self.mix_hidden:  # partners and factors depend on no channel
            _, source, alpha = mixup(inputs[:, :0], self.mined[:, :0], *options)
            return network(inputs, self.mined, source, alpha)
        mixed, _, _ = mixup(inputs, self.mined, *options)
        return network(torch.cat([inputs, mixed]))
