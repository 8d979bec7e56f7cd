"""All of a trained model but its network: how files are read, and how patch scores become results.

Nothing here needs torch, so worker processes start quickly, and exported models run without it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from monai_wscxr.data.preprocessing import Preprocessing
from monai_wscxr.errors import InputError
from monai_wscxr.model.artefact_schema import OtherFormatError, read_artefact
from monai_wscxr.model.calibration import Calibration, ColourScale
from monai_wscxr.model.chest_check import ChestCheck
from monai_wscxr.model.drift import DriftReference
from monai_wscxr.model.local_map import LocalMap
from monai_wscxr.model.scores import check_score_share

ARTEFACT_FORMAT = 7
ARTEFACT, WEIGHTS = "artefact.json", "model.pt"
EXPORT, EXPORTED_NETWORK = "export.json", "network.onnx"


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """What turns files into the network's input, and patch scores into results.

    Attributes:
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

    def parts(self) -> dict[str, Any]:
        """Return the attributes of this class by name."""
        return {field.name: getattr(self, field.name) for field in fields(ModelDescription)}

    def without_network(self) -> ModelDescription:
        """Return what worker processes need, without the network, which stays in the predicting process."""
        return ModelDescription(**self.parts())

    @classmethod
    def from_artefact(cls, content: Mapping[str, Any], folder: Path, channels: int | None = None) -> ModelDescription:
        """Build the description from the content of `artefact.json`.

        Args:
            content: checked by `artefact_schema`.
            folder: folder of the model.
            channels: C of the network's patch features; None where it is not known.

        Raises:
            InputError: when the values contradict each other.
        """
        check, places, reference, site = (content[name] for name in ("chest_check", "local_map", "drift", "site"))
        chest_check = None if check is None else ChestCheck.from_dict(check)
        if chest_check is not None and len(chest_check.mean) != (channels or len(chest_check.mean)):
            raise InputError(f"{folder / ARTEFACT} is damaged: its chest check has another number of channels")
        drift = None if reference is None else DriftReference.from_dict(reference)
        if drift is not None and len(drift.centre) != (channels or len(drift.centre)):
            raise InputError(f"{folder / ARTEFACT} is damaged: its reference for drift has another number of channels")
        return ModelDescription(
            preprocessing=Preprocessing.from_dict(content["preprocessing"]),
            calibration=Calibration.from_dict(content["calibration"]),
            map_sigma=float(content["map_sigma"]),
            score_share=check_score_share(content["score_share"]),
            sha256=content["model_sha256"],
            settings=dict(content["settings"]),
            folder=folder,
            training=dict(content["training"]),
            chest_check=chest_check,
            local_map=None if places is None else LocalMap.from_dict(places),
            drift=drift,
            site=None if site is None else dict(site),
        )


def is_exported(folder: str | Path) -> bool:
    """Tell whether a folder is one of `monai-wscxr export`."""
    return (Path(folder) / EXPORT).is_file()


def check_holds_model(folder: str | Path) -> None:
    """Check that a folder has the two files of a trained model, without opening them.

    Raises:
        InputError: otherwise; for the output of a compared method, which keeps no model, the message says so.
    """
    folder = Path(folder)
    if is_exported(folder):
        raise InputError(
            f"{folder} is an exported model, which predict, serve, node and drift take; here the output folder of the "
            "training is needed"
        )
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


def read_content(folder: Path) -> dict[str, Any]:
    """Read `artefact.json` of a folder and check it.

    Raises:
        InputError: when it is missing or damaged, or has another format.
    """
    path = folder / ARTEFACT
    try:
        return read_artefact(path, ARTEFACT_FORMAT)
    except OtherFormatError as error:
        raise InputError(
            f"{path} has format {error.version}, this version of monai_wscxr reads format {ARTEFACT_FORMAT}; "
            f"it was written by version {error.code_version}"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}); copy it again from the training run, or train again") from error


def _compared_method(folder: Path) -> str:
    """Return the name of the compared method whose run a folder holds, or ""."""
    try:
        return str(json.loads((folder / "settings.json").read_text(encoding="utf-8"))["method"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
