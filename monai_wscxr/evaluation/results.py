"""Results of an evaluation or inference run as plain functions: metrics, report, maps and overlays."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_wscxr.data.encoding import encode_png
from monai_wscxr.data.masks import read_mask, resize_mask
from monai_wscxr.data.preprocessing import RadiographLoader
from monai_wscxr.data.split import count_classes
from monai_wscxr.evaluation.epochs import candidate_epochs
from monai_wscxr.evaluation.items import Item
from monai_wscxr.evaluation.localisation import localisation_metrics
from monai_wscxr.evaluation.metrics import honest_metrics, paper_metrics
from monai_wscxr.evaluation.operating_points import operating_figures
from monai_wscxr.model.artefact import TrainedModel
from monai_wscxr.model.calibration import ObservedRate, p_value_error
from monai_wscxr.model.drift import Drift
from monai_wscxr.model.predictions import Prediction, to_map
from monai_wscxr.report.case import NORMALS_ONLY, Case
from monai_wscxr.report.figures import figure_text
from monai_wscxr.report.html import choose_cases, write_report
from monai_wscxr.report.maps import encode_map
from monai_wscxr.report.overlay import overlay
from monai_wscxr.system.atomic import write_bytes_atomic

logger = logging.getLogger("monai_wscxr")


def evaluation_metrics(
    model: TrainedModel,
    items: Sequence[Item],
    predictions: Sequence[Prediction],
    epoch_scores: Sequence[Sequence[float]],
    rejected: int,
) -> dict[str, Any]:
    """Compute the content of `metrics.json`, except for the times.

    Args:
        model: the trained model.
        items: labelled test items that were scored.
        predictions: prediction of each item.
        epoch_scores: anomaly scores of each item, one per channel of `epoch_network`.
        rejected: number of test images that could not be used.
    """
    labels = [item["label"] for item in items]
    scores = [p.anomaly_score for p in predictions]
    honest = honest_metrics(labels, scores, model.calibration.threshold)
    by_epoch = list(np.array(epoch_scores).T)
    found: dict[str, Any] = {
        "honest": honest,
        "paper": paper_metrics(labels, candidate_epochs(by_epoch)),
        "n_normal": labels.count(0),
        "n_abnormal": labels.count(1),
        "classes": count_classes(items),
        "n_rejected": rejected,
        "model_sha256": model.sha256,
        "settings": model.settings,
        "calibration": {
            "wanted_false_positive_rate": model.calibration.false_positive_rate,
            "supported_false_positive_rate": model.calibration.supported_rate,
            "false_positive_rate": 1 - honest["specificity"],
            "p_value_error": p_value_error([p.p_value for p, y in zip(predictions, labels, strict=True) if y == 0]),
            "observed": observed_rate(model, items, predictions).to_dict(),
        },
        **operating_figures(items, scores, model.calibration.threshold),
    }
    pixel = lesion_metrics(model, items, predictions)
    return found if pixel is None else {**found, "pixel": pixel}


def observed_rate(model: TrainedModel, items: Sequence[Item], predictions: Sequence[Prediction]) -> ObservedRate:
    """Compare the rate of false alarms among the normal test images, at least one, with the promised one."""
    normal = [(item, p.anomaly_score) for item, p in zip(items, predictions, strict=True) if item["label"] == 0]
    patients = [str(item.get("patient") or item["file"]) for item, _ in normal]
    return model.calibration.observed_rate([score for _, score in normal], patients)


def lesion_metrics(
    model: TrainedModel, items: Sequence[Item], predictions: Sequence[Prediction]
) -> dict[str, Any] | None:
    """Compare anomaly maps with lesion masks, see `localisation_metrics`; None without any mask.

    Abnormal images without a mask are left out: their lesions must not count as normal pixels.
    """
    if not any(item.get("mask") for item in items):
        return None
    size = model.preprocessing.image_size
    masks, maps, findings = [], [], []
    for item, prediction in zip(items, predictions, strict=True):
        if item["label"] == 1 and not item.get("mask"):
            continue
        masks.append(_load_mask(item, size) if item.get("mask") else np.zeros((size, size), bool))
        maps.append(to_map(model, prediction))
        findings.append(str(item["class"]))
    return localisation_metrics(masks, maps, findings)


def log_metrics(metrics: Mapping[str, Any]) -> None:
    """Log the main metrics of an evaluation."""
    honest, paper, pixel = metrics["honest"], metrics["paper"], metrics.get("pixel")
    logger.info(
        "honest: AUROC %.4f, accuracy %.4f, F1 %.4f, sensitivity %.4f, specificity %.4f at threshold %.4f",
        *(honest[k] for k in ("auroc", "accuracy", "f1", "sensitivity", "specificity", "threshold")),
    )
    logger.info(
        "paper (optimistic, epoch and threshold chosen on the test images): AUROC %.4f, accuracy %.4f, F1 %.4f",
        *(paper[k] for k in ("auroc", "accuracy", "f1")),
    )
    points = metrics["operating_points"]
    at_90, at_95, own = (figure_text(points[key]["sensitivity"]) for key in ("at_90", "at_95", "own"))
    logger.info(
        "sensitivity %s at 90 %% and %s at 95 %% specificity (thresholds from the normals of these images), %s as set",
        *(at_90, at_95, own),
    )
    if metrics["findings"]:
        listed = ", ".join(
            f"{name} {row['sensitivity']['value']:.2f} of {row['abnormal']}"
            for name, row in metrics["findings"].items()
        )
        logger.info("sensitivity by finding: %s", listed)
    if pixel is not None:
        logger.info(
            "pixel AUROC %.4f, AUPRO %.4f, pointing game %.4f; a constant map: %.4f, %.4f, %.4f",
            *(part[k] for part in (pixel, pixel["constant_map"]) for k in ("auroc", "aupro", "pointing_game")),
        )
        if pixel["gap"] is not None:
            logger.info(
                "percentile among normals at the same place: in lesions %.4f, at the mirrored place %.4f, gap %.4f",
                *(pixel[k] for k in ("percentile", "mirrored_percentile", "gap")),
            )


def write_evaluation_report(
    path: Path,
    model: TrainedModel,
    items: Sequence[Item],
    predictions: Sequence[Prediction],
    metrics: Mapping[str, Any],
    max_cases: int,
    rate: ObservedRate,
    drift: Drift,
) -> Path:
    """Write the HTML report of an evaluation.

    Args:
        path: the HTML file.
        model: the trained model.
        items: labelled test items that were scored.
        predictions: prediction of each item.
        metrics: content of `metrics.json`.
        max_cases: maximum number of images under each heading of the gallery.
        rate: rate of false alarms, beside the promised one.
        drift: comparison of the images with the normals that calibrated the model.

    Returns:
        Path of the HTML file.
    """
    common = os.path.commonpath([os.path.dirname(item["file"]) for item in items])
    cases = [
        Case(
            name=os.path.relpath(item["file"], common),
            label=item["label"],
            class_name=item["class"],
            anomaly_score=p.anomaly_score,
            p_value=p.p_value,
            abnormal=p.abnormal,
        )
        for item, p in zip(items, predictions, strict=True)
    ]
    for index in {i for _, shown in choose_cases(cases, max_cases) for i in shown}:
        cases[index] = _with_pictures(cases[index], model, items[index], predictions[index])
    rejected, calibration = metrics["n_rejected"], model.calibration
    notes = [f"Threshold: {calibration.rate_text}.", f"{rate.sentence()}."]
    if rate.disagrees:
        notes.reverse()
    if sentence := drift.sentence(str(model.folder)):
        notes.insert(0, f"{sentence}.")
    if model.normals_only:
        notes.append(NORMALS_ONLY)
    if rejected:
        notes.append(f"{rejected} test images could not be used.")
    if unlike := metrics.get("n_unlike_a_chest", 0):
        notes.append(f"{unlike} test images are unlike a chest radiograph: predict refuses them, but they count here.")
    return write_report(
        path,
        title="WSCXR evaluation",
        cases=cases,
        metrics=metrics,
        settings={
            **model.settings,
            "model_sha256": model.sha256,
            "false_positive_rate": calibration.supported_rate,
            "wanted_false_positive_rate": calibration.false_positive_rate,
        },
        scale=model.colour_scale,
        threshold=calibration.threshold,
        max_cases=max_cases,
        notes=notes,
    )


def write_pictures(
    folder: Path, number: int, model: TrainedModel, prediction: Prediction, radiograph: NDArray[np.float32]
) -> None:
    """Write the anomaly map of an image (32-bit TIFF, `maps/`) and its overlay (PNG, `overlays/`).

    Args:
        folder: folder of the results; both subfolders exist.
        number: number of the image, its file name; so names reveal nothing about a patient.
        model: the trained model.
        prediction: prediction of the image.
        radiograph: float32 [S, S] in [0, 1], the preprocessed image.
    """
    anomaly_map = to_map(model, prediction)
    write_bytes_atomic(folder / "maps" / f"{number:06d}.tiff", encode_map(anomaly_map, "tiff"))
    picture = encode_png(overlay(radiograph, anomaly_map, model.colour_scale), quick=True)
    write_bytes_atomic(folder / "overlays" / f"{number:06d}.png", picture)


def _with_pictures(case: Case, model: TrainedModel, item: Item, prediction: Prediction) -> Case:
    """Add radiograph, anomaly map and, if there is one, lesion mask to a case."""
    loaded: Any = RadiographLoader(model.preprocessing, keep_radiograph=True)({"image": item["file"]})
    return dataclasses.replace(
        case,
        image=np.clip(loaded["radiograph"][0], 0, 1),
        anomaly_map=to_map(model, prediction),
        mask=_load_mask(item, model.preprocessing.image_size) if item.get("mask") else None,
    )


def _load_mask(item: Item, size: int) -> NDArray[np.bool_]:
    """Load the lesion mask of an item, bool [size, size]."""
    return resize_mask(read_mask(item["mask"]), size)
