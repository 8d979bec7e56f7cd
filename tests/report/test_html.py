"""The report of an evaluation: complete, self-contained, escaped, and robust to missing parts."""

import base64
import io
import re
from dataclasses import replace
from html import escape
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from monai_wscxr.model.calibration import ColourScale
from monai_wscxr.report.case import Case
from monai_wscxr.report.html import DISCLAIMER, OPTIMISTIC, choose_cases, write_report

METRICS = {
    "honest": {"auroc": 0.8765, "accuracy": 0.8, "f1": 0.7, "threshold": 1.0, "sensitivity": 0.75},
    "paper": {"auroc": 0.9, "accuracy": 0.9, "f1": 0.85, "threshold": 1.2, "epoch": 14},
    "pixel": {
        "auroc": 0.9321,
        "aupro": 0.4567,
        "pointing_game": 0.25,
        "constant_map": {"auroc": 0.8123, "aupro": 0.4, "pointing_game": 0.125},
        "percentile": 0.7654,
        "mirrored_percentile": 0.7432,
        "gap": 0.0222,
        "findings": {
            "a <nodule>": {
                "images": 17,
                "pointing_game": 0.0588,
                "constant_map": {"pointing_game": 0.0},
                "percentile": 0.66,
                "mirrored_percentile": 0.65,
                "gap": 0.01,
            },
            "b": {"images": 3, "pointing_game": 0.333, "percentile": None},
        },
    },
    "n_normal": 6,
    "n_abnormal": 6,
    "seconds": {"mining": 75.0},
}
SETTINGS = {"backbone": "densenet121", "k": 8, "seed": 3, "classes": ["a", "b"], "<option>": "x & y"}
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Parser that checks that tags balance and ids are unique, and collects tags, ids and texts."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.tags, self.table, self.words = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []
        assert len(self.ids) == len(set(self.ids))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)
        if "tbody" in self.open and data.strip():
            self.table.append(data)

    def values(self, tag, name):
        return [attrs[name] for seen, attrs in self.tags if seen == tag and name in attrs]


def make_cases(labels, pictures=True, masks=True, decided=True):
    rng = np.random.default_rng(0)
    cases = []
    for i, label in enumerate(labels):
        score = float(i % 7) / 3
        mask = np.zeros((24, 32), dtype=bool)
        mask[5:9, 5:9] = True
        cases.append(
            Case(
                name=f"folder/image-{i:03d}.png",
                label=label,
                class_name={0: None, 1: f"finding {i % 2}", None: None}[label],
                anomaly_score=score,
                p_value=None if i % 3 else 0.0004,
                abnormal=score >= 1 if decided else None,
                image=rng.random((24, 32)) if pictures else None,
                anomaly_map=rng.random((24, 32)) if pictures else None,
                mask=mask if masks and label else None,
            )
        )
    return cases


