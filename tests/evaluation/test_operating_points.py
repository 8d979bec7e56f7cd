"""Operating points, figures by finding and by group: against naive counting, and intervals that know patients."""

import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from monai_wscxr.evaluation.operating_points import FEWEST_PATIENTS, _Judged, cut_at, operating_figures
from monai_wscxr.evaluation.resampling import resample_patients
from monai_wscxr.experiments.protocol.metrics import sensitivity_at


def judged(normal=60, abnormal=40, apart=1.5, seed=0, ties=False, images_each=1):
    """Items and scores; the abnormal ones score higher by `apart` on average."""
    random = np.random.default_rng(seed)
    patients = normal + abnormal
    base = random.normal(size=patients) + apart * (np.arange(patients) >= normal)
    scores = np.repeat(base, images_each)
    items = [
        {"image": f"{n}.png", "file": f"{n}.png", "label": int(p >= normal), "patient": f"p{p}"}
        for n, p in enumerate(np.repeat(np.arange(patients), images_each))
    ]
    items = [{**item, "class": "abnormal" if item["label"] else "normal"} for item in items]
    return items, (scores.round(0) if ties else scores).tolist()


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("normal", [7, 20, 61])
def test_sensitivity_at_a_specificity_is_read_off_the_roc(normal, ties):
    items, scores = judged(normal, 25, ties=ties)
    labels = np.array([item["label"] for item in items])
    points = operating_figures(items, scores, 1.0, resamples=10)["operating_points"]
    for wanted, key in ((0.9, "at_90"), (0.95, "at_95")):
        assert points[key]["sensitivity"]["value"] == pytest.approx(sensitivity_at(labels, np.array(scores), wanted))
        assert points[key]["specificity"] >= wanted - 1e-12
    assert points["own"]["sensitivity"]["value"] == np.mean(np.array(scores)[labels == 1] > 1.0)
    assert points["auroc"]["value"] == pytest.approx(roc_auc_score(labels, scores))


@pytest.mark.parametrize("ties", [False, True])
def test_every_resample_is_that_of_the_repeated_images(ties):
    items, scores = judged(23, 17, ties=ties, images_each=2)
    several = _Judged(items, scores, 1.0)
    half = np.arange(len(items)) % 2 == 0
    selections = [(~several.abnormal, several.abnormal), (~several.abnormal & half, several.abnormal & half)]
    found = several.resampled(selections, 5, seed=3)
    values = np.array(scores)
    for r, counts in enumerate(
        np.concatenate(list(resample_patients(several.abnormal, several.patients, 5, 3))).astype(int)
    ):
        for (normal, abnormal), rows in zip(selections, found, strict=True):
            healthy, ill = (np.repeat(values[mask], counts[mask]) for mask in (normal, abnormal))
            labels = np.repeat([0, 1], [len(healthy), len(ill)])
            everyone = np.repeat(values[~several.abnormal], counts[~several.abnormal])
            expected = [
                roc_auc_score(labels, np.concatenate([healthy, ill])),
                *((ill > cut_at(everyone, wanted)).mean() for wanted in (0.9, 0.95)),
            ]
            np.testing.assert_allclose(rows[r], expected)


def test_patients_are_resampled_and_not_images():
    one, four = (
        operating_figures(*judged(60, 40, images_each=each), 1.0, resamples=300)["operating_points"] for each in (1, 4)
    )
    assert four["patients"] == one["patients"] == 100
    for key in ("at_90", "at_95", "own"):
        widths = [part[key]["sensitivity"]["high"] - part[key]["sensitivity"]["low"] for part in (one, four)]
        assert widths[1] == pytest.approx(widths[0], rel=0.15)  # four equal images of a patient say no more than one


def test_intervals_cover_the_true_sensitivity():
    true = 0.4424  # of a normal distribution moved by 1.5, above the 95 % quantile of the other one
    covered = 0
    for seed in range(60):
        figure = operating_figures(*judged(60, 40, seed=seed), 9.0, resamples=200)["operating_points"]["at_95"]
        covered += figure["sensitivity"]["low"] <= true <= figure["sensitivity"]["high"]
    assert covered >= 54


