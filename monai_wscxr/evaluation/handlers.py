"""Evaluation and inference through MONAI's evaluator: figures, predictions, maps and the report."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from PIL import Image
from torch import Tensor

from monai_wscxr.data.datalist import load_datalist
from monai_wscxr.data.encoding import encode_png
from monai_wscxr.data.listing import IMAGE_SUFFIXES, list_images
from monai_wscxr.data.radiograph.read import file_digest
from monai_wscxr.data.selection import check_overlap
from monai_wscxr.data.split import count_classes
from monai_wscxr.data.stream import RadiographStream
from monai_wscxr.data.transforms import LoadMaskd, radiograph_transforms
from monai_wscxr.errors import InputError
from monai_wscxr.evaluation import metrics
from monai_wscxr.evaluation.localisation import localisation_metrics
from monai_wscxr.model.artefact import ARTEFACT, TrainedModel
from monai_wscxr.model.calibration import p_value_error
from monai_wscxr.model.networks import EpochScores, anomaly_score
from monai_wscxr.model.predictor import Prediction, in_order, to_map, to_prediction, write_csv
from monai_wscxr.report.case import Case
from monai_wscxr.report.html import choose_cases, write_report
from monai_wscxr.report.overlay import ColourScale, overlay
from monai_wscxr.system.atomic import write_bytes_atomic, write_text_atomic
from monai_wscxr.training.run_folder import epoch_discriminators

logger = logging.getLogger("monai_wscxr")

Item = dict[str, Any]


def evaluation_items(model: TrainedModel, source: str | Path, allow_overlap: bool = False) -> list[Item]:
    """Test items of a data set, checked against the images that the model was trained on.

    Raises:
        InputError: when there are no test images of both labels, or images were trained on and that is not allowed.
    """
    datalist = load_datalist(source)
    items = datalist["test"]
    labels = {item["label"] for item in items}
    if labels != {0, 1}:
        raise InputError(
            f"{source} has {sum(i['label'] == 0 for i in items)} normal and {sum(i['label'] == 1 for i in items)} abnormal "
            "test images; evaluation needs both, under test/normal and test/abnormal[/CLASS]"
        )
    seen = set(_training_record(model)["digests"])
    trained_on = [item["image"] for item in items if file_digest(item["image"]) in seen]
    if trained_on and not allow_overlap:
        raise InputError(
            f"{len(trained_on)} of {len(items)} test images took part in training this model (first: {trained_on[0]}); "
            "figures would be too good. Remove them, or accept it with --allow_overlap true"
        )
    if not allow_overlap:
        check_overlap(datalist["training"], items)
    return items


def inference_items(source: str | Path) -> list[Item]:
    """Return items of every image in a folder, or of one file, without labels; log what is left out.

    Raises:
        InputError: when there is no image.
    """
    listing = list_images([source])
    if listing.left_out:
        logger.info("%s: %s", source, listing.summary())
    if not listing.images:
        raise InputError(f"{source} holds no radiograph ({', '.join(IMAGE_SUFFIXES)}, or DICOM); check --dataset_dir")
    return [{"image": str(file)} for file in listing.images]


def epoch_network(model: TrainedModel) -> EpochScores:
    """Scores of every epoch's discriminator, the trained model's last; see `EpochScores`."""
    discriminators = []
    for state in epoch_discriminators(model.folder):
        discriminator = copy.deepcopy(model.network.discriminator)
        discriminator.load_state_dict(state)
        discriminators.append(discriminator)
    device = next(model.network.parameters()).device
    network = EpochScores(model.network, [*discriminators, model.network.discriminator])
    return network.to(device).eval()


def _training_record(model: TrainedModel) -> dict[str, Any]:
    return json.loads((model.folder / ARTEFACT).read_text(encoding="utf-8"))["training"]


class ResultHandler:
    """Collect patch scores during a run of the evaluator and write the results when it completes.

    Args:
        model: the trained model.
        stream: what the evaluator reads; its rejected files become rows of the results.
        folder: where results go.
    """

    def __init__(self, model: TrainedModel, stream: RadiographStream, folder: str | Path) -> None:
        self.model, self.stream, self.folder = model, stream, Path(folder)
        self.items: list[Item] = []
        self.predictions: list[Prediction] = []
        self._began = 0.0

    def attach(self, engine: Engine) -> None:
        """Collect after each batch, write at the end."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def start(self, engine: Engine) -> None:
        """Forget an earlier run."""
        self.items, self.predictions, self._began = [], [], time.perf_counter()

    def collect(self, engine: Engine) -> None:
        """Take in one batch; the last channel holds the trained model's scores."""
        state: Any = engine.state  # ignite declares its fields as optional scalars
        scores: Tensor = state.output["pred"]
        for item, patch_scores in zip(state.batch["items"], scores, strict=True):
            self.items.append(item)
            self.predictions.append(to_prediction(self.model, item["file"], patch_scores[-1]))

    @property
    def seconds(self) -> float:
        """Time since the run started."""
        return time.perf_counter() - self._began

    def write(self, engine: Engine) -> None:
        """Write `predictions.csv` with one row for every file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = in_order([str(i["image"]) for i in self.stream.items], self.predictions, self.stream.rejected)
        write_csv(self.folder / "predictions.csv", self.model, rows)
        for file, code, message in self.stream.rejected:
            logger.warning("rejected (%s): %s: %s", code, file, message)

    def pictures(self, index: int) -> dict[str, Any]:
        """Radiograph, anomaly map and, where there is one, lesion mask of prediction `index`, as Case fields."""
        item = self.items[index]
        size = self.model.preprocessing.image_size
        loaded = radiograph_transforms(self.model.preprocessing, keep_radiograph=True)({"image": item["file"]})
        pictures = {
            "image": loaded["radiograph"][0].clamp(0, 1).numpy(),
            "anomaly_map": to_map(self.model, self.predictions[index]),
        }
        if item.get("mask"):
            pictures["mask"] = LoadMaskd("mask", size)({"mask": item["mask"]})["mask"][0].numpy()
        return pictures

    def scale(self) -> ColourScale:
        """The one colour scale of this model."""
        calibration = self.model.calibration
        return ColourScale(calibration.colour_low, calibration.colour_high, calibration.threshold)


class EvaluationHandler(ResultHandler):
    """`ResultHandler` for labelled test images: `metrics.json` and the report besides the predictions.

    The evaluator's network gives one channel per epoch, the trained model last (`epoch_network`).

    Args:
        model, stream, folder: see `ResultHandler`.
        max_cases: images shown in each section of the report.
    """

    def __init__(self, model: TrainedModel, stream: RadiographStream, folder: str | Path, max_cases: int = 8) -> None:
        super().__init__(model, stream, folder)
        self.max_cases = max_cases
        self.epoch_scores: list[list[float]] = []
        self.metrics: dict[str, Any] = {}

    def start(self, engine: Engine) -> None:
        """Forget an earlier run."""
        super().start(engine)
        self.epoch_scores = []

    def collect(self, engine: Engine) -> None:
        """Take in one batch."""
        super().collect(engine)
        state: Any = engine.state
        self.epoch_scores += anomaly_score(state.output["pred"], self.model.score_share).tolist()

    def write(self, engine: Engine) -> None:
        """Write predictions, figures and the report, and print the figures."""
        super().write(engine)
        labels = [item["label"] for item in self.items]
        scores = [p.anomaly_score for p in self.predictions]
        epochs = np.array(self.epoch_scores).T[:-1] if len(self.epoch_scores[0]) > 1 else np.array(self.epoch_scores).T
        self.metrics = {
            "honest": metrics.honest_metrics(labels, scores, self.model.calibration.threshold),
            "paper": metrics.paper_metrics(labels, list(epochs)),
            "n_normal": labels.count(0),
            "n_abnormal": labels.count(1),
            "classes": count_classes(self.items),
            "n_rejected": len(self.stream.rejected),
            "model_sha256": self.model.sha256,
            "settings": self.model.settings,
        }
        p_values = [p.p_value for p, label in zip(self.predictions, labels, strict=True) if label == 0]
        wanted = self.model.calibration.false_positive_rate
        self.metrics["calibration"] = {
            "wanted_false_positive_rate": wanted,
            "false_positive_rate": 1 - self.metrics["honest"]["specificity"],
            "p_value_error": p_value_error(p_values),
        }
        pixel = self._localisation()
        if pixel is not None:
            self.metrics["pixel"] = pixel
        self.metrics["seconds"] = {**_training_record(self.model)["seconds"], "evaluation": self.seconds}
        write_text_atomic(self.folder / "metrics.json", json.dumps(self.metrics, indent=1))
        report = self._report()
        honest, paper = self.metrics["honest"], self.metrics["paper"]
        logger.info(
            "honest: AUROC %.4f, accuracy %.4f, F1 %.4f, sensitivity %.4f, specificity %.4f at threshold %.4f",
            *(honest[k] for k in ("auroc", "accuracy", "f1", "sensitivity", "specificity", "threshold")),
        )
        logger.info(
            "paper (optimistic, epoch and threshold chosen on the test images): AUROC %.4f, accuracy %.4f, F1 %.4f",
            *(paper[k] for k in ("auroc", "accuracy", "f1")),
        )
        if pixel is not None:
            logger.info(
                "pixel AUROC %.4f, AUPRO %.4f, pointing game %.4f",
                *(pixel[k] for k in ("auroc", "aupro", "pointing_game")),
            )
        logger.info("report: %s", report.resolve())

    def _localisation(self) -> dict[str, float] | None:
        if not any(item.get("mask") for item in self.items):
            return None
        size = self.model.preprocessing.image_size
        masks, maps = [], []
        for item, prediction in zip(self.items, self.predictions, strict=True):
            if item["label"] == 1 and not item.get("mask"):
                continue  # a lesion that nobody outlined must not count as normal pixels
            mask = np.zeros((size, size), bool)
            if item.get("mask"):
                mask = LoadMaskd("mask", size)({"mask": item["mask"]})["mask"][0].numpy()
            masks.append(mask)
            maps.append(to_map(self.model, prediction))
        return localisation_metrics(masks, maps)

    def _report(self) -> Path:
        common = os.path.commonpath([os.path.dirname(item["file"]) for item in self.items])
        cases = [
            Case(
                name=os.path.relpath(item["file"], common),
                label=item["label"],
                class_name=item["class"],
                anomaly_score=p.anomaly_score,
                p_value=p.p_value,
                abnormal=p.abnormal,
            )
            for item, p in zip(self.items, self.predictions, strict=True)
        ]
        for index in {i for _, shown in choose_cases(cases, self.max_cases) for i in shown}:
            cases[index] = dataclasses.replace(cases[index], **self.pictures(index))
        notes = [f"{len(self.stream.rejected)} test images could not be used."] if self.stream.rejected else []
        return write_report(
            self.folder / "report" / "index.html",
            title="WSCXR evaluation",
            cases=cases,
            metrics=self.metrics,
            settings={**self.model.settings, "model_sha256": self.model.sha256},
            scale=self.scale(),
            threshold=self.model.calibration.threshold,
            max_cases=self.max_cases,
            notes=notes,
        )


class InferenceHandler(ResultHandler):
    """`ResultHandler` for unlabelled images: predictions, anomaly maps (32-bit TIFF) and overlays (PNG).

    Row n of `predictions.csv` (counted from 0) has `maps/n.tiff` and `overlays/n.png`: names carry nothing of a patient.
    """

    def start(self, engine: Engine) -> None:
        """Forget an earlier run."""
        super().start(engine)
        self._number = {str(item["image"]): n for n, item in enumerate(self.stream.items)}
        for name in ("maps", "overlays"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def collect(self, engine: Engine) -> None:
        """Take in one batch and write its maps and overlays; the stream keeps each item's radiograph."""
        done = len(self.predictions)
        super().collect(engine)
        for item, prediction in zip(self.items[done:], self.predictions[done:], strict=True):
            radiograph = item.pop("radiograph")[0].clamp(0, 1).numpy()
            values = to_map(self.model, prediction)
            stem = f"{self._number[prediction.file]:06d}"
            _write_tiff(self.folder / "maps" / f"{stem}.tiff", values)
            picture = encode_png(overlay(radiograph, values, self.scale()), quick=True)
            write_bytes_atomic(self.folder / "overlays" / f"{stem}.png", picture)

    def write(self, engine: Engine) -> None:
        """Write `predictions.csv` and say what was found."""
        super().write(engine)
        flagged = sum(p.abnormal for p in self.predictions)
        logger.info(
            "%d images, %d flagged, %d rejected, %.1f s; results in %s",
            *(len(self.stream.items), flagged, len(self.stream.rejected), self.seconds, self.folder.resolve()),
        )


def _write_tiff(path: Path, values: np.ndarray) -> None:
    buffer = io.BytesIO()
    Image.fromarray(values.astype(np.float32)).save(buffer, format="TIFF")
    write_bytes_atomic(path, buffer.getvalue())
