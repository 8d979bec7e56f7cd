"""Opening a model for prediction: the output of a training, with torch, or an exported model, without."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from monai_wscxr.errors import InputError, needs_full_package
from monai_wscxr.model.description import ModelDescription, check_holds_model, is_exported, read_content
from monai_wscxr.prediction import exported


class Network(Protocol):
    """A model that takes images to patch scores, whatever executes it.

    Attributes:
        model: how files become images, and patch scores results.
        device: "cpu" or "cuda".
    """

    model: ModelDescription
    device: str

    def __call__(self, images: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return patch scores [B, 1, h, w] and image features [B, C] of images [B, 3 or 1, S, S]."""

    def record(self) -> dict[str, Any]:
        """Return what executes the network, as JSON values; a resumed run must have the same."""


def check_openable(folder: str | Path, device: str | None = None, runtime: str = "auto") -> None:
    """Check that a folder holds a model and the options suit it, without opening it; arguments as of `open_network`.

    Raises:
        InputError: otherwise.
    """
    if is_exported(folder):
        exported.check_options(device, runtime)
        return
    check_holds_model(folder)
    if device not in (None, "cpu"):
        _torch_network(folder).torch_device(device)


def open_network(folder: str | Path, device: str | None = None, runtime: str = "auto") -> Network:
    """Open a model.

    Args:
        folder: output folder of a training or of `monai-wscxr export`.
        device: "cpu" or "cuda"; None takes a GPU if there is one. Exported models run on a CPU.
        runtime: library that executes the backbone, see `Inference`, or an exported model: "auto", "onnxruntime" or
            "openvino".

    Raises:
        InputError: when the folder holds no model or a damaged one, or the device or runtime cannot be used.
    """
    if is_exported(folder):
        return exported.ExportedNetwork(folder, device, runtime)
    check_holds_model(folder)
    network: Network = _torch_network(folder).open_trained(folder, device, runtime)
    return network


def open_description(folder: str | Path) -> ModelDescription:
    """Read all of a model but its network; folder as of `open_network`.

    Raises:
        InputError: when it holds no model, or the description is damaged.
    """
    if is_exported(folder):
        return exported.read_exported(Path(folder))[0]
    check_holds_model(folder)
    return ModelDescription.from_artefact(read_content(Path(folder)), Path(folder))


def _torch_network(folder: str | Path) -> Any:
    """Import what opens trained models."""
    try:
        from monai_wscxr.prediction import torch_network
    except ImportError as error:
        found = needs_full_package(error)
        if found is None:
            raise
        raise InputError(
            f"{folder} is the output of a training. {found}, or predict with an exported model: monai-wscxr export --model "
            f"{folder} --output FOLDER, where the full package is installed"
        ) from error
    return torch_network
