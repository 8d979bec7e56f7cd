"""Training from labelled images by the bundle's own configuration, with features that stay at hand between trainings."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_wscxr.data.datalist import Item
from monai_wscxr.data.split import count_classes
from monai_wscxr.errors import InputError
from monai_wscxr.features.backbones import weights_hash
from monai_wscxr.features.extraction import Extraction, PatchExtractor
from monai_wscxr.label.models import ModelFolders
from monai_wscxr.model.artefact import TrainedModel
from monai_wscxr.system.atomic import write_text_atomic
from monai_wscxr.training.configs import check_settable
from monai_wscxr.training.once import train_once, training_workflow
from monai_wscxr.training.start import quiet_training

Progress = Callable[[str, float], None]


class Trainer:
    """Trains the models of a workbench.

    Args:
        configs: folder with the bundle's `train.yaml`.
        models: folders of the models.
        options: options of `train.yaml` for every training.
        seed: seed of every training.

    Attributes:
        extractor: patch features of files, shared by all models of this trainer.

    Raises:
        InputError: on an option that `train.yaml` does not have.
    """

    def __init__(self, configs: Path, models: ModelFolders, options: Mapping[str, Any], seed: int = 0) -> None:
        self.configs, self.models, self.options, self.seed = configs, models, dict(options), seed
        check_settable(options, [configs / "train.yaml"])
        with quiet_training():
            parser = training_workflow(models.root, models.root, {**self.options, "seed": seed}, configs).parser
        self.extractor: PatchExtractor = parser.get_parsed_content("extractor")
        # nobody reads the figures of the epochs, and only the last one's model is used
        self.options.setdefault("val_interval", int(parser["epochs"]))
        self.extractor.max_bad_share = (
            1.0  # an archive holds files of all kinds; unreadable ones are listed, not ranked
        )

    def check_fits(self, model: TrainedModel) -> None:
        """Check that a model uses the same features as the models of this trainer.

        Raises:
            InputError: names the options that differ.
        """
        mine, theirs = self.extractor.features, model.network.features
        pairs = {
            "preprocessing": (self.extractor.preprocessing, model.preprocessing),
            "backbone": (mine.backbone.name, theirs.backbone.name),
            "layers": (mine.backbone.layers, theirs.backbone.layers),
            "neighbourhood": (mine.neighbourhood, theirs.neighbourhood),
            "align_to": (mine.align_to, theirs.align_to),
            "aligned_channels": (mine.aligned_channels, theirs.aligned_channels),
        }
        unlike = [name for name, (one, other) in pairs.items() if one != other]
        if not unlike and weights_hash(mine.backbone) != weights_hash(theirs.backbone):
            unlike = ["weights of the backbone"]
        if unlike:
            raise InputError(
                f"the model in {model.folder} was trained with other options ({', '.join(unlike)}); start without these "
                "options, or with another work folder"
            )

    def train(self, normal: Sequence[Item], abnormal: Sequence[Item], progress: Progress) -> tuple[Path, list[str]]:
        """Train on all of these images by the bundle's `train.yaml`.

        Args:
            normal: datalist items of normal images.
            abnormal: datalist items of abnormal images; all of them are used.
            progress: called with a stage ("mining", "training") and the share of it that is done.

        Returns:
            Output folder of the finished training, not in use yet, and notes for the user about too few held-out images.

        Raises:
            InputError: when the images do not allow a training, see `train_once`; the folder is then removed.
        """
        few = {"k": max(count_classes(abnormal).values())}
        return self._train([*normal, *abnormal], few, progress)

    def start(self, normal: Sequence[Item]) -> Path:
        """Train a model on normal images alone; return its folder, not in use yet.

        The whitening is on here, whatever later trainings do: without it there is no distance to the normals.

        Raises:
            InputError: when there are fewer than two usable normal images of different patients.
        """
        return self._train(normal, {"k": 0, "whiten": True}, lambda stage, share: None)[0]

    def _train(self, items: Sequence[Item], options: Mapping[str, Any], progress: Progress) -> tuple[Path, list[str]]:
        """Train by the bundle's `train.yaml`, with further options; returns as `train`."""
        folder = self.models.new()
        self.extractor.done = Extraction()
        listed = json.dumps({"training": list(items), "test": []}, indent=1)
        with self.models.unfinished(folder), quiet_training(), warnings.catch_warnings(record=True) as caught:
            datalist = write_text_atomic(folder.with_suffix(".json"), listed)
            warnings.simplefilter("always")
            train_once(
                datalist,
                folder,
                {**self.options, "seed": self.seed, **options},
                self.configs,
                self.extractor,
                self.extractor.digests,
                progress,
            )
        return folder, [str(w.message) for w in caught if "held-out" in str(w.message)]
