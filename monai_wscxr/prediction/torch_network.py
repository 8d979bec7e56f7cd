"""Trained models opened for prediction with torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from monai_wscxr.errors import InputError
from monai_wscxr.model.artefact import TrainedModel, load_model
from monai_wscxr.model.predictor import prediction_features, prediction_network


class TorchNetwork:
    """A trained model in torch, see `Network`; another library may execute its backbone.

    Args:
        model: the model, on its device.
        runtime: library that executes the backbone, see `Inference`.

    Raises:
        InputError: when the runtime cannot be used.
    """

    def __init__(self, model: TrainedModel, runtime: str = "auto") -> None:
        self.model = model
        self._device = next(model.network.parameters()).device
        self.device = self._device.type
        self._features = prediction_features(model, runtime)
        self._network = prediction_network(model, features=self._features)

    def __call__(self, images: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return patch scores [B, 1, h, w] and image features [B, C] of images [B, 3 or 1, S, S]."""
        with torch.inference_mode():
            scores, features = self._network(torch.from_numpy(images).to(self._device))
        return scores.float().cpu().numpy(), features.float().cpu().numpy()

    def record(self) -> dict[str, Any]:
        """Return what executes the backbone."""
        return self._features.record()


def open_trained(folder: str | Path, device: str | None, runtime: str) -> TorchNetwork:
    """Open the output folder of a training; arguments as of `open_network`."""
    return TorchNetwork(load_model(folder, torch_device(device)), runtime)


def torch_device(name: str | None) -> torch.device:
    """Return the device of this name; None takes a GPU if there is one.

    Raises:
        InputError: when the device is unknown or not available.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device {name} is not a device; use cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda was asked for, but torch sees no CUDA device here; use --device cpu")
    return device
