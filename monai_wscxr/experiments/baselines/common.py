"""What the compared methods share: who trains and calibrates, and a run of one method as a bundle workflow."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from monai_wscxr.bank.feature_bank import FeatureBank
from monai_wscxr.data.datalist import Item, load_datalist
from monai_wscxr.data.selection import check_overlap, hold_out
from monai_wscxr.errors import InputError
from monai_wscxr.evaluation import metrics
from monai_wscxr.features.extraction import PatchExtractor
from monai_wscxr.model.calibration import Calibration, calibrate
from monai_wscxr.system.atomic import write_text_atomic
from monai_wscxr.training.run_folder import RunFolder

logger = logging.getLogger("monai_wscxr")


class Method(Protocol):
    """A compared method: it learns from normal images alone and scores whole images by their patch features."""

    def fit(self, normal: FeatureBank, extractor: PatchExtractor) -> None:
        """Learn from the normal bank; `extractor` made it and can make more of its images."""

    def scores(self, images: FeatureBank) -> list[Tensor]:
        """Anomaly scores [n] of each state that the publication's rule may choose from; the last one counts."""


@dataclass(frozen=True)
class NormalSplit:
    """Items of a run that learns from normal images alone.

    Attributes:
        normal: train the method.
        held_out: normal images that train nothing; they calibrate. The same as WSCXR's for the same seed.
        test: normal and abnormal images for the figures.
        digests: content digest by file.
    """

    normal: list[Item]
    held_out: list[Item]
    test: list[Item]
    digests: dict[str, str]


def normal_split(
    source: str | os.PathLike[str], holdout: float = 0.15, seed: int = 0, allow_overlap: bool = False
) -> NormalSplit:
    """Split a data set for a method that needs no abnormal image to learn from.

    Args:
        source: folder or datalist file with a test part.
        holdout: share of the normal training images held out, by patient.
        seed: of that choice.
        allow_overlap: go on although training and test share images or patients.

    Raises:
        DatalistError: see `datalist` and `selection`.
        InputError: when the test part lacks normal or abnormal images.
    """
    datalist = load_datalist(source)
    test = datalist["test"]
    if {item["label"] for item in test} != {0, 1}:
        raise InputError(f"{source} needs normal and abnormal test images; a comparison has figures of the test part")
    normal, held_out = hold_out([item for item in datalist["training"] if item["label"] == 0], holdout, seed)
    digests: dict[str, str] = {}
    check_overlap(normal + held_out, test, allow=allow_overlap, digests=digests)
    return NormalSplit(normal, held_out, test, digests)


@dataclass(frozen=True)
class Scored:
    """What a fitted method says.

    Attributes:
        labels: [n] of the test images.
        epochs: test scores [n] of each state, the one that counts last.
        calibration: from the held-out normals.
        held_out: scores of the held-out normals.
        seconds: of fitting and scoring.
    """

    labels: list[int]
    epochs: list[list[float]]
    calibration: Calibration
    held_out: list[float]
    seconds: dict[str, float]


def fit_and_score(
    method: Method,
    extractor: PatchExtractor,
    normal: FeatureBank,
    held_out: FeatureBank,
    test: FeatureBank,
    labels: Sequence[int],
    false_positive_rate: float = 0.05,
) -> Scored:
    """Fit on `normal`, calibrate on `held_out`, score `test`; the test images choose nothing."""
    began = time.perf_counter()
    method.fit(normal, extractor)
    fitted = time.perf_counter()
    quiet = method.scores(held_out)[-1].tolist()
    epochs = [scores.tolist() for scores in method.scores(test)]
    seconds = {"training": fitted - began, "evaluation": time.perf_counter() - fitted}
    return Scored(list(labels), epochs, calibrate(quiet, (), false_positive_rate), quiet, seconds)


def run_method(
    method: Method,
    name: str,
    extractor: PatchExtractor,
    split: NormalSplit,
    folder: RunFolder,
    false_positive_rate: float = 0.05,
) -> dict[str, Any]:
    """One method as a bundle workflow: writes `metrics.json` and `predictions.csv`, returns the metrics.

    Args:
        method: not yet fitted.
        name: of the method, for the record.
        extractor: of the run.
        split: who trains, calibrates and is tested.
        folder: where the results go.
        false_positive_rate: wanted share of normal images flagged.
    """
    extractor.digests.update(split.digests)
    began = time.perf_counter()
    normal = extractor.bank(split.normal, "normal images")
    held_out = extractor.bank(split.held_out, "held-out normal images")
    test = extractor.bank(split.test, "test images")
    extraction = time.perf_counter() - began
    known = {item["image"]: item["label"] for item in split.test}
    labels = [known[file] for file in test.files]
    scored = fit_and_score(method, extractor, normal, held_out, test, labels, false_positive_rate)
    honest = metrics.honest_metrics(labels, scored.epochs[-1], scored.calibration.threshold)
    found = {
        "method": name,
        "honest": honest,
        "paper": metrics.paper_metrics(labels, [np.array(scores) for scores in scored.epochs]),
        "n_normal": labels.count(0),
        "n_abnormal": labels.count(1),
        "n_rejected": len(extractor.done.rejected),
        "settings": folder.settings,
        "seconds": {"extraction": extraction, **scored.seconds},
    }
    write_text_atomic(folder.path / "predictions.csv", _csv(test.files, scored))
    write_text_atomic(folder.path / "metrics.json", json.dumps(found, indent=1))
    logger.info("%s: %d normal images train, %.1f s", name, len(normal.files), scored.seconds["training"])
    logger.info(
        "honest: AUROC %.4f, accuracy %.4f, F1 %.4f, sensitivity %.4f, specificity %.4f at threshold %.4f",
        *(honest[k] for k in ("auroc", "accuracy", "f1", "sensitivity", "specificity", "threshold")),
    )
    return found


def _csv(files: Sequence[str], scored: Scored) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "label", "anomaly_score", "p_value", "abnormal"])
    for file, label, score in zip(files, scored.labels, scored.epochs[-1], strict=True):
        calibration = scored.calibration
        flagged = str(calibration.abnormal(score)).lower()
        writer.writerow([file, label, f"{score:.6f}", f"{calibration.p_value(score):.6g}", flagged])
    return text.getvalue()
