"""Apply a trained model to image files: anomaly score, p-value, decision and anomaly map."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from monai_wscxr.data.preprocessing import RadiographLoader
from monai_wscxr.data.radiograph.base import RadiographError
from monai_wscxr.data.stream import RadiographStream, Rejected
from monai_wscxr.errors import InputError
from monai_wscxr.features.inference import Inference
from monai_wscxr.features.parallel import ThreadParallel
from monai_wscxr.model.artefact import TrainedModel
from monai_wscxr.model.calibration import Calibration
from monai_wscxr.model.chest_check import CheckedNet
from monai_wscxr.model.local_map import LocalMap
from monai_wscxr.model.networks import EpochScores, anomaly_map, anomaly_score


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


def prediction_features(model: TrainedModel, runtime: str = "auto") -> Inference:
    """Prepare the patch features of a model for prediction, in the precision in which they calibrated it.

    Args:
        model: the trained model; the features run on the device of its network.
        runtime: see `Inference`.

    Raises:
        InputError: when the runtime cannot be used.
    """
    precision = model.settings.get("precision", "float32")
    return Inference(model.network.features, precision, False, runtime, model.preprocessing.image_size)


def prediction_network(
    model: TrainedModel, runtime: str = "auto", network: EpochScores | None = None, features: Inference | None = None
) -> ThreadParallel:
    """Prepare a model for prediction: images [B, 3, H, W] to patch scores [B, E, h, w] and image features [B, C].

    Args:
        model: the trained model.
        runtime: see `Inference`.
        network: in place of the model's network, with its features.
        features: what `prediction_features` made, in place of new ones.

    Raises:
        InputError: when the runtime cannot be used.
    """
    chosen = prediction_features(model, runtime) if features is None else features
    return ThreadParallel(CheckedNet(model.network if network is None else network, chosen))


def to_prediction(model: TrainedModel, file: str, patch_scores: Tensor) -> Prediction:
    """Compute score, p-value and decision from the patch scores [h, w] of one image.

    Raises:
        InputError: when a patch score is NaN or infinite.
    """
    if not bool(torch.isfinite(patch_scores).all()):
        raise InputError(f"the model gives NaN or Inf for {file}; its weights are damaged, train again")
    score = float(anomaly_score(patch_scores[None, None], model.score_share)[0, 0])
    return Prediction.scored(file, score, model.calibration, patch_scores.float().cpu().numpy())


def check_images(
    model: TrainedModel, image_features: Tensor, allow: Collection[str] = ()
) -> list[RadiographError | None]:
    """Return the reason to refuse each image that is unlike a chest radiograph, None for the others.

    Args:
        model: the trained model; without a chest check it refuses nothing.
        image_features: [B, C], means of the patch features, as of `CheckedNet`.
        allow: gates that are not applied.
    """
    if model.chest_check is None:
        return [None] * len(image_features)
    return model.chest_check.refusals(image_features, allow)


def to_map(model: TrainedModel, prediction: Prediction) -> NDArray[np.float32]:
    """Compute the anomaly map [S, S] of a prediction, S being the size of the preprocessed image."""
    return to_maps(model, torch.from_numpy(prediction.patch_scores)[None])[0].numpy()


def to_maps(model: TrainedModel, patch_scores: Tensor) -> Tensor:
    """Compute the anomaly maps [n, S, S] of images with patch scores [n, h, w]."""
    size = model.preprocessing.image_size
    return shown_maps(patch_scores[:, None], size, model.map_sigma, model.local_map)


def shown_maps(patch_scores: Tensor, size: int, sigma: float, local_map: LocalMap | None) -> Tensor:
    """Compute anomaly maps [n, size, size] from patch scores [n, 1, h, w]; see `TrainedModel` for the other arguments."""
    values = patch_scores if local_map is None else local_map(patch_scores)
    return anomaly_map(values, (size, size), sigma)[:, 0]


def map_peaks(patch_scores: Tensor, size: int, sigma: float, local_map: LocalMap | None) -> list[float]:
    """Compute the highest value of the anomaly map of each image, arguments as of `shown_maps`."""
    parts = [shown_maps(part, size, sigma, local_map).flatten(1).amax(1) for part in patch_scores.split(64)]
    return torch.cat(parts).tolist() if parts else []


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Batch loaded items: `image` is stacked to [B, 3, H, W], the other entries of each item go into the list `items`."""
    rest = [{key: value for key, value in item.items() if key != "image"} for item in items]
    return {"image": torch.stack([item["image"] for item in items]), "items": rest}


def predict_files(
    model: TrainedModel,
    files: Sequence[str | Path],
    batch_size: int = 16,
    runtime: str = "auto",
    network: nn.Module | None = None,
) -> Iterator[Prediction]:
    """Predict image files and yield one prediction per file, in order, rejected files included.

    Args:
        model: a loaded model; runs on the device of its network.
        files: radiographs in any supported format.
        batch_size: images per pass of the network.
        runtime: see `Inference`.
        network: what `prediction_network` made, in place of a new one.

    Raises:
        InputError: when the runtime cannot be used.
    """
    device = next(model.network.parameters()).device
    network = prediction_network(model, runtime) if network is None else network
    stream = RadiographStream([{"image": str(f)} for f in files], RadiographLoader(model.preprocessing))
    found: dict[str, Prediction] = {}
    for batch in DataLoader(stream, batch_size=batch_size, collate_fn=collate):
        with torch.inference_mode():
            scores, means = network(batch["image"].to(device))
        refusals = check_images(model, means)
        for item, patch_scores, refusal in zip(batch["items"], scores[:, 0], refusals, strict=True):
            prediction = to_prediction(model, item["file"], patch_scores)
            found[item["file"]] = prediction if refusal is None else Prediction.rejected(item["file"], refusal.code)
    yield from in_order([str(f) for f in files], found.values(), stream.rejected)


def in_order(files: Iterable[str], predictions: Iterable[Prediction], rejected: Iterable[Rejected]) -> list[Prediction]:
    """Return one prediction per file, in the order of `files`.

    Args:
        files: all files of a run.
        predictions: predictions of the files that were scored, in any order.
        rejected: the other files, with reason code and message.
    """
    by_file = {p.file: p for p in predictions}
    by_file.update({file: Prediction.rejected(file, code) for file, code, _ in rejected})
    return [by_file[file] for file in files]
