"""Trained models on disk: `model.pt` (weights) and `artefact.json` (everything else that inference needs)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import monai_wscxr
from monai_wscxr.data.preprocessing import Preprocessing
from monai_wscxr.errors import InputError
from monai_wscxr.features.backbones import create_backbone, weights_hash
from monai_wscxr.features.patches import PatchFeatures
from monai_wscxr.model.artefact_schema import parse_artefact
from monai_wscxr.model.calibration import Calibration
from monai_wscxr.model.chest_check import ChestCheck
from monai_wscxr.model.description import (
    ARTEFACT,
    ARTEFACT_FORMAT,
    WEIGHTS,
    ModelDescription,
    check_holds_model,
    read_content,
)
from monai_wscxr.model.drift import DriftReference
from monai_wscxr.model.local_map import LocalMap
from monai_wscxr.model.networks import Discriminator, WSCXRNet
from monai_wscxr.model.scores import check_score_share
from monai_wscxr.model.weights_file import check_fit, check_heads, read_weights
from monai_wscxr.model.whitening import NormalWhitening
from monai_wscxr.system.atomic import write_together
from monai_wscxr.system.sealed import torch_bytes


@dataclass(frozen=True, kw_only=True)
class TrainedModel(ModelDescription):
    """A trained model, ready for inference.

    Attributes:
        network: image to patch scores, in evaluation mode.
    """

    network: WSCXRNet


def save_model(
    folder: Path,
    network: WSCXRNet,
    preprocessing: Preprocessing,
    calibration: Calibration,
    map_sigma: float,
    settings: Mapping[str, Any],
    training: Mapping[str, Any],
    score_share: float = 0.0,
    chest_check: ChestCheck | None = None,
    local_map: LocalMap | None = None,
    drift: DriftReference | None = None,
    site: Mapping[str, Any] | None = None,
) -> str:
    """Write `model.pt` and `artefact.json`; both files are complete on disk before either gets its name.

    Args:
        folder: output folder of the run.
        network, preprocessing, calibration, map_sigma, score_share: parts of the model, see `TrainedModel`.
        settings: options of the run, JSON-like.
        training: record of the training (counts, seconds), JSON-like.
        chest_check, local_map, drift, site: see `TrainedModel`.

    Returns:
        Hash of the weights.

    Raises:
        InputError: when `load_model` would refuse the values; nothing is written then.
    """
    features, layers = network.features, network.discriminator.layers
    linear = [layer for layer in layers if isinstance(layer, torch.nn.Linear)]
    sha256 = weights_hash(network)
    description = {
        "format": ARTEFACT_FORMAT,
        "code_version": monai_wscxr.__version__,
        "model_sha256": sha256,
        "backbone": {
            "name": features.backbone.name,
            "layers": features.backbone.layers,
            "sha256": weights_hash(features.backbone),
        },
        "features": {
            "neighbourhood": features.neighbourhood,
            "align_to": features.align_to,
            "aligned_channels": features.aligned_channels or None,
        },
        "discriminator": {
            "depth": len(linear),
            "width": linear[0].out_features if len(linear) > 1 else 1,
            "bias": linear[-1].bias is not None,
        },
        "whitening": {"active": network.whitening.active},
        "preprocessing": preprocessing.to_dict(),
        "map_sigma": map_sigma,
        "score_share": check_score_share(score_share),
        "calibration": calibration.to_dict(),
        "chest_check": None if chest_check is None else chest_check.to_dict(),
        "local_map": None if local_map is None else local_map.to_dict(),
        "drift": None if drift is None else drift.to_dict(),
        "site": None if site is None else dict(site),
        "settings": dict(settings),
        "training": dict(training),
    }
    content = json.dumps(description, indent=1).encode()
    try:
        parse_artefact(content, ARTEFACT_FORMAT)
    except ValueError as error:
        raise InputError(f"the trained model cannot be saved to {folder}: {error}") from error
    weights = torch_bytes({k: v.cpu() for k, v in network.state_dict().items()})
    write_together({folder / WEIGHTS: weights, folder / ARTEFACT: content})
    return sha256


def build_network(description: Mapping[str, Any]) -> WSCXRNet:
    """Build the network that an artefact describes, without its trained weights."""
    backbone = create_backbone(description["backbone"]["name"], description["backbone"]["layers"], weights="none")
    features = PatchFeatures(backbone, **description["features"])
    settings = {**description["discriminator"], "neighbourhood": features.neighbourhood}
    discriminator = Discriminator(features.channels, **settings)
    return WSCXRNet(features, discriminator, NormalWhitening(features.channels, **description["whitening"]))


def load_model(folder: str | Path, device: str | torch.device = "cpu") -> TrainedModel:
    """Load a trained model and check that its files are consistent.

    Args:
        folder: output folder of a training run.
        device: device of the network.

    Raises:
        InputError: when a file is missing or damaged, the weights do not match the artefact, or the artefact has another
            format.
    """
    folder = Path(folder)
    check_holds_model(folder)
    content = read_content(folder)
    try:
        state = read_weights(folder / WEIGHTS)
        check_heads(str(folder / WEIGHTS), content, state)
        network = build_network(content)
        check_fit(str(folder / WEIGHTS), network.state_dict(), state)
        network.load_state_dict(state)
        description = ModelDescription.from_artefact(content, folder, network.features.channels)
        network.features.backbone.check_size(description.preprocessing.image_size)
        if network.features.backbone.image_channels != len(description.preprocessing.mean):
            raise InputError(f"{folder / ARTEFACT} is damaged: its backbone takes another number of channels")
    except InputError as error:
        if str(folder) in str(error):
            raise
        raise InputError(f"{folder / ARTEFACT} is damaged: {error}") from error
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:120]}"
        raise InputError(
            f"{folder / WEIGHTS} and {folder / ARTEFACT} cannot be loaded as a model ({reason}); "
            "copy the whole output folder of a training run, or train again"
        ) from error
    backbone_sha256 = content["backbone"]["sha256"]
    if weights_hash(network) != description.sha256 or weights_hash(network.features.backbone) != backbone_sha256:
        raise InputError(
            f"{folder / WEIGHTS} does not hold the weights that {ARTEFACT} describes; "
            "the two files come from different runs, or the weights were modified"
        )
    return TrainedModel(network=network.to(device).eval(), **description.parts())