@pytest.mark.parametrize(("patients", "few"), [(29, (True, True)), (30, (False, True)), (60, (False, False))])
def test_thresholds_that_rest_on_few_are_marked(patients, few):
    points = operating_figures(*judged(patients, 5), 1.0, resamples=5)["operating_points"]
    assert (points["at_90"]["few_normal"], points["at_95"]["few_normal"]) == few
    sensitivity = points["at_95"]["sensitivity"]
    assert sensitivity["low"] <= sensitivity["value"] <= sensitivity["high"]


def test_a_perfect_separation_has_an_interval():
    found = operating_figures(*judged(20, 12, apart=50), 10.0, resamples=50)["operating_points"]
    for figure in (found["auroc"], found["at_95"]["sensitivity"], found["own"]["sensitivity"]):
        assert figure["value"] == figure["high"] == 1.0
        assert 0.6 < figure["low"] < 0.97


def test_findings_of_an_image_count_each():
    items, scores = judged(30, 12)
    ill = [item for item in items if item["label"]]
    for n, item in enumerate(ill):
        item["findings"] = ["Mass", "Effusion"] if n < 4 else ["Effusion"] if n < 10 else []
    ill[10]["class"] = "Nodule"
    found = operating_figures(items, scores, 0.5, resamples=20)["findings"]
    assert {name: row["abnormal"] for name, row in found.items()} == {
        "Effusion": 10,
        "Mass": 4,
        "Nodule": 1,
        "unknown": 1,
    }
    assert list(found)[-1] == "unknown"
    assert {name for name, row in found.items() if row["few_abnormal"]} == {"Mass", "Nodule", "unknown"}
    values = dict(zip([item["file"] for item in items], scores, strict=True))
    healthy = [values[item["file"]] for item in items if not item["label"]]
    mass = [values[item["file"]] for item in ill[:4]]
    assert found["Mass"]["auroc"]["value"] == pytest.approx(roc_auc_score([0] * 30 + [1] * 4, [*healthy, *mass]))
    assert found["Mass"]["sensitivity"]["value"] == np.mean(np.array(mass) > 0.5)
    assert found["Mass"]["sensitivity_90"]["value"] == np.mean(np.array(mass) > cut_at(np.array(healthy), 0.9))


def test_without_named_findings_there_is_no_table():
    found = operating_figures(*judged(), 0.5, resamples=5)
    assert found["findings"] == found["groups"] == {}


def test_groups_by_sex_age_view_site_and_device():
    items, scores = judged(40, 40)
    for n, item in enumerate(items):
        item.update(sex="F" if n % 2 else "M", age=str(n), site=f"site {n % 3}", device="X")
        if n % 8 == 0:
            item["view"] = "pa"
    del items[0]["sex"]
    groups = operating_figures(items, scores, 0.8, resamples=20)["groups"]
    assert set(groups) == {"sex", "age", "view", "site"}  # all devices are alike
    assert list(groups["age"]) == ["0-17", "18-39", "40-64", "65+"]
    assert {name: (row["normal"], row["abnormal"]) for name, row in groups["sex"].items()} == {
        "female": (20, 20),
        "male": (19, 20),
        "unknown": (1, 0),
    }
    assert list(groups["view"]) == ["PA", "unknown"]
    healthy = np.array(
        [s for s, item in zip(scores, items, strict=True) if item.get("sex") == "F" and not item["label"]]
    )
    female = groups["sex"]["female"]
    assert female["false_positive_rate"]["value"] == (healthy > 0.8).mean()
    assert female["false_positive_rate"]["low"] < (healthy > 0.8).mean() < female["false_positive_rate"]["high"]
    assert not female["few_normal"]
    unknown = groups["sex"]["unknown"]
    assert unknown["few_normal"]
    assert unknown["sensitivity"] is None
    assert unknown["auroc"] is None
    json.dumps(groups, allow_nan=False)


def test_many_groups_are_joined():
    items, scores = judged(60, 60)
    for n, item in enumerate(items):
        item["site"] = "large" if n % 2 else f"private practice {n}"
    sites = operating_figures(items, scores, 0.8, resamples=5)["groups"]["site"]
    assert len(sites) == 21
    assert next(iter(sites)) == "large"
    assert sites["others"]["normal"] + sites["others"]["abnormal"] == 60 - 19
    assert FEWEST_PATIENTS == 10
    assert sum(row["normal"] + row["abnormal"] for row in sites.values()) == 120
