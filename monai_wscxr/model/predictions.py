"""Predictions: from patch scores and image features to anomaly score, p-value, decision and anomaly map."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_wscxr.data.radiograph.base import RadiographError
from monai_wscxr.errors import InputError
from monai_wscxr.model.calibration import Calibration
from monai_wscxr.model.description import ModelDescription
from monai_wscxr.model.local_map import LocalMap
from monai_wscxr.model.scores import anomaly_map, anomaly_score


def _no_patch_scores() -> NDArray[np.float32]:
    return np.empty((0, 0), np.float32)


@dataclass(frozen=True, eq=False)
class Prediction:
    """Result of a model for one image, or the reason why the image was rejected.

    Attributes:
        file: path of the image, as the caller gave it.
        status: "ok" or "rejected".
        reason: reason code of a rejected image, or of requested DICOM results that could not be made; otherwise "".
        anomaly_score: higher is more abnormal; NaN for a rejected image.
        p_value: calibrated on held-out normal images, in (0, 1]; NaN for a rejected image.
        abnormal: whether the score exceeds the operating point; False for a rejected image.
        patch_scores: [h, w] float32; [0, 0] for a rejected image or where only the score is known.
    """

    file: str
    status: str
    reason: str
    anomaly_score: float
    p_value: float
    abnormal: bool
    patch_scores: NDArray[np.float32] = field(default_factory=_no_patch_scores)

    @classmethod
    def scored(
        cls, file: str, score: float, calibration: Calibration, patch_scores: NDArray[np.float32] | None = None
    ) -> Prediction:
        """Return the prediction of an image with this anomaly score."""
        scores = _no_patch_scores() if patch_scores is None else patch_scores
        return cls(file, "ok", "", score, calibration.p_value(score), calibration.abnormal(score), scores)

    @classmethod
    def rejected(cls, file: str, reason: str) -> Prediction:
        """Return the prediction of an image that could not be used."""
        return cls(file, "rejected", reason, math.nan, math.nan, False)


def to_prediction(model: ModelDescription, file: str, patch_scores: ArrayLike) -> Prediction:
    """Compute score, p-value and decision from the patch scores [h, w] of one image.

    Raises:
        InputError: when a patch score is NaN or infinite.
    """
    scores = np.asarray(patch_scores, np.float32)
    if not np.isfinite(scores).all():
        raise InputError(f"the model gives NaN or Inf for {file}; its weights are damaged, train again")
    score = float(anomaly_score(scores[None, None], model.score_share)[0, 0])
    return Prediction.scored(file, score, model.calibration, scores)


def check_images(
    model: ModelDescription, image_features: ArrayLike, allow: Collection[str] = ()
) -> list[RadiographError | None]:
    """Return the reason to refuse each image that is unlike a chest radiograph, None for the others.

    Args:
        model: the trained model; without a chest check it refuses nothing.
        image_features: [B, C], means of the patch features, as of `CheckedNet`.
        allow: gates that are not applied.
    """
    if model.chest_check is None:
        return [None] * len(np.asarray(image_features))
    return model.chest_check.refusals(image_features, allow)


def to_map(model: ModelDescription, prediction: Prediction) -> NDArray[np.float32]:
    """Compute the anomaly map [S, S] of a prediction, S being the size of the preprocessed image."""
    found: NDArray[np.float32] = to_maps(model, prediction.patch_scores[None])[0]
    return found


def to_maps(model: ModelDescription, patch_scores: ArrayLike) -> NDArray[np.float32]:
    """Compute the anomaly maps [n, S, S] of images with patch scores [n, h, w]."""
    size = model.preprocessing.image_size
    scores = np.asarray(patch_scores, np.float32)[:, None]
    return shown_maps(scores, size, model.map_sigma, model.local_map)


def shown_maps(patch_scores: ArrayLike, size: int, sigma: float, local_map: LocalMap | None) -> NDArray[np.float32]:
    """Compute anomaly maps [n, size, size] from patch scores [n, 1, h, w]; see `ModelDescription` for the other arguments."""
    scores = np.asarray(patch_scores, np.float32)
    values = scores if local_map is None else local_map(scores)
    return anomaly_map(values, (size, size), sigma)[:, 0]


def map_peaks(patch_scores: ArrayLike, size: int, sigma: float, local_map: LocalMap | None) -> list[float]:
    """Compute the highest value of the anomaly map of each image, arguments as of `shown_maps`."""
    scores = np.asarray(patch_scores, np.float32)
    peaks: list[float] = []
    for start in range(0, len(scores), 64):
        peaks += shown_maps(scores[start : start + 64], size, sigma, local_map).max((1, 2)).tolist()
    return peaks


def in_order(
    files: Iterable[str], predictions: Iterable[Prediction], rejected: Iterable[tuple[str, str, str]]
) -> list[Prediction]:
    """Return one prediction per file, in the order of `files`.

    Args:
        files: all files of a run.
        predictions: predictions of the files that were scored, in any order.
        rejected: file, reason code and message of the others.
    """
    by_file = {p.file: p for p in predictions}
    by_file.update({file: Prediction.rejected(file, code) for file, code, _ in rejected})
    return [by_file[file] for file in files]
