"""Anomaly feature mining (Eq. 4 and 5): of the abnormal bank, the patches farthest from the normal bank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from monai_wscxr.bank import BankOnDisk, FeatureBank
from monai_wscxr.bank_file import min_distance_streamed, mine_streamed
from monai_wscxr.distributed import min_distance_sharded, process_count
from monai_wscxr.errors import InputError
from monai_wscxr.ops import min_distance, mine_top_r, mined_count

SCOPES = ("all", "image")


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
    normal: FeatureBank | BankOnDisk,
    abnormal: FeatureBank,
    retention: float,
    scope: str = "all",
    budget_bytes: int = 1 << 30,
) -> Mined:
    """M'_a = the floor(r |M_a|) patches of `abnormal` with the largest distance to `normal`, at least one.

    Several processes share the rows of the normal bank out; the result is the same.

    Args:
        normal: normal bank, at least one row; one on disk is streamed, with the same result.
        abnormal: abnormal bank, at least one row, same channels; on the same device, where the normal bank has one. Of whole
            images where the scope is "image".
        retention: retention rate r in (0, 1]; 1 keeps all (no mining).
        scope: "all" takes the farthest patches of all images together, as published. "image" takes that share of every
            image, so that one unlike the others does not fill the bank alone.
        budget_bytes: memory for streaming.

    Raises:
        ValueError: on empty banks, NaN or Inf, or r outside (0, 1].
        InputError: on another scope.
    """
    if check_scope(scope) == "all" and process_count() == 1:
        if isinstance(normal, BankOnDisk):
            index, distance = mine_streamed(abnormal.rows, normal.rows, retention, budget_bytes)
        else:
            index, distance = mine_top_r(abnormal.rows, normal.rows, retention)
        return Mined(abnormal.select(index), distance)
    k = mined_count(len(abnormal), retention)  # refuses r outside (0, 1]
    distance = _distances(normal, abnormal, budget_bytes)
    if scope == "all":
        index = torch.sort(distance, descending=True, stable=True).indices[:k]
    else:
        images = len(abnormal.images)  # refuses a bank of chosen rows
        index = farthest_of_each(distance.reshape(images, -1), retention)
    return Mined(abnormal.select(index), distance[index])


def _distances(normal: FeatureBank | BankOnDisk, abnormal: FeatureBank, budget_bytes: int) -> Tensor:
    """S(m) [M] of every abnormal patch (Eq. 4)."""
    if process_count() > 1:
        return min_distance_sharded(abnormal.rows, normal.rows)[0]
    if isinstance(normal, BankOnDisk):
        return min_distance_streamed(abnormal.rows, normal.rows, budget_bytes)[0]
    return min_distance(abnormal.rows, normal.rows)[0]


def farthest_of_each(distance: Tensor, retention: float) -> Tensor:
    """Flat indices of the floor(r hw) largest distances of every image, at least one; farthest first, ties in order.

    Args:
        distance: [n, hw].
        retention: r.
    """
    n, patches = distance.shape
    count = max(1, int(retention * patches + 1e-9))
    place = torch.sort(distance, dim=1, descending=True, stable=True).indices[:, :count]
    index = (place + patches * torch.arange(n, device=place.device)[:, None]).flatten().sort().values
    return index[torch.sort(distance.flatten()[index], descending=True, stable=True).indices]


def check_scope(scope: str) -> str:
    """The scope of mining.

    Raises:
        InputError: when there is no such scope.
    """
    if scope not in SCOPES:
        raise InputError(f"mining_scope must be all (as published) or image, got {scope!r}")
    return scope
