"""Parts that all cells of a table share: configurations, data set, and the features and grey images of all its files."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from numpy.typing import NDArray

from monai_wscxr.bank.feature_bank import FeatureBank
from monai_wscxr.data.datalist import Item, load_datalist
from monai_wscxr.data.description import findings_of_item
from monai_wscxr.data.masks import read_mask, resize_mask
from monai_wscxr.errors import InputError
from monai_wscxr.experiments.baselines.images import GreyImages, ImageReader
from monai_wscxr.experiments.protocol.methods import KINDS, effort_options, parse_efforts
from monai_wscxr.features.extraction import PatchExtractor
from monai_wscxr.training.once import training_workflow

MAP_SIZE = 128
"""Side of the maps and masks that are compared, in pixels: all pixels of hundreds of larger maps take minutes to sort."""


class Experiment:
    """Parts that all cells share: configuration, data set, and the features of all its images.

    Args:
        configs: folder with `train.yaml` and the configurations of the compared methods.
        dataset_dir: folder or data list with a training and a test part.
        runs: folder for the output folders of trainings.
        options: options of `train.yaml` for all cells (backbone, weights, image_size, device, ...).
        efforts: effort of each method; None takes "reduced" for all.

    Attributes:
        datalist: items of the data set by part.
        test: items of the test images; after `extract`, of those that can be used.
        extractor: patch features of files.
        map_sigma: standard deviation of the Gaussian that smooths maps, in pixels of maps of `MAP_SIZE`.

    Raises:
        InputError: when the test part lacks normal or abnormal images.
    """

    def __init__(
        self,
        configs: Path,
        dataset_dir: str,
        runs: Path,
        options: Mapping[str, Any],
        efforts: Mapping[str, str] | None = None,
    ) -> None:
        self.configs, self.dataset_dir, self.runs, self.options = configs, dataset_dir, runs, dict(options)
        self.efforts = dict(efforts or parse_efforts("reduced"))
        self.datalist = load_datalist(dataset_dir)
        self.test: list[Item] = self.datalist["test"]
        if {item["label"] for item in self.test} != {0, 1}:
            raise InputError(f"{dataset_dir} needs normal and abnormal test images; the tables are computed on them")
        parser = self.configuration("wscxr", seed=0, k=1)
        self.extractor: PatchExtractor = parser.get_parsed_content("extractor")
        self.holdout = float(parser.get_parsed_content("holdout"))
        self.false_positive_rate = float(parser.get_parsed_content("false_positive_rate"))
        self.allow_overlap = bool(parser.get_parsed_content("allow_overlap"))
        self._features = torch.empty(0)  # [n, h*w, C] of all usable images
        self._position: dict[str, int] = {}  # by file
        self._grey: dict[str, GreyImages] = {}  # by settings of the reader
        size = int(parser.get_parsed_content("image_size"))
        self.map_sigma = float(parser.get_parsed_content("map_sigma")) * MAP_SIZE / size

    def configuration(self, method: str, folder: Path | None = None, **values: Any) -> ConfigParser:
        """Return the configuration of a method with the options of the experiment.

        Args:
            method: name of the method.
            folder: output folder; that of all trainings by default.
            values: further options.
        """
        own = KINDS[method].configuration
        files = ("train.yaml",) if own == "train.yaml" else ("train.yaml", own)
        options = {**self.method_options(method), **values}
        return training_workflow(self.dataset_dir, folder or self.runs, options, self.configs, files).parser

    def method_options(self, method: str) -> dict[str, Any]:
        """Return the options of the experiment on top of those that a method's effort sets."""
        return {**effort_options(self.configs, method, self.efforts[method]), **self.options}

    def is_shortened(self, method: str) -> bool:
        """Return whether a method's effort sets other options than the published ones."""
        return effort_options(self.configs, method, self.efforts[method]) != effort_options(
            self.configs, method, "paper"
        )

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

    def grey(self, reader: ImageReader, items: Sequence[Item]) -> GreyImages:
        """Return grey images; all images of the data set are read once for every setting of a reader.

        Raises:
            InputError: when images cannot be read that could be read for features.
        """
        key = json.dumps(reader.settings, sort_keys=True)
        if key not in self._grey:
            usable = [item for item in self.datalist["training"] + self.test if item["image"] in self._position]
            self._grey[key] = reader.read(usable, "grey images")
            if reader.rejected:
                file, _, message = reader.rejected[0]
                raise InputError(f"{file} could be read before and cannot be read now: {message}")
        return self._grey[key].of({item["image"] for item in items})

    @property
    def has_masks(self) -> bool:
        """Whether there are lesion masks to compare maps with."""
        return any(item.get("mask") for item in self.test)

    @functools.cached_property
    def masks(self) -> list[NDArray[np.bool_] | None]:
        """Lesion masks [S, S] of the usable test images, S being `MAP_SIZE`; None for abnormal images without a mask."""
        empty = np.zeros((MAP_SIZE, MAP_SIZE), bool)
        return [
            resize_mask(read_mask(item["mask"]), MAP_SIZE) if item.get("mask") else None if item["label"] else empty
            for item in self.test
        ]

    @property
    def labels(self) -> list[int]:
        """Labels of the usable test images."""
        return [item["label"] for item in self.test]

    @property
    def findings(self) -> list[tuple[str, ...]]:
        """Findings of the usable test images; none of a normal image."""
        return [findings_of_item(item) if item["label"] else () for item in self.test]
