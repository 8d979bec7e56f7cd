"""Parts that the compared methods share: protocol, data split, and the run of one method as a bundle workflow."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import numpy as np
from torch import Tensor

from monai_wscxr.bank.feature_bank import FeatureBank
from monai_wscxr.data.datalist import Item, load_datalist
from monai_wscxr.data.selection import choose_few_shot, hold_out
from monai_wscxr.data.split import checked_datalist
from monai_wscxr.errors import InputError
from monai_wscxr.evaluation import metrics
from monai_wscxr.evaluation.operating_points import operating_figures
from monai_wscxr.features.extraction import PatchExtractor
from monai_wscxr.model.calibration import Calibration, calibrate
from monai_wscxr.model.predictions import Prediction, in_order
from monai_wscxr.report.predictions import write_predictions
from monai_wscxr.system.atomic import write_text_atomic
from monai_wscxr.training.run_folder import RunFolder

logger = logging.getLogger("monai_wscxr")


class Method(Protocol):
    """A compared method, which learns from normal images only and scores whole images by their patch features."""

    def fit(self, normal: FeatureBank, extractor: PatchExtractor) -> None:
        """Learn from the normal bank.

        Args:
            normal: bank of whole normal images.
            extractor: extractor of the bank, for methods that need further features.
        """

    def scores(self, images: FeatureBank) -> list[Tensor]:
        """Compute the anomaly scores of images.

        Args:
            images: bank of n whole images.

        Returns:
            Scores [n] of each state of the method that the published protocol may choose from; the last entry belongs to the
            trained method.
        """


class LabelledMethod(Protocol):
    """A compared method, which learns from normal and few-shot abnormal images."""

    def fit_labelled(self, normal: FeatureBank, abnormal: FeatureBank) -> None:
        """Learn from banks of whole normal and abnormal images."""

    def scores(self, images: FeatureBank) -> list[Tensor]:
        """Compute the anomaly scores of images, as `Method.scores`."""


@dataclass(frozen=True)
class MethodSplit:
    """Items of a run of a compared method; those of WSCXR for the same seed and k.

    Attributes:
        normal: normal training images.
        held_out: normal images for calibration, not trained on.
        test: normal and abnormal test images.
        digests: content digest by file.
        abnormal: abnormal training images; None for a method that learns from normal images only.
    """

    normal: list[Item]
    held_out: list[Item]
    test: list[Item]
    digests: dict[str, str]
    abnormal: list[Item] | None = None


def normal_split(
    source: str | os.PathLike[str], holdout: float = 0.15, seed: int = 0, allow_overlap: bool = False
) -> MethodSplit:
    """Split a data set for a method that learns from normal images only.

    Args:
        source: folder or data list with a test part.
        holdout: share of the normal training images held out, by patient.
        seed: seed of the choice of held-out images.
        allow_overlap: accept images or patients that training and test share.

    Raises:
        DatalistError: see `checked_datalist` and `hold_out`.
        InputError: when the test part lacks normal or abnormal images.
    """
    data = checked_datalist(source, allow_overlap)
    if {item["label"] for item in data.test} != {0, 1}:
        raise InputError(f"{source} needs normal and abnormal test images; methods are compared on them")
    normal, held_out = hold_out([item for item in data.training if item["label"] == 0], holdout, seed)
    return MethodSplit(normal, held_out, data.test, data.digests)


def labelled_split(
    source: str | os.PathLike[str],
    k: int,
    holdout: float = 0.15,
    seed: int = 0,
    strict: bool = False,
    allow_overlap: bool = False,
) -> MethodSplit:
    """Split a data set for a method that learns from normal and few-shot abnormal images.

    Args:
        source, holdout, seed, allow_overlap: as for `normal_split`.
        k: abnormal images per class, >= 1.
        strict: raise an error for a class with fewer than k images, instead of a warning.

    Raises:
        DatalistError: see `normal_split` and `choose_few_shot`.
        InputError: as `normal_split`; or when there is no abnormal training image.
    """
    split = normal_split(source, holdout, seed, allow_overlap)
    abnormal = choose_few_shot(load_datalist(source)["training"], k, seed, strict)
    if not abnormal:
        raise InputError(f"this method needs abnormal training images, and {source} gives none with k = {k}")
    return replace(split, abnormal=abnormal)


@dataclass(frozen=True)
class Scored:
    """Scores of a fitted method.

    Attributes:
        labels: labels [n] of the test images.
        epochs: scores [n] of the test images for each state of the method, see `Method.scores`.
        calibration: calibration on the held-out normals.
        held_out: scores of the held-out normals.
        seconds: time spent on fitting ("training") and scoring ("evaluation").
    """

    labels: list[int]
    epochs: list[list[float]]
    calibration: Calibration
    held_out: list[float]
    seconds: dict[str, float]


def fit_and_score(
    method: Method | LabelledMethod,
    extractor: PatchExtractor,
    normal: FeatureBank,
    held_out: FeatureBank,
    test: FeatureBank,
    labels: Sequence[int],
    false_positive_rate: float = 0.05,
    abnormal: FeatureBank | None = None,
) -> Scored:
    """Fit a method on `normal`, calibrate it on `held_out` and score `test`; nothing is chosen on the test images.

    A `LabelledMethod` learns from `abnormal` as well.
    """
    began = time.perf_counter()
    if abnormal is None:
        cast(Method, method).fit(normal, extractor)
    else:
        cast(LabelledMethod, method).fit_labelled(normal, abnormal)
    fitted = time.perf_counter()
    held_out_scores = method.scores(held_out)[-1].tolist()
    epochs = [scores.tolist() for scores in method.scores(test)]
    seconds = {"training": fitted - began, "evaluation": time.perf_counter() - fitted}
    calibration = calibrate(held_out_scores, (), false_positive_rate)
    return Scored(list(labels), epochs, calibration, held_out_scores, seconds)


def run_method(
    method: Method | LabelledMethod,
    name: str,
    extractor: PatchExtractor,
    split: MethodSplit,
    folder: RunFolder,
    false_positive_rate: float = 0.05,
) -> dict[str, Any]:
    """Run one method as a bundle workflow and write `metrics.json` and `predictions.csv`.

    Args:
        method: the method, not yet fitted.
        name: name of the method.
        extractor: patch features of files.
        split: training, calibration and test images.
        folder: output folder of the run.
        false_positive_rate: target share of normal images flagged.

    Returns:
        Content of `metrics.json`.
    """
    extractor.digests.update(split.digests)
    began = time.perf_counter()
    normal = extractor.bank(split.normal, "normal images")
    held_out = extractor.bank(split.held_out, "held-out normal images")
    abnormal = None if split.abnormal is None else extractor.bank(split.abnormal, "abnormal images")
    test = extractor.bank(split.test, "test images")
    extraction = time.perf_counter() - began
    items = {item["image"]: item for item in split.test}
    labels = [items[file]["label"] for file in test.files]
    scored = fit_and_score(method, extractor, normal, held_out, test, labels, false_positive_rate, abnormal)
    honest = metrics.honest_metrics(labels, scored.epochs[-1], scored.calibration.threshold)
    found = {
        "method": name,
        "honest": honest,
        "paper": metrics.paper_metrics(labels, [np.array(scores) for scores in scored.epochs]),
        **operating_figures([items[file] for file in test.files], scored.epochs[-1], scored.calibration.threshold),
        "n_normal": labels.count(0),
        "n_abnormal": labels.count(1),
        "n_rejected": len(extractor.done.rejected),
        "settings": folder.settings,
        "seconds": {"extraction": extraction, **scored.seconds},
    }
    scores = zip(test.files, scored.epochs[-1], strict=True)
    predictions = [Prediction.scored(file, score, scored.calibration) for file, score in scores]
    rows = in_order(items, predictions, extractor.done.rejected)
    write_predictions(
        folder.path / "predictions.csv", rows, model_sha256="", labels=[item["label"] for item in split.test]
    )
    write_text_atomic(folder.path / "metrics.json", json.dumps(found, indent=1))
    logger.info("%s: %d normal images train, %.1f s", name, len(normal.files), scored.seconds["training"])
    logger.info(
        "honest: AUROC %.4f, accuracy %.4f, F1 %.4f, sensitivity %.4f, specificity %.4f at threshold %.4f",
        *(honest[k] for k in ("auroc", "accuracy", "f1", "sensitivity", "specificity", "threshold")),
    )
    return found
