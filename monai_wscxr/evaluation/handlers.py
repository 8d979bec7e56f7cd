"""Handlers for MONAI's evaluator: they collect predictions during a run and write the results at its end."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from numpy.typing import NDArray
from torch import Tensor

from monai_wscxr.data.radiograph.base import RadiographError
from monai_wscxr.data.stream import RadiographStream
from monai_wscxr.evaluation.items import Item
from monai_wscxr.evaluation.results import (
    evaluation_metrics,
    log_metrics,
    observed_rate,
    write_evaluation_report,
    write_pictures,
)
from monai_wscxr.model.artefact import TrainedModel
from monai_wscxr.model.drift import Drift, measure_drift
from monai_wscxr.model.predictions import Prediction, check_images, in_order, to_prediction
from monai_wscxr.model.scores import anomaly_score
from monai_wscxr.report.predictions import write_predictions
from monai_wscxr.system.atomic import write_text_atomic
from monai_wscxr.system.progress import progress_bar

logger = logging.getLogger("monai_wscxr")


class ProgressHandler:
    """Show how many images of a run are done; a few plain lines where stderr is no terminal.

    Args:
        what: text in front of the bar.
        stream: input of the evaluator.
        shown: False shows nothing.
    """

    def __init__(self, what: str, stream: RadiographStream, shown: bool = True) -> None:
        self.what, self.stream, self.shown = what, stream, shown

    def attach(self, engine: Engine) -> None:
        """Start the bar with the run, move it after each batch, and end it with the run or its error."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.step)
        engine.add_event_handler(Events.COMPLETED, self.end)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self.fail)

    def start(self, engine: Engine) -> None:
        """Show the bar."""
        self._read, self._bar = 0, progress_bar(len(self.stream), self.what, self.shown)

    def step(self, engine: Engine) -> None:
        """Count the images of a batch, and those that were rejected before it."""
        state: Any = engine.state
        self._read += len(state.batch["items"])
        self._bar.update(self._read + len(self.stream.rejected) - self._bar.n)

    def end(self, engine: Engine) -> None:
        """Count the images that were rejected last, and close the bar."""
        self._bar.update(self._read + len(self.stream.rejected) - self._bar.n)
        self._bar.close()

    def fail(self, engine: Engine, error: BaseException) -> None:
        """Close the bar and let the error pass."""
        self._bar.close()
        raise error