def write(folder, cases, metrics=METRICS, settings=SETTINGS, **options):
    options = {"title": "Report", "scale": ColourScale(0.2, 2.0), "threshold": 1.0, **options}
    path = write_report(folder / "report" / "index.html", cases=cases, metrics=metrics, settings=settings, **options)
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def test_full_report_holds_what_a_reader_needs(tmp_path):
    _, page = write(tmp_path, make_cases([0, 1] * 8), notes=["a note", "b < c"])
    words = " ".join(page.words)
    for part in (
        "Honest AUROC 0.876",
        "6 normal and 6 abnormal",
        "seed\u00a03",
        "k\u00a08",
        "backbone\u00a0densenet121",
    ):
        assert part in words
    for part in (OPTIMISTIC, DISCLAIMER, "a note", "b < c", "1 min 15 s", "0.932", "ROC curve", "finding 1", "x & y"):
        assert part in words
    for heading in ("Abnormal, highest", "(most likely missed)", "(most likely false alarms)", "Normal, lowest"):
        assert heading in words
    assert page.values("html", "lang") == ["en"]
    assert page.words.count(DISCLAIMER) == 2, "above the results and at the end"
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(images) == 2 * 16
    assert all(attrs["alt"] and attrs["src"].startswith("data:image/jpeg;base64,") for attrs in images)
    assert list((tmp_path / "report").iterdir()) == [tmp_path / "report" / "index.html"]


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        (
            {"auroc": 0.999, "sensitivity": 0.73, "specificity": 1.0},
            "Why a sensitivity of 0.730 beside an AUROC of 0.999?",
        ),
        (
            {"auroc": 0.95, "sensitivity": 0.5, "specificity": 0.6},
            "Why a sensitivity of 0.500 and a specificity of 0.600",
        ),
        ({"auroc": 0.95, "sensitivity": 0.9, "specificity": 0.9}, None),
        ({"auroc": None, "sensitivity": 0.1, "specificity": 0.1}, None),
    ],
)
def test_a_rate_far_below_the_auroc_is_explained(tmp_path, rates, words):
    path = write_report(tmp_path / "r.html", title="t", cases=make_cases([0, 1]), metrics={"honest": rates}, settings={},
                        scale=ColourScale(0.0, 2.0, 1.0), threshold=1.0)  # fmt: skip
    text = path.read_text(encoding="utf-8")
    assert (words is None) == ("beside an AUROC of" not in text)
    assert words is None or words in text


def test_maps_stand_beside_a_constant_map(tmp_path):
    _, page = write(tmp_path, make_cases([0, 1] * 4))
    cells = [cell.strip() for cell in page.table]
    start = cells.index("Pixel AUROC")
    assert cells[start : start + 9] == [
        *("Pixel AUROC", "0.932", "0.812", "AUPRO", "0.457", "0.400", "Pointing game", "0.250", "0.125")
    ]
    start = cells.index("a <nodule>")
    assert cells[start : start + 7] == ["a <nodule>", "17", "0.059", "0.000", "0.660", "0.650", "0.010"]
    assert cells[start + 7 : start + 14] == ["b", "3", "0.333", *["n/a"] * 4]
    words = " ".join(page.words)
    assert all(part in words for part in ("0.765", "0.743", "0.022", "Localisation"))
    without = {name: value for name, value in METRICS.items() if name != "pixel"}
    assert "Localisation" not in write(tmp_path, make_cases([0, 1] * 4), without)[1].words


def test_operating_points_findings_and_groups(tmp_path):
    share = {"value": 0.5, "low": 0.25, "high": 0.76}
    metrics = {
        **METRICS,
        "operating_points": {
            "patients": 11,
            "auroc": {"value": 0.87, "low": 0.8, "high": 0.93},
            "own": {"threshold": 1.0, "specificity": 0.97, "sensitivity": share},
            "at_90": {"threshold": 0.8, "specificity": 0.9, "sensitivity": share, "few_normal": False},
            "at_95": {
                "threshold": 0.9,
                "specificity": 0.95,
                "sensitivity": {**share, "value": 0.6},
                "few_normal": True,
            },
        },
        "findings": {
            "a <nodule>": {
                "abnormal": 6,
                "few_abnormal": True,
                **dict.fromkeys(("auroc", "sensitivity", "sensitivity_90", "sensitivity_95"), share),
            }
        },
        "groups": {
            "sex": {
                "female": {
                    "normal": 40,
                    "abnormal": 0,
                    "few_normal": False,
                    "few_abnormal": True,
                    "false_positive_rate": {"value": 0.04, "low": 0.01, "high": 0.13},
                    "sensitivity": None,
                    "auroc": None,
                }
            }
        },
    }
    text, page = write(tmp_path, make_cases([0, 1] * 4), metrics)
    assert "<strong>0.50</strong>*" in text
    assert "<strong>0.04</strong><" in text
    assert "<strong>0.60</strong>*" in text
    assert "a &lt;nodule&gt;" in text
    assert {"operating-points", "findings", "groups"} <= set(page.ids)
    words = " ".join(page.words)
    assert "threshold from the normal images of this evaluation" in words
    assert "not what this model does" in words
    assert "fewer than 10 patients" in words


