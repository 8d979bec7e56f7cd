"""Metrics against pair counting and exhaustive search."""

import json
import math

import numpy as np
import pytest

from monai_wscxr.errors import InputError
from monai_wscxr.evaluation.metrics import (
    at_threshold,
    auroc,
    honest_metrics,
    paper_metrics,
    pixel_auroc,
    youden_threshold,
)


def naive_auroc(labels, scores):
    """Compute the share of (abnormal, normal) pairs in the right order; ties count one half."""
    pairs = [
        (a, n)
        for a, ya in zip(scores, labels, strict=True)
        if ya
        for n, yn in zip(scores, labels, strict=True)
        if not yn
    ]
    return sum(1.0 if a > n else 0.5 if a == n else 0.0 for a, n in pairs) / len(pairs)


def naive_figures(labels, flagged):
    pairs = list(zip(labels, flagged, strict=True))
    tp, fn = pairs.count((1, True)), pairs.count((1, False))
    tn, fp = pairs.count((0, False)), pairs.count((0, True))
    return {
        "accuracy": (tp + tn) / len(pairs),
        "f1": 2 * tp / (2 * tp + fp + fn),
        "sensitivity": tp / (tp + fn),
        "specificity": tn / (tn + fp),
    }


def samples():
    rng = np.random.default_rng(0)
    labels = [0, 1, *rng.integers(0, 2, 38).tolist()]
    normal = rng.normal(size=40) + np.array(labels)
    return {
        "random": (labels, normal.tolist()),
        "tied": (labels, rng.integers(0, 4, 40).astype(float).tolist()),
        "constant": (labels, [0.3] * 40),
        "huge": (labels, (1e300 * normal).tolist()),
        "tiny": (labels, (1e-300 * normal).tolist()),
        "upside down": (labels, (-normal).tolist()),
        "one abnormal": ([1] + [0] * 9, rng.normal(size=10).tolist()),
        "perfect": ([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4]),
        "two": ([1, 0], [0.0, 1.0]),
    }


@pytest.mark.parametrize("name", samples())
def test_auroc_counts_pairs(name):
    labels, scores = samples()[name]
    assert auroc(labels, scores) == pytest.approx(naive_auroc(labels, scores), abs=1e-12)
    assert auroc(np.array(labels, dtype=bool), np.array(scores)) == auroc(labels, scores)


@pytest.mark.parametrize("name", samples())
def test_youden_threshold_is_the_best_of_all(name):
    labels, scores = samples()[name]

    def youden(threshold):
        figures = naive_figures(labels, [s >= threshold for s in scores])
        return figures["sensitivity"] + figures["specificity"] - 1

    threshold = youden_threshold(labels, scores)
    assert math.isfinite(threshold)
    assert youden(threshold) == pytest.approx(max(0.0, *map(youden, scores)), abs=1e-12)


def test_youden_threshold_where_flagging_nothing_is_best():
    assert youden_threshold([1, 0], [0.0, 1.0]) > 1.0
    assert paper_metrics([1, 1, 0], [[0.0, 0.0, 1.0]])["specificity"] == 1.0
    json.dumps(paper_metrics([1, 0], [[0.0, 1.0]]), allow_nan=False)


