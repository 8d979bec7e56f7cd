"""Metrics of one cell, and their spread over seeds and over test images."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from monai_wscxr.evaluation.epochs import candidate_epochs
from monai_wscxr.evaluation.metrics import at_threshold, auroc, honest_metrics, paper_metrics
from monai_wscxr.evaluation.resampling import resample_patients
from monai_wscxr.model.calibration import calibrate

SPECIFICITIES = (0.90, 0.95)
HONEST = ("auroc", "accuracy", "f1", "sensitivity", "specificity", "sensitivity_90", "sensitivity_95")
BY_FINDING = ("auroc", "sensitivity", "sensitivity_90", "sensitivity_95")
PAPER = ("auroc", "accuracy", "f1", "sensitivity_90", "sensitivity_95")


def cell_metrics(
    labels: Sequence[int],
    epochs: Sequence[Sequence[float]],
    held_out: Sequence[float],
    threshold: float,
    false_positive_rate: float = 0.05,
) -> dict[str, dict[str, Any]]:
    """Compute the metrics of a cell by honest and by published rules.

    Honest: the trained model at its own threshold. Sensitivity at 90 and 95 % specificity uses thresholds that 10 and 5 % of
    the held-out normals exceed; the specificity reached on the test images is given beside it. Published: best epoch and
    Youden threshold, both chosen on the test images; sensitivities are read off the ROC of the test images.

    Args:
        labels: labels of the test images, 0 or 1.
        epochs: scores of the test images for each epoch, and last for the trained model.
        held_out: scores of the held-out normals.
        threshold: operating point of the method.
        false_positive_rate: target false-positive rate of the operating point.

    Returns:
        Metrics by name under "honest" and "paper", and the result of `random_splits` under "false_positives".
    """
    y, last = np.asarray(labels), np.asarray(epochs[-1], dtype=np.float64)
    honest: dict[str, Any] = honest_metrics(y, last, threshold)
    candidates = [np.asarray(scores) for scores in candidate_epochs(epochs)]
    paper = paper_metrics(y, candidates)
    chosen = candidates[paper["epoch"] - 1]
    for wanted in SPECIFICITIES:
        name = f"{wanted * 100:.0f}"
        with warnings.catch_warnings():  # training has warned already; results.csv holds the specificity reached
            warnings.simplefilter("ignore", UserWarning)
            cut = calibrate(held_out, (), 1 - wanted).threshold
        reached = at_threshold(y, last > cut)
        honest[f"threshold_{name}"] = cut
        honest[f"sensitivity_{name}"] = reached["sensitivity"]
        honest[f"specificity_{name}"] = reached["specificity"]
        paper[f"sensitivity_{name}"] = sensitivity_at(y, chosen, wanted)
    found = random_splits(held_out, last[y == 0], false_positive_rate)
    return {"honest": honest, "paper": paper, "false_positives": found}


def random_splits(
    held_out: Sequence[float], others: NDArray, rate: float, splits: int = 200, seed: int = 0
) -> dict[str, float]:
    """Estimate the false-positive rate over random splits of normal images into calibration and test images.

    One split of a few hundred images tells little about a rate of 5 %; the mean over many splits shows whether the operating
    point keeps its rate.

    Args:
        held_out: scores of the held-out normals; each split calibrates on as many images.
        others: scores of further normal images that were not trained on.
        rate: target false-positive rate.
        splits: number of random splits.
        seed: seed of the splits.

    Returns:
        {"wanted", "supported", "mean", "sd", "splits"}, where "supported" is the rate that the held-out normals support.
    """
    pooled = np.concatenate([np.asarray(held_out, dtype=np.float64), others])
    random = np.random.default_rng(seed)
    found = []
    for _ in range(splits):
        mixed = random.permutation(pooled)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            cut = calibrate(mixed[: len(held_out)].tolist(), (), rate).threshold
        found.append(float((mixed[len(held_out) :] > cut).mean()))
    supported = max(rate, 1 / (len(held_out) + 1))
    return {
        "wanted": rate,
        "supported": supported,
        "mean": float(np.mean(found)),
        "sd": float(np.std(found)),
        "splits": splits,
    }


def sensitivity_at(labels: NDArray, scores: NDArray, specificity: float) -> float:
    """Return the highest sensitivity on the ROC of these images at a specificity of at least the given one."""
    false_positive, true_positive, _ = roc_curve(labels, scores, drop_intermediate=False)
    return float(true_positive[false_positive <= 1 - specificity + 1e-12].max())


def finding_metrics(
    labels: Sequence[int], findings: Sequence[Sequence[str]], cells: Sequence[dict[str, Any]]
) -> dict[str, dict[str, float]]:
    """Compute figures by finding, each against all normal test images; an image with several findings counts for each.

    Args:
        labels: labels of the test images, 0 or 1.
        findings: findings of each test image, none of a normal one.
        cells: results of the same method and k with different seeds.

    Returns:
        By finding, the most frequent first: "images", and the means over the cells of "auroc" and of the sensitivity at the
        operating point and at the thresholds of `cell_metrics`: "sensitivity", "sensitivity_90" and "sensitivity_95".
    """
    normal = np.asarray(labels) == 0
    counts = Counter(name for several in findings for name in several)
    found = {}
    for name, images in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])):
        ill = np.array([name in several for several in findings])
        figures = []
        for cell in cells:
            scores, honest = np.asarray(cell["scores"], dtype=np.float64), cell["honest"]
            cuts = [honest["threshold"], honest["threshold_90"], honest["threshold_95"]]
            area = auroc(ill[normal | ill], scores[normal | ill])
            figures.append([area, *((scores[ill] > cut).mean() for cut in cuts)])
        means = np.mean(figures, axis=0).tolist()
        found[name] = {"images": images, **dict(zip(BY_FINDING, means, strict=True))}
    return found


class Bootstrap:
    """Resamples of the patients of the test images, the same for all cells.

    Args:
        labels: labels of the test images.
        patients: number of the patient of each, see `number_patients`.
        resamples: number of resamples.
        seed: seed of the resamples.

    Attributes:
        normal: [resamples, n] float64, how often each normal image occurs in each resample.
        abnormal: the same of the abnormal images.
    """

    def __init__(
        self, labels: Sequence[int], patients: NDArray[np.int64], resamples: int = 1000, seed: int = 0
    ) -> None:
        self.labels = np.asarray(labels).astype(bool)
        counts = np.concatenate(list(resample_patients(self.labels, patients, resamples, seed)))
        self.normal, self.abnormal = counts[:, ~self.labels], counts[:, self.labels]

    def metrics(
        self, scores: Sequence[float], threshold: float, cuts: Mapping[str, float]
    ) -> dict[str, NDArray[np.float64]]:
        """Compute the metrics of `HONEST` on every resample, [resamples] each.

        Args:
            scores: scores of the test images.
            threshold: operating point.
            cuts: thresholds of the metrics `sensitivity_90` and `sensitivity_95`.
        """
        s = np.asarray(scores, dtype=np.float64)
        normal, abnormal = s[~self.labels], s[self.labels]
        above = (abnormal[:, None] > normal) + 0.5 * (abnormal[:, None] == normal)
        negatives, positives = self.normal.sum(axis=1), self.abnormal.sum(axis=1)
        true_positive, true_negative = self.abnormal @ (abnormal > threshold), self.normal @ (normal <= threshold)
        found = {
            "auroc": ((self.abnormal @ above) * self.normal).sum(axis=1) / (positives * negatives),
            "accuracy": (true_positive + true_negative) / (positives + negatives),
            "f1": 2 * true_positive / np.maximum(true_positive + negatives - true_negative + positives, 1e-12),
            "sensitivity": true_positive / positives,
            "specificity": true_negative / negatives,
        }
        return {**found, **{name: self.abnormal @ (abnormal > cut) / positives for name, cut in cuts.items()}}


def interval(values: NDArray, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of a resampled metric."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def summarise(cells: Sequence[dict[str, Any]], bootstrap: Bootstrap) -> dict[str, Any]:
    """Summarise the cells of one method and k: mean and standard deviation over seeds, interval over resamples.

    Args:
        cells: results of the same method and k with different seeds.
        bootstrap: resamples of the test images.

    Returns:
        {"seeds", "honest": {metric: {"mean", "sd", "low", "high"}}, "paper": {metric: mean},
        "resampled": {metric: [resamples]}}.
    """
    resampled: dict[str, list[NDArray[np.float64]]] = {name: [] for name in HONEST}
    for cell in cells:
        cuts = {f"sensitivity_{n}": cell["honest"][f"threshold_{n}"] for n in ("90", "95")}
        for name, values in bootstrap.metrics(cell["scores"], cell["honest"]["threshold"], cuts).items():
            resampled[name].append(values)
    mean_resampled = {name: np.mean(values, axis=0) for name, values in resampled.items()}
    honest = {}
    for name in HONEST:
        seeds = [cell["honest"][name] for cell in cells]
        low, high = interval(mean_resampled[name])
        sd = float(np.std(seeds, ddof=1)) if len(seeds) > 1 else 0.0
        honest[name] = {"mean": float(np.mean(seeds)), "sd": sd, "low": low, "high": high}
    paper = {name: float(np.mean([cell["paper"][name] for cell in cells])) for name in PAPER}
    return {"seeds": len(cells), "honest": honest, "paper": paper, "resampled": mean_resampled}
