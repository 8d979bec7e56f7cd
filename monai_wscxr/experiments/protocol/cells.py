"""Cells of a table: one method, trained at one k and seed and scored on the test images."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.utils import set_determinism

from monai_wscxr.bank.feature_bank import FeatureBank
from monai_wscxr.data.datalist import Item, load_datalist
from monai_wscxr.data.description import findings_of_item
from monai_wscxr.errors import InputError
from monai_wscxr.evaluation.epochs import epoch_network
from monai_wscxr.experiments.baselines.common import (
    MethodSplit,
    Scored,
    fit_and_score,
    labelled_split,
    normal_split,
)
from monai_wscxr.experiments.baselines.images import GreyImages, ImageReader, Place, fit_and_score_images
from monai_wscxr.experiments.protocol.metrics import cell_metrics
from monai_wscxr.features.extraction import PatchExtractor
from monai_wscxr.model.artefact import load_model
from monai_wscxr.model.networks import image_scores
from monai_wscxr.training.once import train_once, training_workflow
from monai_wscxr.training.run_folder import RunFolder

LABELLED_METHODS = ("discriminant", "logistic", "ddad")
"""Compared methods that learn from abnormal images as well, so that they have a k."""

IMAGE_METHODS = ("ddad", "ddad_intra", "squid")
"""Compared methods that learn from grey images in place of features."""


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


class Experiment:
    """Parts that all cells share: configuration, data set, and the features of all its images.

    Args:
        configs: folder with `train.yaml` and the configurations of the compared methods.
        dataset_dir: folder or data list with a training and a test part.
        runs: folder for the output folders of trainings.
        options: options of `train.yaml` for all cells (backbone, weights, image_size, device, ...).

    Attributes:
        datalist: items of the data set by part.
        test: items of the test images; after `extract`, of those that can be used.
        extractor: patch features of files.

    Raises:
        InputError: when the test part lacks normal or abnormal images.
    """

    def __init__(self, configs: Path, dataset_dir: str, runs: Path, options: Mapping[str, Any]) -> None:
        self.configs, self.dataset_dir, self.runs, self.options = configs, dataset_dir, runs, dict(options)
        self.datalist = load_datalist(dataset_dir)
        self.test: list[Item] = self.datalist["test"]
        if {item["label"] for item in self.test} != {0, 1}:
            raise InputError(f"{dataset_dir} needs normal and abnormal test images; the tables are computed on them")
        parser = self.configuration(seed=0, k=1)
        self.extractor: PatchExtractor = parser.get_parsed_content("extractor")
        self.holdout = float(parser.get_parsed_content("holdout"))
        self.false_positive_rate = float(parser.get_parsed_content("false_positive_rate"))
        self.allow_overlap = bool(parser.get_parsed_content("allow_overlap"))
        self._features = torch.empty(0)  # [n, h*w, C] of all usable images
        self._position: dict[str, int] = {}  # by file
        self._images: dict[str, GreyImages] = {}  # by settings of the reader

    def configuration(self, *overlays: str, folder: Path | None = None, **values: Any) -> ConfigParser:
        """Return `train.yaml` with the options of the experiment.

        Args:
            overlays: names of further configurations, applied on top.
            folder: output folder; that of all runs by default.
            values: further options.
        """
        files, options = ("train.yaml", *overlays), {**self.options, **values}
        return training_workflow(self.dataset_dir, folder or self.runs, options, self.configs, files).parser

    def prepare(self, methods: Collection[str]) -> None:
        """Extract the features that some method needs; otherwise only identify the images by their content."""
        if any(method not in IMAGE_METHODS for method in methods):
            self.extract()
            return
        for item in self.datalist["training"] + self.test:
            with contextlib.suppress(OSError):  # the reader will say so
                self.extractor.digest(item["image"])

    def images(self, reader: ImageReader) -> GreyImages:
        """Return the grey images of the data set, read once for all methods with the same settings of the reader.

        Raises:
            InputError: when a test image with features cannot be read, or as `ImageReader.read`.
        """
        key = json.dumps(reader.settings)
        if key not in self._images:
            images = reader.read(self.datalist["training"] + self.test, "all images")
            readable = set(images.files)
            usable = [item for item in self.test if item["image"] in readable]
            if self._position and len(usable) < len(self.test):
                raise InputError("test images have become unreadable since their features were made; start again")
            self.test, self._images[key] = usable, images
        return self._images[key]

    def extract(self) -> None:
        """Extract the features of all images of the data set."""
        bank = self.extractor.bank(self.datalist["training"] + self.test, "all images")
        self._features = bank.rows.reshape(len(bank.files), -1, bank.rows.shape[1])
        self._position = {file: index for index, file in enumerate(bank.files)}
        self.test = [item for item in self.test if item["image"] in self._position]

    def bank(self, items: Sequence[Item]) -> FeatureBank:
        """Return a bank of whole images; items that could not be read are left out."""
        files = [item["image"] for item in items if item["image"] in self._position]
        chosen = self._features[torch.tensor([self._position[file] for file in files])]
        return FeatureBank.from_images(chosen, files, self.extractor.grid)

    @property
    def labels(self) -> list[int]:
        """Labels of the usable test images."""
        return [item["label"] for item in self.test]

    @property
    def findings(self) -> list[tuple[str, ...]]:
        """Findings of the usable test images; none of a normal image."""
        return [findings_of_item(item) if item["label"] else () for item in self.test]


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
        result = _run_wscxr(experiment, cell)
    elif cell.method in IMAGE_METHODS:
        result = _run_image_method(experiment, cell)
    else:
        result = _run_baseline(experiment, cell)
    return {
        "method": cell.method,
        "variant": cell.variant,
        "k": cell.k,
        "seed": cell.seed,
        **result,
        "seconds": time.perf_counter() - began,
    }


def _run_baseline(experiment: Experiment, cell: Cell) -> dict[str, Any]:
    """Fit a compared method and compute metrics and test scores."""
    set_determinism(seed=cell.seed)
    values = {"seed": cell.seed, **cell.overrides}
    method = experiment.configuration(f"{cell.method}.yaml", **values).get_parsed_content("method")
    split = _split(experiment, cell)
    scored = fit_and_score(
        method,
        experiment.extractor,
        experiment.bank(split.normal),
        experiment.bank(split.held_out),
        experiment.bank(experiment.test),
        experiment.labels,
        experiment.false_positive_rate,
        None if split.abnormal is None else experiment.bank(split.abnormal),
    )
    return _metrics(experiment, scored)


def _run_image_method(experiment: Experiment, cell: Cell) -> dict[str, Any]:
    """Fit a compared method on images, from the state that a killed run left, and compute metrics, test scores and cost."""
    set_determinism(seed=cell.seed)
    values = {"seed": cell.seed, **({} if cell.k is None else {"k": cell.k}), **cell.overrides}
    parser = experiment.configuration(f"{cell.method}.yaml", folder=experiment.runs / cell.name, **values)
    method, reader = parser.get_parsed_content("method"), parser.get_parsed_content("images")
    images, split = experiment.images(reader), _split(experiment, cell)
    folder: RunFolder = parser.get_parsed_content("folder")
    shared = experiment.runs / f"shared_s{cell.seed}"
    shared.mkdir(exist_ok=True)

    def chosen(items: Sequence[Item]) -> GreyImages:
        return images.of({item["image"] for item in items})

    scored = fit_and_score_images(
        method,
        chosen(split.normal),
        chosen(split.held_out),
        chosen(experiment.test),
        experiment.labels,
        experiment.false_positive_rate,
        None if split.abnormal is None else chosen(split.abnormal),
        Place(folder.states, shared, reader.progress),
    )
    return {**_metrics(experiment, scored), "network": method.learned.network, "cost": vars(method.learned.cost)}


def _split(experiment: Experiment, cell: Cell) -> MethodSplit:
    """Split the data set for a compared method."""
    source, holdout, overlap = experiment.dataset_dir, experiment.holdout, experiment.allow_overlap
    if cell.k is None:
        return normal_split(source, holdout, cell.seed, overlap)
    return labelled_split(source, cell.k, holdout, cell.seed, allow_overlap=overlap)


def _metrics(experiment: Experiment, scored: Scored) -> dict[str, Any]:
    """Compute metrics of a compared method, and take over its test scores."""
    # as `epoch_network` orders them: all states, then once more the one that counts
    epochs = [*scored.epochs, scored.epochs[-1]] if len(scored.epochs) > 1 else scored.epochs
    threshold = scored.calibration.threshold
    found = cell_metrics(experiment.labels, epochs, scored.held_out, threshold, experiment.false_positive_rate)
    return {**found, "scores": scored.epochs[-1]}


def _run_wscxr(experiment: Experiment, cell: Cell) -> dict[str, Any]:
    """Train WSCXR by the bundle's own configuration and compute metrics and test scores."""
    options = {**experiment.options, "k": cell.k, "seed": cell.seed, **cell.overrides}
    folder = train_once(
        experiment.dataset_dir,
        experiment.runs / cell.name,
        options,
        experiment.configs,
        digests=experiment.extractor.digests,
    )
    device = experiment.extractor.device
    model = load_model(folder, device)
    images = experiment.bank(experiment.test).images.to(device)
    # one row per epoch, the trained model's last: the metrics of `evaluate.yaml` without another pass of the images
    epochs = image_scores(epoch_network(model).patch_scores, images, model.score_share).T.tolist()
    held_out, threshold = list(model.calibration.normal_scores), model.calibration.threshold
    found = cell_metrics(experiment.labels, epochs, held_out, threshold, experiment.false_positive_rate)
    return {**found, "scores": epochs[-1]}
