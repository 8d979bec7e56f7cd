"""Cells of a table: one method, trained at one k and seed and scored on the test images."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch.nn.functional as F
from monai.utils import set_determinism
from numpy.typing import NDArray

from monai_wscxr.evaluation.epochs import epoch_network
from monai_wscxr.evaluation.localisation import localisation_metrics
from monai_wscxr.experiments.baselines.common import (
    Cost,
    Learned,
    MethodSplit,
    PatchMapMethod,
    Scored,
    fit_and_score,
    labelled_split,
    normal_split,
)
from monai_wscxr.experiments.baselines.images import MapMethod, Place, fit_and_score_images
from monai_wscxr.experiments.protocol.experiment import MAP_SIZE, Experiment
from monai_wscxr.experiments.protocol.methods import KINDS
from monai_wscxr.experiments.protocol.metrics import cell_metrics
from monai_wscxr.model.artefact import load_model
from monai_wscxr.model.networks import image_scores, patch_maps
from monai_wscxr.model.predictions import shown_maps
from monai_wscxr.model.scores import anomaly_map
from monai_wscxr.system.cpu_time import processor_seconds
from monai_wscxr.training.once import train_once


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        method: "wscxr", or the name of a compared method's configuration.
        k: abnormal images per class, 0 for WSCXR on normal images alone; None for a method that has no k.
        seed: seed of all random choices.
        variant: name of the ablation, or "".
        overrides: options of `train.yaml`, besides those of the protocol.
    """

    method: str
    k: int | None
    seed: int
    variant: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the cell and of its result file."""
        return "_".join(
            p for p in (self.method, self.variant, "" if self.k is None else f"k{self.k}", f"s{self.seed}") if p
        )


@dataclass(frozen=True)
class Fitted:
    """A method after training, with its scores.

    Attributes:
        epochs: scores of the test images as `epoch_network` orders them: of all states, then once more of the one that counts;
            a single entry for a method with one state.
        held_out: scores of the held-out normals.
        threshold: operating point.
        images: number of training images.
        learned: what was trained, and what it took.
        maps: anomaly maps [n, S, S] of the test images; None from a method that says only how abnormal an image is.
    """

    epochs: list[list[float]]
    held_out: list[float]
    threshold: float
    images: int
    learned: Learned
    maps: NDArray[np.float32] | None = None


def run_cell(experiment: Experiment, cell: Cell) -> dict[str, Any]:
    """Train the method of a cell, score the test images and compute the metrics.

    Args:
        experiment: parts that all cells share, features extracted.
        cell: what to train.

    Returns:
        Content of the result file, JSON-like.
    """
    began = time.perf_counter()
    if cell.method == "wscxr":
        fitted = _fit_wscxr(experiment, cell)
    else:
        fitted = _fit_on_images(experiment, cell) if KINDS[cell.method].images else _fit_on_features(experiment, cell)
    found = cell_metrics(
        experiment.labels, fitted.epochs, fitted.held_out, fitted.threshold, experiment.false_positive_rate
    )
    cost = fitted.learned.cost
    return {
        "method": cell.method,
        "variant": cell.variant,
        "k": cell.k,
        "seed": cell.seed,
        **found,
        "pixel": None if fitted.maps is None else _pixel_metrics(experiment, fitted.maps),
        "training": {
            "effort": experiment.efforts[cell.method],
            "shortened": experiment.is_shortened(cell.method),
            "images": fitted.images,
            "network": fitted.learned.network,
            "epochs": cost.epochs,
            "steps": cost.steps,
            "processor_seconds": cost.processor_seconds,
        },
        "scores": fitted.epochs[-1],
        "seconds": time.perf_counter() - began,
    }


def _split(experiment: Experiment, cell: Cell) -> MethodSplit:
    """Return the images of a compared method: those of WSCXR for the same seed and k."""
    source, holdout, overlap = experiment.dataset_dir, experiment.holdout, experiment.allow_overlap
    if cell.k is None:
        return normal_split(source, holdout, cell.seed, overlap)
    return labelled_split(source, cell.k, holdout, cell.seed, allow_overlap=overlap)


def _fit_on_features(experiment: Experiment, cell: Cell) -> Fitted:
    """Fit a compared method on the shared features."""
    set_determinism(seed=cell.seed)
    method = experiment.configuration(cell.method, seed=cell.seed, **cell.overrides).get_parsed_content("method")
    split = _split(experiment, cell)
    normal, test = experiment.bank(split.normal), experiment.bank(experiment.test)
    abnormal = None if split.abnormal is None else experiment.bank(split.abnormal)
    scored = fit_and_score(
        method,
        experiment.extractor,
        normal,
        experiment.bank(split.held_out),
        test,
        experiment.labels,
        experiment.false_positive_rate,
        abnormal,
    )
    maps = None
    if isinstance(method, PatchMapMethod) and experiment.has_masks:
        maps = anomaly_map(method.maps(test), (MAP_SIZE, MAP_SIZE), experiment.map_sigma)[:, 0]
    images = len(normal.files) + (0 if abnormal is None else len(abnormal.files))
    network = f"frozen {experiment.extractor.features.backbone.name}"
    learned = Learned(", ".join(filter(None, (network, method.learned.network))), method.learned.cost)
    return _fitted(scored, images, learned, maps)


def _fit_on_images(experiment: Experiment, cell: Cell) -> Fitted:
    """Fit a compared method on grey images; a killed training goes on."""
    set_determinism(seed=cell.seed)
    values = {"seed": cell.seed, **({} if cell.k is None else {"k": cell.k}), **cell.overrides}
    parser = experiment.configuration(cell.method, experiment.runs / cell.name, **values)
    method, reader = parser.get_parsed_content("method"), parser.get_parsed_content("images")
    split = _split(experiment, cell)
    normal, held_out, test = (experiment.grey(reader, part) for part in (split.normal, split.held_out, experiment.test))
    abnormal = None if split.abnormal is None else experiment.grey(reader, split.abnormal)
    shared = experiment.runs / f"shared_s{cell.seed}"
    shared.mkdir(parents=True, exist_ok=True)
    place = Place(parser.get_parsed_content("folder").states, shared, reader.progress)
    scored = fit_and_score_images(
        method, normal, held_out, test, experiment.labels, experiment.false_positive_rate, abnormal, place
    )
    maps = None
    if isinstance(method, MapMethod) and experiment.has_masks:
        size = (MAP_SIZE, MAP_SIZE)
        maps = F.interpolate(method.image_maps(test)[:, None], size, mode="bilinear", align_corners=False)[:, 0].numpy()
    images = len(normal) + (0 if abnormal is None else len(abnormal))
    return _fitted(scored, images, method.learned, maps)


def _fitted(scored: Scored, images: int, learned: Learned, maps: NDArray[np.float32] | None) -> Fitted:
    """Return what a compared method has found."""
    epochs = [*scored.epochs, scored.epochs[-1]] if len(scored.epochs) > 1 else scored.epochs
    return Fitted(epochs, scored.held_out, scored.calibration.threshold, images, learned, maps)


def _fit_wscxr(experiment: Experiment, cell: Cell) -> Fitted:
    """Train WSCXR by the bundle's own configuration."""
    options = {**experiment.method_options("wscxr"), "k": cell.k, "seed": cell.seed, **cell.overrides}
    before = processor_seconds()
    folder = train_once(
        experiment.dataset_dir,
        experiment.runs / cell.name,
        options,
        experiment.configs,
        digests=experiment.extractor.digests,
    )
    used = processor_seconds() - before
    device = experiment.extractor.device
    model = load_model(folder, device)
    test = experiment.bank(experiment.test).to(device)
    network = epoch_network(model)
    # one row per epoch, the trained model's last: the metrics of `evaluate.yaml` without another pass of the images
    epochs = image_scores(network.patch_scores, test.images, model.score_share).T.tolist()
    maps = None
    if experiment.has_masks:
        maps = shown_maps(patch_maps(model.network.patch_scores, test), MAP_SIZE, experiment.map_sigma, model.local_map)
    count = int(model.training["normal_images"]) + sum(model.training["abnormal_images"].values())
    trained = 0 if model.normals_only else int(model.settings["epochs"])
    network_name = f"frozen {experiment.extractor.features.backbone.name}, linear discriminator"
    learned = Learned(network_name, Cost(epochs=trained, processor_seconds=used))
    return Fitted(epochs, list(model.calibration.normal_scores), model.calibration.threshold, count, learned, maps)


def _pixel_metrics(experiment: Experiment, maps: NDArray[np.float32]) -> dict[str, Any]:
    """Compare anomaly maps of the test images with lesion masks; abnormal images without a mask are left out."""
    chosen = [number for number, mask in enumerate(experiment.masks) if mask is not None]
    masks = [mask for mask in experiment.masks if mask is not None]
    return localisation_metrics(masks, [maps[number] for number in chosen])
