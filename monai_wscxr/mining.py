"""Anomaly feature mining (Eq. 4 and 5): of the abnormal bank, the patches farthest from the normal bank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from monai_wscxr.bank import FeatureBank
from monai_wscxr.distributed import min_distance_sharded, process_count
from monai_wscxr.ops import mine_top_r, mined_count


@dataclass(frozen=True)
class Mined:
    """Result of mining.

    Attributes:
        bank: the mined bank M'_a, farthest first.
        distance: [k] float32, S(m) of each mined patch.
    """

    bank: FeatureBank
    distance: Tensor


def mine(normal: FeatureBank, abnormal: FeatureBank, retention: float) -> Mined:
    """M'_a = the floor(r |M_a|) patches of `abnormal` with the largest distance to `normal`, at least one.

    Several processes share the rows of the normal bank out; the result is the same.

    Args:
        normal: normal bank, at least one row.
        abnormal: abnormal bank, at least one row, same channels and device.
        retention: retention rate r in (0, 1]; 1 keeps all (no mining).

    Raises:
        ValueError: on empty banks, NaN or Inf, or r outside (0, 1].
    """
    if process_count() > 1:
        k = mined_count(len(abnormal), retention)
        distance, _ = min_distance_sharded(abnormal.rows, normal.rows)
        index = torch.sort(distance, descending=True, stable=True).indices[:k]
        distance = distance[index]
    else:
        index, distance = mine_top_r(abnormal.rows, normal.rows, retention)
    return Mined(abnormal.select(index), distance)
