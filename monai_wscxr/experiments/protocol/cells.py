"""One cell: a method trained at one k and seed, and its scores of the test images."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigWorkflow, create_workflow
from monai.utils import set_determinism

from monai_wscxr.bank.feature_bank import FeatureBank
from monai_wscxr.data.datalist import Item, load_datalist
from monai_wscxr.errors import InputError
from monai_wscxr.evaluation.handlers import epoch_network
from monai_wscxr.experiments.baselines.common import fit_and_score, normal_split
from monai_wscxr.experiments.protocol.figures import cell_figures
from monai_wscxr.features.extraction import PatchExtractor
from monai_wscxr.model.artefact import load_model
from monai_wscxr.model.networks import image_scores


@dataclass(frozen=True)
class Cell:
    """What to run.

    Attributes:
        method: "wscxr" or the name of a compared method's configuration.
        k: abnormal images per class; None for a method that uses none.
        seed: of every choice.
        variant: name of the ablation, or "".
        overrides: options of `train.yaml` besides those of the protocol.
    """

    method: str
    k: int | None
    seed: int
    variant: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Also the name of its result file."""
        return "_".join(p for p in (self.method, self.variant, f"k{self.k}" if self.k else "", f"s{self.seed}") if p)


class Laboratory:
    """What all cells share: the configuration, the data set and one bank with the features of all its images.

    Args:
        configs: folder with `train.yaml` and the configurations of the compared methods.
        dataset_dir: folder or datalist with training and test part.
        runs: folder for the output folders of trainings.
        options: options of `train.yaml` for every cell (backbone, weights, image_size, device, ...).
    """

    def __init__(self, configs: Path, dataset_dir: str, runs: Path, options: Mapping[str, Any]) -> None:
        self.configs, self.dataset_dir, self.runs, self.options = configs, dataset_dir, runs, dict(options)
        self.datalist = load_datalist(dataset_dir)
        self.test: list[Item] = self.datalist["test"]
        if {item["label"] for item in self.test} != {0, 1}:
            raise InputError(f"{dataset_dir} needs normal and abnormal test images; the tables are figures of them")
        parser = self._parser(["train.yaml"], seed=0, k=1)
        self.extractor: PatchExtractor = parser.get_parsed_content("extractor")
        self.holdout = float(parser.get_parsed_content("holdout"))
        self.false_positive_rate = float(parser.get_parsed_content("false_positive_rate"))
        self.allow_overlap = bool(parser.get_parsed_content("allow_overlap"))
        self.where: dict[str, int] = {}
        self.images = torch.empty(0)

    def _parser(self, files: Sequence[str], **values: Any):
        workflow = ConfigWorkflow(
            config_file=[str(self.configs / name) for name in files],
            workflow_type="train",
            logging_file=False,
            dataset_dir=self.dataset_dir,
            output_dir=str(self.runs),
            **{**self.options, **values},
        )
        return workflow.parser

    def extract(self) -> None:
        """Features of every image of the data set, once."""
        items = self.datalist["training"] + self.test
        bank = self.extractor.bank(items, "all images")
        self.images = bank.rows.reshape(len(bank.files), -1, bank.rows.shape[1])
        self.where = {file: index for index, file in enumerate(bank.files)}
        self.test = [item for item in self.test if item["image"] in self.where]

    def bank(self, items: Sequence[Item]) -> FeatureBank:
        """Bank of whole images from the shared features; images that could not be read are left out."""
        files = [item["image"] for item in items if item["image"] in self.where]
        chosen = self.images[torch.tensor([self.where[file] for file in files])]
        return FeatureBank.from_images(chosen, files, self.extractor.grid)

    @property
    def labels(self) -> list[int]:
        """Of the test images that could be read."""
        return [item["label"] for item in self.test]

    def run(self, cell: Cell) -> dict[str, Any]:
        """Train, score the test images, compute the figures."""
        began = time.perf_counter()
        result = self._wscxr(cell) if cell.method == "wscxr" else self._baseline(cell)
        return {
            "method": cell.method,
            "variant": cell.variant,
            "k": cell.k,
            "seed": cell.seed,
            **result,
            "seconds": time.perf_counter() - began,
        }

    # ---- compared methods

    def _baseline(self, cell: Cell) -> dict[str, Any]:
        set_determinism(seed=cell.seed)
        values = {"seed": cell.seed, **cell.overrides}
        method = self._parser(["train.yaml", f"{cell.method}.yaml"], **values).get_parsed_content("method")
        split = normal_split(self.dataset_dir, self.holdout, cell.seed, self.allow_overlap)
        scored = fit_and_score(
            method,
            self.extractor,
            self.bank(split.normal),
            self.bank(split.held_out),
            self.bank(self.test),
            self.labels,
            self.false_positive_rate,
        )
        # as in `epoch_network`: every state, and the one that counts once more at the end
        epochs = [*scored.epochs, scored.epochs[-1]] if len(scored.epochs) > 1 else scored.epochs
        figures = cell_figures(
            self.labels, epochs, scored.held_out, scored.calibration.threshold, self.false_positive_rate
        )
        return {**figures, "scores": scored.epochs[-1]}

    # ---- WSCXR, through the bundle's own training

    def _wscxr(self, cell: Cell) -> dict[str, Any]:
        folder = self.runs / cell.name
        workflow = create_workflow(
            config_file=str(self.configs / "train.yaml"),
            workflow_type="train",
            run_id="training",
            logging_file=False,
            dataset_dir=self.dataset_dir,
            output_dir=str(folder),
            **{"progress": False, **self.options, "k": cell.k, "seed": cell.seed, **cell.overrides},
        )
        workflow.run()
        workflow.finalize()
        model = load_model(folder, str(self.extractor.device))
        images = self.bank(self.test).images.to(self.extractor.device)
        # one row per epoch, the trained model's last: the figures of `evaluate.yaml` without passing the images again
        epochs = image_scores(epoch_network(model).patch_scores, images, model.score_share).T.tolist()
        held_out = list(model.calibration.normal_scores)
        figures = cell_figures(self.labels, epochs, held_out, model.calibration.threshold, self.false_positive_rate)
        return {**figures, "scores": epochs[-1]}