@pytest.mark.parametrize("name", samples())
def test_decisions_are_counted(name):
    labels, scores = samples()[name]
    threshold = sorted(scores)[len(scores) // 2]
    flagged = [s > threshold for s in scores]
    expected = naive_figures(labels, flagged)
    assert at_threshold(labels, flagged) == pytest.approx(expected)
    honest = honest_metrics(labels, scores, threshold)
    assert honest == pytest.approx({**expected, "auroc": naive_auroc(labels, scores), "threshold": threshold})


def test_honest_metrics_flag_above_the_threshold_only():
    assert honest_metrics([0, 1, 1], [1.0, 1.0, 2.0], 1.0)["sensitivity"] == 0.5
    assert honest_metrics([0, 1, 1], [1.0, 1.0, 2.0], 1.0)["specificity"] == 1.0


def test_paper_metrics_take_the_epoch_with_the_best_mean_of_three():
    rng = np.random.default_rng(1)
    labels = [0, 1] * 15
    epochs = [
        (rng.normal(size=30) + separation * np.array(labels)).tolist() for separation in (0.2, 1.5, 3.0, 0.5, 1.0)
    ]
    result = paper_metrics(labels, epochs)
    sums = []
    for scores in epochs:
        threshold = youden_threshold(labels, scores)
        figures = naive_figures(labels, [s >= threshold for s in scores])
        sums.append(naive_auroc(labels, scores) + figures["accuracy"] + figures["f1"])
    best = sums.index(max(sums))
    assert result["epoch"] == best + 1 == 3
    assert result["auroc"] == pytest.approx(naive_auroc(labels, epochs[best]))
    assert result["auroc"] + result["accuracy"] + result["f1"] == pytest.approx(max(sums))
    assert result["threshold"] in epochs[best]


def test_paper_metrics_choose_by_the_mean_and_not_by_auroc_alone():
    labels = [0, 0, 0, 0, 1, 1, 1, 1]
    best_auroc = [0.0, 0.1, 0.5, 0.6, 0.45, 0.55, 0.9, 1.0]
    best_mean = [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, -1.0]
    assert naive_auroc(labels, best_auroc) > naive_auroc(labels, best_mean)
    assert paper_metrics(labels, [best_auroc, best_mean])["epoch"] == 2
    assert paper_metrics(labels, [best_auroc, best_auroc])["epoch"] == 1  # ties: the first


@pytest.mark.parametrize(
    "figure", [auroc, youden_threshold, lambda y, s: honest_metrics(y, s, 0.5), lambda y, s: paper_metrics(y, [s])]
)
def test_what_gives_no_figure_is_refused(figure):
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(InputError, match="1 of 3 scores are NaN or infinite"):
            figure([0, 1, 1], [0.1, bad, 0.3])
    for labels, counts in (([0, 0], "2 and 0"), ([1, 1], "0 and 2"), ([], "0 and 0")):
        with pytest.raises(InputError, match=f"needs normal and abnormal images; got {counts}"):
            figure(labels, [0.5] * len(labels))
    for labels in ([0, 2], [-1, 1], [0, 0.5], [math.nan, 1]):
        with pytest.raises(InputError, match="labels must be 0"):
            figure(labels, [0.5, 0.6])
    with pytest.raises(InputError, match="3 labels but 2 scores"):
        figure([0, 1, 1], [0.1, 0.2])


def test_no_epoch_is_refused():
    with pytest.raises(InputError, match="no epoch"):
        paper_metrics([0, 1], [])


def test_pixel_auroc_pools_all_pixels_of_all_images():
    rng = np.random.default_rng(2)
    masks = [rng.random((4, 5)) < 0.3, np.zeros((3, 3), bool), rng.random((6, 2)) < 0.5]
    maps = [rng.integers(0, 5, mask.shape).astype(np.float32) for mask in masks]
    labels = [int(v) for mask in masks for v in mask.ravel()]
    scores = [float(v) for m in maps for v in m.ravel()]
    assert pixel_auroc(masks, maps) == pytest.approx(naive_auroc(labels, scores))
    assert pixel_auroc(masks, [mask.astype(np.float32) for mask in masks]) == 1.0


def test_pixel_auroc_refuses_nan_missing_lesions_and_other_sizes():
    mask, values = np.eye(3, dtype=bool), np.ones((3, 3), np.float32)
    with pytest.raises(InputError, match="needs normal and abnormal"):
        pixel_auroc([~np.ones((3, 3), bool)], [values])
    with pytest.raises(InputError, match="9 labels but 4 scores"):
        pixel_auroc([mask], [np.ones((2, 2), np.float32)])
    values[1, 1] = np.nan
    with pytest.raises(InputError, match="1 of 9 scores are NaN"):
        pixel_auroc([mask], [values])
