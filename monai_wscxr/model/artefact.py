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
from monai_wscxr.model.artefact_schema import OtherFormatError, parse_artefact, read_artefact
from monai_wscxr.model.calibration import Calibration, ColourScale
from monai_wscxr.model.chest_check import ChestCheck
from monai_wscxr.model.drift import DriftReference
from monai_wscxr.model.local_map import LocalMap
from monai_wscxr.model.networks import Discriminator, WSCXRNet, check_score_share
from monai_wscxr.model.weights_file import check_fit, check_heads, read_weights
from monai_wscxr.model.whitening import NormalWhitening
from monai_wscxr.system.atomic import torch_bytes, write_together

ARTEFACT_FORMAT = 7
ARTEFACT, WEIGHTS = "artefact.json", "model.pt"


@dataclass(frozen=True)
class TrainedModel:
    """A trained model, ready for inference.

    Attributes:
        network: image to patch scores, in evaluation mode.
        preprocessing: file to network input.
        calibration: operating point, p-values and colour scale.
        map_sigma: standard deviation of the Gaussian that smooths anomaly maps, in pixels of the preprocessed image.
        score_share: share of the highest patch scores whose mean is the anomaly score, in [0, 1]; 0 is the maximum.
        sha256: hash of the weights.
        settings: options of the training run.
        folder: folder that the model was loaded from.
        training: record of the training: numbers of images, digests of their files, seconds.
        chest_check: tells whether an image is a chest radiograph; None where the training had too few normals to measure it.
        local_map: makes anomaly maps relative to normals at the same place; None where maps show patch scores, as published.
        drift: the normals that radiographs are compared with to notice drift; None where the training had too few.
        site: record of the adaptation to another site (`monai_wscxr.adaptation`); None for a model as trained.
    """

    network: WSCXRNet
    preprocessing: Preprocessing
    calibration: Calibration
    map_sigma: float
    score_share: float
    sha256: str
    settings: dict[str, Any]
    folder: Path
    training: dict[str, Any]
    chest_check: ChestCheck | None = None
    local_map: LocalMap | None = None
    drift: DriftReference | None = None
    site: dict[str, Any] | None = None

    @property
    def known_digests(self) -> frozenset[str]:
        """Digests of the files that the model was trained on or adapted with; empty where the training recorded none."""
        adapted = [] if self.site is None else self.site["digests"]
        return frozenset(map(str, [*self.training.get("digests", []), *adapted]))

    @property
    def normals_only(self) -> bool:
        """Whether the model was trained on normal images alone, so that its scores are distances to them."""
        return self.training.get("abnormal_images") == {}

    @property
    def colour_scale(self) -> ColourScale:
        """Colour scale of all anomaly maps of this model."""
        return self.calibration.colour_scale


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
    description = _read_description(folder)
    try:
        state = read_weights(folder / WEIGHTS)
        check_heads(str(folder / WEIGHTS), description, state)
        network = build_network(description)
        check_fit(str(folder / WEIGHTS), network.state_dict(), state)
        network.load_state_dict(state)
        calibration = Calibration.from_dict(description["calibration"])
        check = description["chest_check"]
        chest_check = None if check is None else ChestCheck.from_dict(check)
        if chest_check is not None and len(chest_check.mean) != network.features.channels:
            raise InputError(f"{folder / ARTEFACT} is damaged: its chest check has another number of channels")
        places = description["local_map"]
        local_map = None if places is None else LocalMap.from_dict(places)
        reference = description["drift"]
        drift = None if reference is None else DriftReference.from_dict(reference)
        if drift is not None and len(drift.centre) != network.features.channels:
            raise InputError(f"{folder / ARTEFACT} is damaged: its reference for drift has another number of channels")
        preprocessing = Preprocessing.from_dict(description["preprocessing"])
        network.features.backbone.check_size(preprocessing.image_size)
        if network.features.backbone.image_channels != len(preprocessing.mean):
            raise InputError(f"{folder / ARTEFACT} is damaged: its backbone takes another number of channels")
        map_sigma = float(description["map_sigma"])
        score_share = check_score_share(description["score_share"])
        sha256 = description["model_sha256"]
        settings, training = dict(description["settings"]), dict(description["training"])
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
    if weights_hash(network) != sha256 or weights_hash(network.features.backbone) != description["backbone"]["sha256"]:
        raise InputError(
            f"{folder / WEIGHTS} does not hold the weights that {ARTEFACT} describes; "
            "the two files come from different runs, or the weights were modified"
        )
    return TrainedModel(
        network=network.to(device).eval(),
        preprocessing=preprocessing,
        calibration=calibration,
        map_sigma=map_sigma,
        score_share=score_share,
        sha256=sha256,
        settings=settings,
        folder=folder,
        training=training,
        chest_check=chest_check,
        local_map=local_map,
        drift=drift,
        site=None if description["site"] is None else dict(description["site"]),
    )


def check_holds_model(folder: str | Path) -> None:
    """Check that a folder has the two files of a trained model, without opening them.

    Raises:
        InputError: otherwise; for the output of a compared method, which keeps no model, the message says so.
    """
    folder = Path(folder)
    if not (folder / ARTEFACT).is_file() or not (folder / WEIGHTS).is_file():
        method = _compared_method(folder)
        if method:
            raise InputError(
                f"{folder} is the output of the compared method {method}, which keeps figures (metrics.json, "
                "predictions.csv) but no model to predict or evaluate with; give the output of train.yaml alone"
            )
        raise InputError(
            f"{folder} holds no trained model ({ARTEFACT} and {WEIGHTS}); give the --output_dir of a finished training"
        )


def _compared_method(folder: Path) -> str:
    """Return the name of the compared method whose run a folder holds, or ""."""
    try:
        return str(json.loads((folder / "settings.json").read_text(encoding="utf-8"))["method"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _read_description(folder: Path) -> dict[str, Any]:
    """Read `artefact.json` and check it."""
    path = folder / ARTEFACT
    check_holds_model(folder)
    try:
        return read_artefact(path, ARTEFACT_FORMAT)
    except OtherFormatError as error:
        raise InputError(
            f"{path} has format {error.version}, this version of monai_wscxr reads format {ARTEFACT_FORMAT}; "
            f"it was written by version {error.code_version}"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}); copy it again from the training run, or train again") from error
