"""Figures of one cell, and their spread over seeds and over test images."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from monai_wscxr.evaluation.metrics import at_threshold, honest_metrics, paper_metrics
from monai_wscxr.model.calibration import calibrate

SPECIFICITIES = (0.90, 0.95)
HONEST = ("auroc", "accuracy", "f1", "sensitivity", "specificity", "sensitivity_90", "sensitivity_95")
PAPER = ("auroc", "accuracy", "f1", "sensitivity_90", "sensitivity_95")


def cell_figures(
    labels: Sequence[int],
    epochs: Sequence[Sequence[float]],
    held_out: Sequence[float],
    threshold: float,
    false_positive_rate: float = 0.05,
) -> dict[str, dict[str, Any]]:
    """Honest and published figures side by side.

    Honest: the last state; the method's own threshold; sensitivity at 90 and 95 % specificity with thresholds that let
    10 and 5 % of the held-out normals pass, beside the specificity they really reach on the test images.
    Published: best state and Youden threshold on the test images; sensitivities read off the test ROC.

    Args:
        labels: of the test images, 0 or 1.
        epochs: their scores for each state, the trained model's last.
        held_out: scores of the held-out normals.
        threshold: the method's operating point.
        false_positive_rate: wanted there.
    """
    y, last = np.asarray(labels), np.asarray(epochs[-1], dtype=np.float64)
    honest: dict[str, Any] = honest_metrics(y, last, threshold)
    candidates = [np.asarray(scores) for scores in (epochs[:-1] if len(epochs) > 1 else epochs)]
    paper = paper_metrics(y, candidates)
    chosen = candidates[paper["epoch"] - 1]
    for wanted in SPECIFICITIES:
        name = f"{wanted * 100:.0f}"
        with warnings.catch_warnings():  # the operating point has been warned of; results.csv says what was reached
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
    """False-positive rate when normal images that trained nothing are split anew into calibrating and counted ones.

    One split of a few hundred images says little about a rate of 5 %; the mean over many says whether the rule keeps it.

    Args:
        held_out: scores of the held-out normals; as many calibrate in every split.
        others: scores of other normal images, of the test part.
        rate: wanted.
        splits: number of random splits.
        seed: of the splits.

    Returns:
        {"wanted", "mean", "sd", "splits"}.
    """
    everyone = np.concatenate([np.asarray(held_out, dtype=np.float64), others])
    random = np.random.default_rng(seed)
    found = []
    for _ in range(splits):
        mixed = random.permutation(everyone)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            cut = calibrate(mixed[: len(held_out)].tolist(), (), rate).threshold
        found.append(float((mixed[len(held_out) :] > cut).mean()))
    return {"wanted": rate, "mean": float(np.mean(found)), "sd": float(np.std(found)), "splits": splits}


def sensitivity_at(labels: NDArray, scores: NDArray, specificity: float) -> float:
    """Largest sensitivity on the ROC of these very images with at least this specificity."""
    false_positive, true_positive, _ = roc_curve(labels, scores, drop_intermediate=False)
    return float(true_positive[false_positive <= 1 - specificity + 1e-12].max())


class Bootstrap:
    """Resampled test images, normal and abnormal ones apart, the same draws for every cell.

    Args:
        labels: of the test images.
        draws: number of resamples.
        seed: of the draws.
    """

    def __init__(self, labels: Sequence[int], draws: int = 1000, seed: int = 0) -> None:
        self.labels = np.asarray(labels).astype(bool)
        random = np.random.default_rng(seed)
        sizes = (int((~self.labels).sum()), int(self.labels.sum()))
        self.normal, self.abnormal = (random.multinomial(n, [1 / n] * n, size=draws) / n for n in sizes)
        self.sizes = sizes

    def figures(self, scores: Sequence[float], threshold: float, cuts: dict[str, float]) -> dict[str, NDArray]:
        """Each figure of `HONEST` on every resample, [draws].

        Args:
            scores: of the test images.
            threshold: operating point.
            cuts: thresholds of the figures `sensitivity_90` and `sensitivity_95`.
        """
        s = np.asarray(scores, dtype=np.float64)
        quiet, ill = s[~self.labels], s[self.labels]
        above = (ill[:, None] > quiet) + 0.5 * (ill[:, None] == quiet)
        specificity = self.normal @ (quiet <= threshold)
        sensitivity = self.abnormal @ (ill > threshold)
        negatives, positives = self.sizes
        true_positive, false_positive = sensitivity * positives, (1 - specificity) * negatives
        found = {
            "auroc": ((self.abnormal @ above) * self.normal).sum(axis=1),
            "accuracy": (true_positive + specificity * negatives) / (positives + negatives),
            "f1": 2 * true_positive / np.maximum(true_positive + false_positive + positives, 1e-12),
            "sensitivity": sensitivity,
            "specificity": specificity,
        }
        return {**found, **{name: self.abnormal @ (ill > cut) for name, cut in cuts.items()}}


def interval(values: NDArray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of resampled figures."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def summarise(cells: Sequence[dict[str, Any]], bootstrap: Bootstrap) -> dict[str, Any]:
    """Mean over the seeds of one method and k, its spread, and an interval over resampled test images.

    Args:
        cells: results of the same method and k with different seeds.
        bootstrap: of the test images.

    Returns:
        {"seeds", "honest": {figure: {"mean", "sd", "low", "high"}}, "paper": {figure: mean}, "draws": {figure: [draws]}}.
    """
    draws: dict[str, list[NDArray]] = {name: [] for name in HONEST}
    for cell in cells:
        cuts = {f"sensitivity_{n}": cell["honest"][f"threshold_{n}"] for n in ("90", "95")}
        for name, values in bootstrap.figures(cell["scores"], cell["honest"]["threshold"], cuts).items():
            draws[name].append(values)
    mean_draws = {name: np.mean(values, axis=0) for name, values in draws.items()}
    honest = {}
    for name in HONEST:
        seeds = [cell["honest"][name] for cell in cells]
        low, high = interval(mean_draws[name])
        sd = float(np.std(seeds, ddof=1)) if len(seeds) > 1 else 0.0
        honest[name] = {"mean": float(np.mean(seeds)), "sd": sd, "low": low, "high": high}
    paper = {name: float(np.mean([cell["paper"][name] for cell in cells])) for name in PAPER}
    return {"seeds": len(cells), "honest": honest, "paper": paper, "draws": mean_draws}
