"""Metrics of a cell, and their spread over seeds and resamples, against naive versions."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from monai_wscxr.experiments.protocol.metrics import (
    Bootstrap,
    cell_metrics,
    interval,
    random_splits,
    sensitivity_at,
    summarise,
)

RANDOM = np.random.default_rng(3)
LABELS = [0] * 40 + [1] * 60
SCORES = np.concatenate([RANDOM.normal(0, 1, 40), RANDOM.normal(1, 1, 60)]).round(1).tolist()  # with ties
HELD_OUT = RANDOM.normal(0, 1, 99).tolist()


def test_thresholds_come_from_the_held_out_normals():
    metrics = cell_metrics(LABELS, [SCORES], HELD_OUT, 1.5)
    honest, y, s = metrics["honest"], np.array(LABELS), np.array(SCORES)
    ascending = sorted(HELD_OUT)
    # 99 held-out normals: nine may score higher than the threshold for 90 % (10 % of 100, less the image itself)
    assert honest["threshold_90"] == ascending[-10]
    assert honest["threshold_95"] == ascending[-5]
    assert honest["sensitivity_90"] == pytest.approx((s[y == 1] > ascending[-10]).mean())
    assert honest["specificity_95"] == pytest.approx((s[y == 0] <= ascending[-5]).mean())
    assert honest["accuracy"] == pytest.approx(accuracy_score(y, s > 1.5))


def test_the_published_rules_choose_the_best_state_on_the_test_images():
    perfect, useless = [float(label) for label in LABELS], [0.0] * 100
    metrics = cell_metrics(LABELS, [useless, perfect, SCORES, SCORES], HELD_OUT, 1.5)
    assert metrics["paper"]["auroc"] == 1.0
    assert metrics["paper"]["epoch"] == 2
    assert metrics["paper"]["sensitivity_95"] == 1.0
    assert metrics["honest"]["auroc"] == pytest.approx(roc_auc_score(LABELS, SCORES))


@pytest.mark.parametrize("specificity", [0.9, 0.95, 1.0])
def test_sensitivity_at_a_specificity_by_trying_every_threshold(specificity):
    y, s = np.array(LABELS), np.array(SCORES)
    best = max(
        ((s[y == 1] >= t).mean() for t in [*s, np.inf] if (s[y == 0] < t).mean() >= specificity - 1e-12), default=0
    )
    assert sensitivity_at(y, s, specificity) == pytest.approx(best)


PATIENTS = np.concatenate([np.arange(40) // 2, 20 + np.arange(60) // 3])  # two and three images each


def test_resampled_metrics_are_those_of_the_images_of_the_resampled_patients():
    bootstrap = Bootstrap(LABELS, PATIENTS, resamples=5, seed=1)
    found = bootstrap.metrics(SCORES, 0.8, {"sensitivity_90": 1.1})
    s = np.array(SCORES)
    for n in range(5):
        normal = np.repeat(s[:40], bootstrap.normal[n].astype(int))
        abnormal = np.repeat(s[40:], bootstrap.abnormal[n].astype(int))
        assert (len(normal), len(abnormal)) == (40, 60)  # as many patients of either kind, here of equal size
        assert (bootstrap.normal[n][::2] == bootstrap.normal[n][1::2]).all()  # a patient's images stay together
        y, both = [0] * 40 + [1] * 60, np.concatenate([normal, abnormal])
        assert found["auroc"][n] == pytest.approx(roc_auc_score(y, both))
        assert found["accuracy"][n] == pytest.approx(accuracy_score(y, both > 0.8))
        assert found["f1"][n] == pytest.approx(f1_score(y, both > 0.8))
        assert found["sensitivity_90"][n] == pytest.approx((abnormal > 1.1).mean())


def test_resamples_are_the_same_for_every_cell():
    assert np.array_equal(Bootstrap(LABELS, PATIENTS).normal, Bootstrap(LABELS, PATIENTS).normal)


def test_repeated_images_of_a_patient_do_not_narrow_an_interval():
    spreads = []
    for copies in (1, 4):
        labels, scores = np.repeat(LABELS, copies).tolist(), np.repeat(SCORES, copies).tolist()
        bootstrap = Bootstrap(labels, np.repeat(np.arange(len(LABELS)), copies))
        spreads.append(bootstrap.metrics(scores, 0.8, {})["auroc"].std())
    assert spreads[1] == pytest.approx(spreads[0])


def test_summary_over_seeds():
    cells = []
    for shift in (0.0, 0.4):
        scores = (np.array(SCORES) + shift * np.array(LABELS)).tolist()
        cells.append({**cell_metrics(LABELS, [scores], HELD_OUT, 1.5), "scores": scores})
    summary = summarise(cells, Bootstrap(LABELS, PATIENTS))
    values = [cell["honest"]["auroc"] for cell in cells]
    auroc = summary["honest"]["auroc"]
    assert auroc["mean"] == pytest.approx(np.mean(values))
    assert auroc["sd"] == pytest.approx(abs(values[0] - values[1]) / np.sqrt(2))
    assert auroc["low"] < auroc["mean"] < auroc["high"]
    assert 0.03 < auroc["high"] - auroc["low"] < 0.3
    assert summarise(cells[:1], Bootstrap(LABELS, PATIENTS))["honest"]["auroc"]["sd"] == 0


def test_random_splits_keep_the_rate_where_images_are_alike_and_show_where_not():
    rates = [random_splits(RANDOM.normal(0, 1, 171).tolist(), RANDOM.normal(0, 1, 200), 0.05, 50, n) for n in range(40)]
    mean = np.mean([r["mean"] for r in rates])
    assert 0.04 < mean < 0.055  # conformal: at most 5 % on average, and close to it
    assert 0.01 < rates[0]["sd"] < 0.04
    again = random_splits(HELD_OUT, np.array(SCORES[:40]), 0.05)
    assert again == random_splits(HELD_OUT, np.array(SCORES[:40]), 0.05)
    assert random_splits([0.0] * 30, np.ones(10), 0.5, 100)["mean"] < 0.3  # a tie is no false positive


def test_interval():
    assert interval(np.arange(1001.0)) == pytest.approx((25.0, 975.0))
