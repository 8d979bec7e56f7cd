"""Scores of an archive: from cached features through the model's own parts, and the order that follows from them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from monai_wscxr.errors import InputError
from monai_wscxr.model.artefact import TrainedModel
from monai_wscxr.model.networks import anomaly_score

STRATEGIES = ("most_suspicious", "most_uncertain", "random")


@dataclass(frozen=True)
class Scored:
    """What the model says of one image.

    Attributes:
        anomaly_score, p_value, abnormal: score, calibrated p-value, decision.
        peak: x and y of the middle of the highest patch, in [0, 1] from the left and top edge.
    """

    anomaly_score: float
    p_value: float
    abnormal: bool
    peak: tuple[float, float]


def described_score(scored: Scored | None) -> dict[str, Any]:
    """As JSON values; all None for an image without a score."""
    return {
        "anomaly_score": scored and scored.anomaly_score,
        "p_value": scored and scored.p_value,
        "abnormal": scored.abnormal if scored else None,
        "peak": list(scored.peak) if scored else None,
    }


def patch_scores(model: TrainedModel, features: Tensor, grid: tuple[int, int]) -> Tensor:
    """Patch scores [n, h, w] of images from their features [n, h*w, C], as `WSCXRNet` gives them for the images.

    Raises:
        InputError: when one is NaN or infinite.
    """
    h, w = grid
    device = next(model.network.discriminator.parameters()).device
    with torch.inference_mode():
        parts = [
            model.network.discriminator(model.network.whitening(part.flatten(0, 1).to(device))).cpu()
            for part in features.split(32)
        ]
    scores = torch.cat(parts).reshape(-1, h, w) if parts else torch.empty(0, h, w)
    if not bool(torch.isfinite(scores).all()):
        raise InputError("the model gives NaN or Inf; its weights are damaged, train again")
    return scores


def score_images(model: TrainedModel, features: Tensor, grid: tuple[int, int]) -> list[Scored]:
    """Score, p-value, decision and peak of images from their features [n, h*w, C]."""
    patches = patch_scores(model, features, grid)
    values = anomaly_score(patches[:, None], model.score_share)[:, 0].tolist() if len(patches) else []
    h, w = grid
    peaks = patches.flatten(1).argmax(1).tolist() if len(patches) else []
    return [
        Scored(
            value,
            model.calibration.p_value(value),
            model.calibration.abnormal(value),
            ((peak % w + 0.5) / w, (peak // w + 0.5) / h),
        )
        for value, peak in zip(values, peaks, strict=True)
    ]


def ranks(scores: Mapping[str, Scored]) -> dict[str, int]:
    """1 for the most suspicious image; equal scores in the order of the ids."""
    order = sorted(scores, key=lambda image_id: (-scores[image_id].anomaly_score, image_id))
    return {image_id: rank for rank, image_id in enumerate(order, start=1)}


def ordered(
    strategy: str, ids: Iterable[str], scores: Mapping[str, Scored], threshold: float | None, seed: int = 0
) -> list[str]:
    """The ids in the order in which a strategy would have them labelled.

    Args:
        strategy: "most_suspicious": highest score first. "most_uncertain": nearest to the operating point first.
            "random": an order that depends on the seed and the ids alone.
        ids: images to order; those without a score come last.
        scores: by id.
        threshold: the operating point; None without a model.
        seed: of the random order.

    Raises:
        InputError: on another strategy.
    """
    keys: dict[str, Callable[[str], float]] = {
        "most_suspicious": lambda i: -scores[i].anomaly_score,
        "most_uncertain": lambda i: abs(scores[i].anomaly_score - (threshold or 0.0)),
        "random": lambda i: int.from_bytes(hashlib.blake2b(f"{seed}:{i}".encode(), digest_size=6).digest(), "big"),
    }
    if strategy not in keys:
        raise InputError(f"unknown strategy {strategy!r}; use one of {', '.join(STRATEGIES)}")
    key = keys[strategy]
    known: list[str] = []
    rest: list[str] = []
    for image_id in ids:
        (known if strategy == "random" or image_id in scores else rest).append(image_id)
    return sorted(known, key=lambda i: (key(i), i)) + rest


def moves(
    before: Mapping[str, Scored], after: Mapping[str, Scored], names: Sequence[tuple[str, str]], largest: int = 50
) -> list[dict[str, Any]]:
    """What a new model changed: rank, score, p-value and decision of the images that moved most, largest move first.

    Args:
        before, after: by id; only images in both are looked at.
        names: (id, name).
        largest: number of entries.
    """
    old, new = ranks(before), ranks(after)
    found: list[dict[str, Any]] = [
        {
            "id": image_id,
            "name": name,
            "rank_before": old[image_id],
            "rank_after": new[image_id],
            "score_before": before[image_id].anomaly_score,
            "score_after": after[image_id].anomaly_score,
            "p_before": before[image_id].p_value,
            "p_after": after[image_id].p_value,
            "flagged_before": before[image_id].abnormal,
            "flagged_after": after[image_id].abnormal,
        }
        for image_id, name in names
        if image_id in old and image_id in new
    ]
    found.sort(key=lambda m: (-abs(new[m["id"]] - old[m["id"]]), new[m["id"]]))
    return found[:largest]
