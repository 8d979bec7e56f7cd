"""Apply a trained model to image files with torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from monai_wscxr.data.preprocessing import RadiographLoader
from monai_wscxr.data.stream import RadiographStream
from monai_wscxr.features.inference import Inference
from monai_wscxr.features.parallel import ThreadParallel
from monai_wscxr.model.artefact import TrainedModel
from monai_wscxr.model.networks import CheckedNet, EpochScores
from monai_wscxr.model.predictions import Prediction, check_images, in_order, to_prediction


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
