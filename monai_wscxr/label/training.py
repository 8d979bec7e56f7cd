"""Models from labelled images, in this process: the bundle's own training, on features that stay at hand between trainings."""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Events
from monai.bundle import ConfigParser, ConfigWorkflow

from monai_wscxr.data.selection import check_overlap, hold_out
from monai_wscxr.data.split import count_classes
from monai_wscxr.errors import InputError
from monai_wscxr.features.backbones import weights_hash
from monai_wscxr.features.extraction import Extraction, PatchExtractor
from monai_wscxr.label.models import ModelFolders
from monai_wscxr.model.artefact import TrainedModel, save_model
from monai_wscxr.model.calibration import calibrate
from monai_wscxr.model.networks import Discriminator, WSCXRNet, image_scores
from monai_wscxr.model.whitening import NormalWhitening
from monai_wscxr.system.atomic import write_text_atomic
from monai_wscxr.training.mining_handler import MiningHandler
from monai_wscxr.training.start import quiet_training

logger = logging.getLogger("monai_wscxr")

Item = dict[str, Any]
Progress = Callable[[str, float], None]
RUN_OPTIONS = ("dataset_dir", "k", "seed")  # settings of an artefact that belong to its run, not to the next one


class Trainer:
    """Trains models for a workbench.

    Args:
        configs: folder with the bundle's `train.yaml`.
        models: where models go.
        options: of `train.yaml`, for every training.
        seed: of every training.

    Attributes:
        extractor: features of files, as every model of this trainer sees them.

    Raises:
        InputError: on an option that `train.yaml` does not have.
    """

    def __init__(self, configs: Path, models: ModelFolders, options: Mapping[str, Any], seed: int = 0) -> None:
        self.configs, self.models, self.seed = configs, models, seed
        self.options = {"progress": False, **options}
        known = ConfigParser.load_config_file(str(configs / "train.yaml"))
        unknown = [name for name in options if name not in known or name in RUN_OPTIONS]
        if unknown:
            raise InputError(f"{', '.join(unknown)}: no option of train.yaml that a workbench can set")
        parser = self._workflow(models.root, models.root).parser
        self.extractor: PatchExtractor = parser.get_parsed_content("extractor")
        self.extractor.max_bad_share = 1.0  # an archive holds all sorts; what cannot be read is listed, not ranked
        names = ("settings", "holdout", "shrinkage", "score_share", "false_positive_rate", "map_sigma")
        self.values = {name: parser.get_parsed_content(name) for name in names}

    def _workflow(self, dataset_dir: Path, output_dir: Path, **values: Any) -> ConfigWorkflow:
        return ConfigWorkflow(
            config_file=str(self.configs / "train.yaml"),
            workflow_type="train",
            run_id="training",
            logging_file=False,
            dataset_dir=str(dataset_dir),
            output_dir=str(output_dir),
            **{**self.options, "seed": self.seed, **values},
        )

    def check_fits(self, model: TrainedModel) -> None:
        """Whether a model sees the same features as this trainer's next one.

        Raises:
            InputError: with what differs.
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
        """Train on all of these images, by the bundle's `train.yaml`.

        Args:
            normal, abnormal: datalist items.
            progress: called with a stage ("features", "mining", "training") and the share done.

        Returns:
            Output folder of the finished run, not in use yet; and what should be said about it.

        Raises:
            InputError: when the images do not make a training, see `training_split` and `PatchExtractor.bank`.
        """
        folder = self.models.new()
        datalist = folder.with_suffix(".json")
        write_text_atomic(datalist, json.dumps({"training": [*normal, *abnormal], "test": []}, indent=1))
        self.extractor.done = Extraction()
        with quiet_training(), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            workflow = self._workflow(
                datalist,
                folder,
                k=max(count_classes(abnormal).values()),
                extractor=self.extractor,
                features_def=self.extractor.features,
                **{"split#digests": self.extractor.digests},
            )
            workflow.initialize()
            _watch(workflow, progress)
            workflow.run()
            workflow.finalize()
        return folder, [str(w.message) for w in said if "held-out" in str(w.message)]

    def start(self, normal: Sequence[Item]) -> Path:
        """A model for the time before the first abnormal label: the score is the distance to the normals.

        A patch's score is its squared length after whitening with the statistics of the normal images (`NormalWhitening`,
        always on here), divided by the number of channels. Otherwise it is a model as any other, held-out normals included.

        Raises:
            InputError: when there are fewer than two usable normal images of different patients.
        """
        began = time.perf_counter()
        rest, held_out = hold_out(normal, self.values["holdout"], self.seed)
        check_overlap(rest + held_out, [], digests=self.extractor.digests)
        features = self.extractor.features
        device = self.extractor.device
        discriminator = Discriminator(features.channels, bias=False, zero_start=True)
        discriminator.distance_weight.fill_(1.0)
        network = WSCXRNet(features, discriminator, NormalWhitening(features.channels)).to(device).eval()
        bank = self.extractor.bank(rest, "normal images")
        network.whitening.fit(bank.rows.to(device), self.values["shrinkage"])
        apart = self.extractor.bank(held_out, "held-out normal images").to(device)
        apart.rows.copy_(network.whitening(apart.rows))
        share = self.values["score_share"]
        calibration = calibrate(
            image_scores(discriminator, apart.images, share)[:, 0].tolist(),
            (),
            self.values["false_positive_rate"],
            normal_peaks=image_scores(discriminator, apart.images)[:, 0].tolist(),
        )
        folder = self.models.new()
        folder.mkdir()
        used = [*bank.files, *apart.files]
        record = {
            "normal_images": len(bank.files),
            "held_out_images": len(apart.files),
            "abnormal_images": {},
            "digests": sorted(self.extractor.digests[file] for file in used),
            "seconds": {"training": time.perf_counter() - began},
        }
        save_model(
            folder,
            network,
            self.extractor.preprocessing,
            calibration,
            self.values["map_sigma"],
            self.values["settings"],
            record,
            share,
        )
        return folder


def _watch(workflow: ConfigWorkflow, progress: Progress) -> None:
    """Report how far the trainer is."""
    trainer = workflow.parser.get_parsed_content("train#trainer")
    mining = next(h for h in workflow.parser.get_parsed_content("train#handlers") if isinstance(h, MiningHandler))
    mining.on_mining = lambda: progress("mining", 0.0)
    total = trainer.state.max_epochs
    trainer.add_event_handler(Events.STARTED, lambda engine: progress("training", 0.0))

    def step(engine: Any) -> None:
        progress("training", engine.state.iteration / (total * engine.state.epoch_length))

    trainer.add_event_handler(Events.ITERATION_COMPLETED(every=20), step)