class ResultHandler:
    """Collect patch scores during a run and write `predictions.csv` at its end.

    Args:
        model: the trained model.
        stream: input of the evaluator; its rejected files get rows of their own.
        folder: folder for the results.
    """

    def __init__(self, model: TrainedModel, stream: RadiographStream, folder: str | Path) -> None:
        self.model, self.stream, self.folder = model, stream, Path(folder)
        self.items: list[Item] = []
        self.predictions: list[Prediction] = []
        self.places: list[NDArray[np.float32]] = []
        self._began = 0.0

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator: collect after each batch, write at the end."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def start(self, engine: Engine) -> None:
        """Discard the results of an earlier run."""
        self.items, self.predictions, self.places, self._began = [], [], [], time.perf_counter()

    def collect(self, engine: Engine) -> None:
        """Collect the predictions of one batch."""
        state: Any = engine.state  # ignite declares its fields as optional scalars
        self.keep(state.batch["items"], state.output["pred"])

    def keep(self, items: Sequence[Item], scores: Tensor) -> None:
        """Keep the predictions of items by their patch scores; the last channel belongs to the trained model."""
        for item, patch_scores in zip(items, scores.float().cpu(), strict=True):
            self.items.append(item)
            self.predictions.append(to_prediction(self.model, item["file"], patch_scores[-1]))

    def place(self, image_features: Tensor, refusals: Sequence[RadiographError | None]) -> None:
        """Keep the coordinates for drift of the images [B, C] of a batch that are not refused."""
        if self.model.drift is not None:
            coordinates = self.model.drift.coordinates(image_features.float().cpu())
            self.places += [one for one, refusal in zip(coordinates, refusals, strict=True) if refusal is None]

    @property
    def drift(self) -> Drift:
        """Comparison of the images with the normals that calibrated the model; those unlike a chest do not count."""
        return measure_drift(self.model.drift, self.places)

    @property
    def seconds(self) -> float:
        """Seconds since the run started."""
        return time.perf_counter() - self._began

    def write(self, engine: Engine) -> None:
        """Write `predictions.csv` with one row per file, and log the rejected files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = in_order([str(i["image"]) for i in self.stream.items], self.predictions, self.stream.rejected)
        labels = [item["label"] for item in self.stream.items if "label" in item]
        named = self.drift.named
        write_predictions(self.folder / "predictions.csv", rows, self.model.sha256, labels or None, named)
        for file, code, message in self.stream.rejected:
            logger.warning("rejected (%s): %s: %s", code, file, message)


class EvaluationHandler(ResultHandler):
    """Write `metrics.json` and the report of labelled test images, besides the predictions.

    The evaluator's network is a `CheckedNet` of `epoch_network`: one output channel per epoch, the trained model last.

    Images that are unlike a chest radiograph count, so that the metrics are those of all labelled images; how many they are,
    which `predict` would refuse, is part of the metrics and a warning.

    Args:
        model, stream, folder: see `ResultHandler`.
        max_cases: maximum number of images under each heading of the report's gallery.
        allow: gates that are not applied.
    """

    def __init__(
        self,
        model: TrainedModel,
        stream: RadiographStream,
        folder: str | Path,
        max_cases: int = 8,
        allow: Collection[str] = (),
    ) -> None:
        super().__init__(model, stream, folder)
        self.max_cases, self.allow = max_cases, allow
        self.unlike: list[str] = []
        self.epoch_scores: list[list[float]] = []
        self.metrics: dict[str, Any] = {}

    def start(self, engine: Engine) -> None:
        """Discard the results of an earlier run."""
        super().start(engine)
        self.epoch_scores, self.unlike = [], []

    def collect(self, engine: Engine) -> None:
        """Collect the predictions and the scores of all epochs of one batch."""
        state: Any = engine.state
        scores, means = (part.float().cpu() for part in state.output["pred"])
        self.keep(state.batch["items"], scores)
        self.epoch_scores += anomaly_score(scores, self.model.score_share).tolist()
        refusals = check_images(self.model, means, self.allow)
        self.place(means, refusals)
        self.unlike += [
            item["file"] for item, one in zip(state.batch["items"], refusals, strict=True) if one is not None
        ]

    def write(self, engine: Engine) -> None:
        """Write predictions, metrics and report, and log the metrics."""
        super().write(engine)
        rejected = len(self.stream.rejected)
        found = evaluation_metrics(self.model, self.items, self.predictions, self.epoch_scores, rejected)
        found["n_unlike_a_chest"] = len(self.unlike)
        if self.unlike:
            logger.warning(
                "%d of %d test images are unlike a chest radiograph, so predict refuses them; they count here (first: %s)",
                *(len(self.unlike), len(self.items), self.unlike[0]),
            )
        drift = self.drift
        found["drift"] = drift.to_dict()
        found["seconds"] = {**self.model.training["seconds"], "evaluation": self.seconds}
        self.metrics = found
        write_text_atomic(self.folder / "metrics.json", json.dumps(found, indent=1))
        page = self.folder / "report" / "index.html"
        rate = observed_rate(self.model, self.items, self.predictions)
        write_evaluation_report(page, self.model, self.items, self.predictions, found, self.max_cases, rate, drift)
        log_metrics(found)
        logger.info("report: %s", page.resolve())
        logger.log(logging.WARNING if rate.disagrees else logging.INFO, "%s", rate.sentence())
        _warn_of_drift(self.model, drift)


class InferenceHandler(ResultHandler):
    """Write anomaly maps (32-bit TIFF) and overlays (PNG) of unlabelled images, besides the predictions.

    Row n of `predictions.csv`, counted from 0, belongs to `maps/n.tiff` and `overlays/n.png`: names reveal nothing about a
    patient. The items of the stream must keep their radiograph (`radiograph_transforms(..., keep_radiograph=True)`).
    Images that are unlike a chest radiograph are rejected. The evaluator's network is a `CheckedNet`.

    Args:
        model, stream, folder: see `ResultHandler`.
        allow: gates that are not applied.
    """

    def __init__(
        self, model: TrainedModel, stream: RadiographStream, folder: str | Path, allow: Collection[str] = ()
    ) -> None:
        super().__init__(model, stream, folder)
        self.allow = allow

    def start(self, engine: Engine) -> None:
        """Discard the results of an earlier run and create the folders."""
        super().start(engine)
        self._number = {str(item["image"]): n for n, item in enumerate(self.stream.items)}
        for name in ("maps", "overlays"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def collect(self, engine: Engine) -> None:
        """Collect the predictions of one batch and write its maps and overlays."""
        state: Any = engine.state
        scores, means = (part.float().cpu() for part in state.output["pred"])
        refusals = check_images(self.model, means, self.allow)
        self.place(means, refusals)
        for item, patch_scores, refusal in zip(state.batch["items"], scores, refusals, strict=True):
            if refusal is not None:
                self.stream.rejected.append((item["file"], refusal.code, refusal.message))
                continue
            prediction = to_prediction(self.model, item["file"], patch_scores[-1])
            self.predictions.append(prediction)
            radiograph = item.pop("radiograph")[0].clamp(0, 1).numpy()  # popped: images must not pile up in memory
            write_pictures(self.folder, self._number[prediction.file], self.model, prediction, radiograph)

    def write(self, engine: Engine) -> None:
        """Write `predictions.csv` and log a summary."""
        super().write(engine)
        flagged = sum(p.abnormal for p in self.predictions)
        logger.info(
            "%d images, %d flagged, %d rejected, %.1f s; results in %s",
            *(len(self.stream.items), flagged, len(self.stream.rejected), self.seconds, self.folder.resolve()),
        )
        _warn_of_drift(self.model, self.drift)


def _warn_of_drift(model: TrainedModel, drift: Drift) -> None:
    """Warn of drift as the last line of a run, as `predict` does."""
    if sentence := drift.sentence(str(model.folder)):
        logger.warning("%s", sentence)
