"""Image-level and pixel-level metrics, by honest and by published rules.

Honest: nothing is chosen on the test images. Published: best epoch and threshold are chosen on the test images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score, roc_curve

from monai_wscxr.errors import InputError


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return labels and scores as flat arrays [n]; InputError unless they fit and both classes occur."""
    y, s = np.asarray(labels).ravel(), np.asarray(scores, dtype=np.float64).ravel()
    if y.shape != s.shape:
        raise InputError(f"there are {y.size} labels but {s.size} scores")
    if not np.isfinite(s).all():
        raise InputError(
            f"{int((~np.isfinite(s)).sum())} of {s.size} scores are NaN or infinite; a metric computed from them would be "
            "meaningless (some libraries report a perfect 1.0)"
        )
    if not np.isin(y, (0, 1)).all():
        raise InputError("labels must be 0 (normal) or 1 (abnormal)")
    y = y.astype(np.int64)
    if y.size == 0 or y.min() == y.max():
        raise InputError(
            f"an ROC needs normal and abnormal images; got {int((y == 0).sum())} and {int((y == 1).sum())}"
        )
    return y, s


def auroc(labels: ArrayLike, scores: ArrayLike, counts: ArrayLike | None = None) -> float:
    """Compute the area under the ROC curve; ties count one half.

    Args:
        labels: [n], 0 (normal) or 1 (abnormal); both must occur.
        scores: [n], finite; higher is more abnormal.
        counts: [n], >= 0, how often each of them occurs; None for once.

    Raises:
        InputError: on NaN or Inf scores, labels other than 0 and 1, or a single class.
    """
    y, s = _checked(labels, scores)
    return float(roc_auc_score(y, s, sample_weight=None if counts is None else np.asarray(counts, np.float64).ravel()))


def youden_threshold(labels: ArrayLike, scores: ArrayLike) -> float:
    """Find the threshold (flag when score >= threshold) that maximises sensitivity + specificity - 1.

    If no threshold is better than flagging no image, the result is the smallest number above all scores.
    """
    y, s = _checked(labels, scores)
    false_positive, true_positive, thresholds = roc_curve(y, s)
    best = float(thresholds[int(np.argmax(true_positive - false_positive))])
    return best if np.isfinite(best) else float(np.nextafter(s.max(), np.inf))


def at_threshold(labels: ArrayLike, flagged: ArrayLike) -> dict[str, float]:
    """Compute accuracy, F1, sensitivity and specificity of decisions.

    Args:
        labels: [n], 0 (normal) or 1 (abnormal).
        flagged: [n], decisions, True for flagged images.
    """
    y, decision = np.asarray(labels).astype(bool), np.asarray(flagged).astype(bool)
    return {
        "accuracy": float(accuracy_score(y, decision)),
        "f1": float(f1_score(y, decision)),
        "sensitivity": float(decision[y].mean()),
        "specificity": float((~decision[~y]).mean()),
    }


def honest_metrics(labels: ArrayLike, scores: ArrayLike, threshold: float) -> dict[str, float]:
    """Compute AUROC, and the metrics of decisions at a threshold that was fixed in advance (flag when score > threshold).

    Example:
        >>> found = honest_metrics([0, 0, 1, 1], [0.1, 0.6, 0.5, 0.9], threshold=0.55)
        >>> found["auroc"], found["sensitivity"], found["specificity"]
        (0.75, 0.5, 0.5)
    """
    y, s = _checked(labels, scores)
    return {"auroc": auroc(y, s), **at_threshold(y, s > threshold), "threshold": float(threshold)}


def paper_metrics(labels: ArrayLike, epoch_scores: Sequence[ArrayLike]) -> dict[str, Any]:
    """Compute the metrics by the publication's rules: best epoch and Youden threshold, both chosen on the test images.

    These metrics are optimistic. The best epoch has the highest mean of AUROC, accuracy and F1, as in the authors' code.

    Args:
        labels: labels of the test images.
        epoch_scores: scores of the test images for each epoch, at least one.

    Raises:
        InputError: without any epoch, and as `auroc`.
    """
    candidates = []
    for epoch, scores in enumerate(epoch_scores, start=1):
        y, s = _checked(labels, scores)
        threshold = youden_threshold(y, s)
        found = {"auroc": auroc(y, s), **at_threshold(y, s >= threshold), "threshold": threshold, "epoch": epoch}
        candidates.append(found)
    if not candidates:
        raise InputError("no epoch was given to choose from")
    return max(candidates, key=lambda found: found["auroc"] + found["accuracy"] + found["f1"])


def pixel_auroc(masks: Sequence[NDArray[np.bool_]], maps: Sequence[NDArray[np.floating]]) -> float:
    """Compute the AUROC over all pixels of all images.

    It is the share of pairs of a lesion pixel and another one in which the former is higher (Mann and Whitney, 1947), ties
    counting one half. Two sorted lists give it in less time than a curve through 50 million pixels.

    Args:
        masks: lesion pixels [H, W] per image; all False for normal images.
        maps: anomaly maps [H, W] per image.

    Raises:
        InputError: on NaN or Inf, sizes that differ, or without a lesion or a pixel outside lesions.
    """
    y = np.concatenate([np.asarray(m, dtype=bool).ravel() for m in masks])
    y, s = _checked(y, np.concatenate([np.asarray(m, dtype=np.float32).ravel() for m in maps]))
    lesions, others = np.sort(s[y == 1]), np.sort(s[y == 0])
    lower, not_higher = (np.searchsorted(others, lesions, side) for side in ("left", "right"))
    return (int(lower.sum()) + int(not_higher.sum())) / (2 * len(lesions) * len(others))