def test_nothing_is_fetched(tmp_path):
    text, page = write(tmp_path, make_cases([0, 1] * 4))
    assert not re.search(r"https?://|url\((?!#)|@import|<link|\bsrcset\b", text)
    for tag, attrs in page.tags:
        for name in ("src", "href", "xlink:href", "action", "data"):
            assert attrs.get(name, "#").startswith(("#", "data:image/jpeg")), (tag, attrs)
    links = {value[1:] for value in page.values("a", "href")}
    assert links <= set(page.ids)


def test_names_stand_in_the_table_once_and_escaped(tmp_path):
    nasty = '<script>alert("1")</script> & $title'
    cases = make_cases([0, 1] * 5)
    cases[2] = replace(cases[2], name=nasty, class_name="<b>normal</b>")
    text, page = write(tmp_path, cases, title="<i>Title</i>", notes=["<u>note</u>"])
    for case in cases:
        assert page.table.count(case.name) == 1
    assert escape(nasty) in text
    assert "<script>alert" not in text
    assert not {"b", "i", "u"} & {tag for tag, _ in page.tags}


@pytest.mark.parametrize(
    "labels", [[None] * 5, [0] * 5, [1] * 5, [1], []], ids=["none", "normal", "abnormal", "one", "empty"]
)
@pytest.mark.parametrize("metrics", [{}, {"honest": None, "n_normal": 0}, METRICS], ids=["empty", "null", "full"])
def test_runs_without_both_classes_have_no_roc(tmp_path, labels, metrics):
    _, page = write(tmp_path, make_cases(labels), metrics=metrics, settings={})
    assert not any("ROC curve;" in label for label in page.values("svg", "aria-label"))
    assert DISCLAIMER in page.words


def test_prediction_run_states_decisions_but_judges_none(tmp_path):
    _, page = write(tmp_path, make_cases([None] * 6), metrics={})
    words = " ".join(page.words)
    assert "3 of 6 images flagged" in words
    assert "wrong" not in page.values("button", "data-filter")
    assert "missed" not in words
    assert "AUROC" not in words


def test_undefined_figures_are_named_as_missing(tmp_path):
    _, page = write(tmp_path, make_cases([0] * 3), metrics={"honest": {"auroc": float("nan"), "f1": None, "own": 0.5}})
    words = " ".join(page.words)
    assert "n/a" in words
    assert "own" in words
    assert "nan" not in words.lower()
    assert "Honest AUROC" not in words


def test_without_pictures_masks_or_decisions(tmp_path):
    _, page = write(tmp_path, make_cases([0, 1] * 3, pictures=False, masks=False, decided=False))
    assert not page.values("img", "src")
    assert "cases" not in page.ids
    _, page = write(tmp_path, make_cases([0, 1] * 3, masks=False))
    assert "light blue line" not in " ".join(page.words)
    only_map = replace(make_cases([1])[0], image=None, mask=None)
    only_image = replace(make_cases([0])[0], anomaly_map=None)
    assert len(write(tmp_path, [only_map, only_image])[1].values("img", "src")) == 2


def test_misses_and_false_alarms_come_to_the_front(tmp_path):
    cases = make_cases([1] * 10 + [0] * 10)
    cases = [replace(case, anomaly_score=float(i), abnormal=i >= 5) for i, case in enumerate(cases)]
    _, page = write(tmp_path, cases, max_cases=3)
    figures = [
        int(value.removeprefix("case-")) for value in page.ids if value.startswith("case-") and value[5:].isdigit()
    ]
    assert figures == [9, 8, 7, 0, 1, 2, 19, 18, 17, 10, 11, 12]
    assert ": 3 images, 3 missed" in page.words
    wrong = [attrs for tag, attrs in page.tags if tag == "tr" and "wrong" in attrs.get("data-groups", "")]
    assert len(wrong) == 15
    assert {(tuple(attrs["data-groups"].split())) for attrs in wrong} == {
        ("not-flagged", "wrong"),
        ("flagged", "wrong"),
    }


