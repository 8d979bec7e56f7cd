"""Anomaly feature mining (Eq. 4 and 5): keep the patches of the abnormal bank that are farthest from the normal bank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from monai_wscxr.bank.feature_bank import BankOnDisk, FeatureBank
from monai_wscxr.bank.search import farthest, nearest
from monai_wscxr.errors import InputError
from monai_wscxr.ops import mined_count

SCOPES = ("all", "image")


@dataclass(frozen=True)
class Mined:
    """The mined bank and its distances.

    Attributes:
        bank: the mined bank M'_a, farthest patch first.
        distance: [k] float32, S(m) of each mined patch.
    """

    bank: FeatureBank
    distance: Tensor


def mine(normal: FeatureBank | BankOnDisk, abnormal: FeatureBank, retention: float, scope: str = "all") -> Mined:
    """Keep the abnormal patches with the largest distance to the normal bank, M'_a of Eq. 5.

    Args:
        normal: normal bank with at least one row; in memory or on disk, with the same result.
        abnormal: abnormal bank with at least one row and the same number of channels, on the device of the normal bank if
            that is in memory; for the scope "image" a bank of whole images.
        retention: retention rate r in (0, 1]; 1 keeps all patches (no mining).
        scope: "all" keeps the floor(r |M_a|) farthest patches of all images together, as published; "image" keeps that
            share of every image, so that one unusual image does not fill the bank alone. At least one patch is kept, in all
            or of every image.

    Raises:
        ValueError: on empty banks, NaN or Inf, or r outside (0, 1].
        InputError: on another scope.
    """
    if check_scope(scope) == "all":
        index, distance = farthest(abnormal.rows, normal.rows, mined_count(len(abnormal), retention))
        return Mined(abnormal.select(index), distance)
    images = len(abnormal.images)  # refuses a bank of chosen rows
    distance, _ = nearest(abnormal.rows, normal.rows)
    index = farthest_of_each(distance.reshape(images, -1), retention)
    return Mined(abnormal.select(index), distance[index])


def farthest_of_each(distance: Tensor, retention: float) -> Tensor:
    """Choose the largest distances of every image.

    Args:
        distance: [n, hw], one row per image.
        retention: retention rate r in (0, 1].

    Returns:
        [n * k] int64 indices into the flattened distances, k = max(1, floor(r hw)); farthest first, ties to the lowest index.
    """
    n, patches = distance.shape
    count = mined_count(patches, retention)
    place = torch.sort(distance, dim=1, descending=True, stable=True).indices[:, :count]
    index = (place + patches * torch.arange(n, device=place.device)[:, None]).flatten().sort().values
    return index[torch.sort(distance.flatten()[index], descending=True, stable=True).indices]


def check_scope(scope: str) -> str:
    """Return a scope of mining after checking it.

    Raises:
        InputError: when it is neither "all" nor "image".
    """
    if scope not in SCOPES:
        raise InputError(f"mining_scope must be all (as published) or image, got {scope!r}")
    return scope
