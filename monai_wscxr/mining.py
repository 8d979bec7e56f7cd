"""Anomaly feature mining (Eq. 4 and 5): of the abnormal bank, the patches farthest from the normal bank."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from monai_wscxr.bank import BankOnDisk, FeatureBank
from monai_wscxr.bank_file import mine_streamed
from monai_wscxr.ops import mine_top_r


@dataclass(frozen=True)
class Mined:
    """Result of mining.

    Attributes:
        bank: the mined bank M'_a, farthest first.
        distance: [k] float32, S(m) of each mined patch.
    """

    bank: FeatureBank
    distance: Tensor


def mine(
    normal: FeatureBank | BankOnDisk, abnormal: FeatureBank, retention: float, budget_bytes: int = 1 << 30
) -> Mined:
    """M'_a = the floor(r |M_a|) patches of `abnormal` with the largest distance to `normal`, at least one.

    Args:
        normal: normal bank, at least one row; one on disk is streamed, with the same result.
        abnormal: abnormal bank, at least one row, same channels; on the same device, where the normal bank has one.
        retention: retention rate r in (0, 1]; 1 keeps all (no mining).
        budget_bytes: memory for streaming.

    Raises:
        ValueError: on empty banks, NaN or Inf, or r outside (0, 1].
    """
    if isinstance(normal, BankOnDisk):
        index, distance = mine_streamed(abnormal.rows, normal.rows, retention, budget_bytes)
    else:
        index, distance = mine_top_r(abnormal.rows, normal.rows, retention)
    return Mined(abnormal.select(index), distance)