def test_operating_point_follows_the_decisions(tmp_path):
    cases = make_cases([0, 0, 1, 1], pictures=False)
    cases = [replace(c, anomaly_score=s, abnormal=s > 1) for c, s in zip(cases, (0.0, 2.0, 1.0, 3.0), strict=True)]
    _, page = write(tmp_path, cases)
    assert "finds 50%, false alarms 50%" in page.words
    _, page = write(tmp_path, [replace(case, abnormal=None) for case in cases])
    assert "finds 100%, false alarms 50%" in page.words


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"anomaly_score": float("nan")}, "score must be finite"),
        ({"anomaly_score": float("inf")}, "score must be finite"),
        ({"p_value": 1.5}, "p-value"),
        ({"p_value": float("nan")}, "p-value"),
        ({"label": 2}, "label"),
        ({"anomaly_map": np.zeros((3, 3))}, "share one shape"),
        ({"image": np.full((24, 32), 200.0)}, "image must lie in"),
        ({"anomaly_map": np.full((24, 32), np.nan)}, "anomaly map must be finite"),
    ],
)
def test_invalid_case_is_named_and_nothing_is_written(tmp_path, change, words):
    cases = make_cases([0, 1] * 2)
    cases[3] = replace(cases[3], **change)
    with pytest.raises(ValueError, match=f"image-003.png.*{words}"):
        write(tmp_path, cases)
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize(("option", "value"), [("threshold", float("nan")), ("max_cases", -1)])
def test_invalid_options(tmp_path, option, value):
    with pytest.raises(ValueError, match=option):
        write(tmp_path, make_cases([0]), **{option: value})


def test_equal_scores_draw_a_chart(tmp_path):
    cases = [replace(case, anomaly_score=1.0) for case in make_cases([0, 1])]
    text, _ = write(tmp_path, cases)
    assert "nan" not in re.sub(r"base64,[^\"]*", "", text).lower().split("<script>")[0]


def test_pictures_stay_small(tmp_path):
    rng = np.random.default_rng(0)
    image = np.clip(np.linspace(0, 1, 256)[None] + rng.normal(0, 0.03, (256, 256)), 0, 1)
    anomaly_map = np.linspace(0, 2, 256)[:, None].repeat(256, axis=1)
    mask = anomaly_map > 1
    cases = [replace(case, image=image, anomaly_map=anomaly_map, mask=mask) for case in make_cases([0, 1] * 24)]
    text, page = write(tmp_path, cases)
    assert len(page.values("img", "src")) == 96
    assert len(text) < 3_000_000


@pytest.mark.parametrize(("own", "marked", "lines"), [(None, "line 1<", True), (1.9, "line 1.9<", False)])
def test_what_reaches_the_threshold_is_surrounded(tmp_path, own, marked, lines):
    anomaly_map = np.zeros((24, 32))
    anomaly_map[8:16, 8:16] = 1.2
    case = replace(make_cases([0])[0], image=np.full((24, 32), 0.2), anomaly_map=anomaly_map)
    text, page = write(tmp_path, [case], scale=ColourScale(0.2, 2.0, own))
    picture = Image.open(io.BytesIO(base64.b64decode(page.values("img", "src")[1].split(",")[1])))
    assert marked in text
    assert (np.asarray(picture).min(axis=2).max() > 180) == lines


def test_cases_chosen_before_their_pictures_are_loaded_are_the_ones_shown():
    scores = [0.3, 0.9, 0.1, 0.5, 0.7, 0.2]
    cases = [Case(f"n{i}", i % 2, None, score, None, None) for i, score in enumerate(scores)]
    wanted = choose_cases(cases, 1)
    assert wanted
    assert choose_cases(cases, 1, pictured=True) == []
    for index in {i for _, indices in wanted for i in indices}:
        cases[index] = replace(cases[index], image=np.zeros((4, 4)))
    assert choose_cases(cases, 1, pictured=True) == wanted
