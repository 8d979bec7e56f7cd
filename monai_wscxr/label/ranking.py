"""Scores of images from their patch features, their ranks, and the largest changes of rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_wscxr.errors import InputError
from monai_wscxr.model.artefact import TrainedModel
from monai_wscxr.model.scores import anomaly_score


@dataclass(frozen=True)
class ImageScore:
    """A model's result for one image.

    Attributes:
        anomaly_score: anomaly score; higher is more abnormal.
        p_value: calibrated p-value.
        abnormal: whether the score lies above the operating point.
        peak: x and y of the centre of the patch with the highest value on the map, in [0, 1] from the left and top edge.
        place: coordinates of the image for drift; empty where the model has no reference.
        direction: [C] float16, whitened image features at unit length; images alike have a small angle between them.
    """

    anomaly_score: float
    p_value: float
    abnormal: bool
    peak: tuple[float, float]
    place: tuple[float, ...] = ()
    direction: NDArray[np.float16] = field(default_factory=lambda: np.zeros(1, np.float16), compare=False, repr=False)


def score_fields(score: ImageScore | None) -> dict[str, Any]:
    """Return the fields of an image's entry that hold its score; all are None for an image without one."""
    return {
        "anomaly_score": score and score.anomaly_score,
        "p_value": score and score.p_value,
        "abnormal": score.abnormal if score else None,
        "peak": list(score.peak) if score else None,
    }


def patch_scores(model: TrainedModel, features: Tensor, grid: tuple[int, int]) -> Tensor:
    """Compute the patch scores that `WSCXRNet` gives, from features instead of images.

    Args:
        model: the model.
        features: [n, h*w, C], as the extractor returns them, not whitened.
        grid: h and w.

    Returns:
        float32 [n, h, w] on the CPU.

    Raises:
        InputError: when a score is NaN or infinite.
    """
    h, w = grid
    device = next(model.network.discriminator.parameters()).device
    with torch.inference_mode():
        parts = [
            model.network.patch_scores(part.transpose(1, 2).unflatten(2, grid).to(device)).cpu()
            for part in features.split(32)
        ]
    scores = torch.cat(parts).reshape(-1, h, w) if parts else torch.empty(0, h, w)
    if not bool(torch.isfinite(scores).all()):
        raise InputError("the model gives NaN or Inf; its weights are damaged, train again")
    return scores


def score_images(model: TrainedModel, features: Tensor, grid: tuple[int, int]) -> list[ImageScore]:
    """Score images by their features; arguments and errors as of `patch_scores`."""
    patches = patch_scores(model, features, grid)
    values = anomaly_score(patches[:, None], model.score_share)[:, 0].tolist() if len(patches) else []
    h, w = grid
    shown = patches.numpy() if model.local_map is None else model.local_map(patches[:, None].numpy())[:, 0]
    peaks = shown.reshape(len(shown), -1).argmax(1).tolist() if len(patches) else []
    means = features.mean(1)
    places = [()] * len(patches) if model.drift is None else model.drift.coordinates(means).tolist()
    directions = _directions(model, means)
    return [
        ImageScore(
            value,
            model.calibration.p_value(value),
            model.calibration.abnormal(value),
            ((peak % w + 0.5) / w, (peak // w + 0.5) / h),
            tuple(place),
            direction,
        )
        for value, peak, place, direction in zip(values, peaks, places, directions, strict=True)
    ]


def _directions(model: TrainedModel, means: Tensor) -> NDArray[np.float16]:
    """Return whitened image features at unit length, [n, C], for image features [n, C]."""
    if not len(means):
        return np.empty((0, 1), np.float16)
    with torch.inference_mode():
        whitened = model.network.whitening(means.to(model.network.discriminator.distance_weight.device))
        directions: NDArray[np.float16] = torch.nn.functional.normalize(whitened.float(), dim=1).half().cpu().numpy()
    return directions


def ranks(scores: Mapping[str, ImageScore]) -> dict[str, int]:
    """Rank images by anomaly score, 1 being the highest; equal scores rank in the order of their ids."""
    order = sorted(scores, key=lambda image_id: (-scores[image_id].anomaly_score, image_id))
    return {image_id: rank for rank, image_id in enumerate(order, start=1)}


def rank_changes(
    before: Mapping[str, ImageScore],
    after: Mapping[str, ImageScore],
    names: Sequence[tuple[str, str]],
    largest: int = 50,
) -> list[dict[str, Any]]:
    """List the images whose rank a new model changed most, with rank, score, p-value and decision before and after.

    Args:
        before: scores by image id under the old model.
        after: scores by image id under the new model; images that lack one of the two are left out.
        names: (id, name) of images.
        largest: largest number of entries.

    Returns:
        Entries as JSON values, largest change first.
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
