"""Report of an evaluation as one self-contained HTML file.

The report presents given results: it counts decisions, draws the given scores and their ROC curve, and computes no score or
metric. The frame of the page is in `page.py`, the charts are in `charts.py`.
"""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from monai_wscxr.data.encoding import encode_jpeg
from monai_wscxr.model.calibration import ColourScale
from monai_wscxr.report.case import KIND, MISSING, Case, class_text, decision_text, number_text, outcome_text
from monai_wscxr.report.charts import DOTS_PER_CLASS, roc_chart, strip_chart
from monai_wscxr.report.figures import findings_table, group_tables, operating_points
from monai_wscxr.report.overlay import THRESHOLD_COLOUR, grey_levels, heatmap, outline, overlay, shrink
from monai_wscxr.report.page import DISCLAIMER, colour_bar, notes_box, p_value_text, plural, run_section, write_page

OPTIMISTIC = "optimistic: threshold and epoch chosen on the test images, as in the publication"

_PICTURE_SIDE = 320
_WRONG = {"missed": "missed", "false alarm": "flagged wrongly"}
_SURPRISING = 0.1  # by how much a rate is below the AUROC when the report explains it
_METRIC_NAMES = {
    "auroc": "AUROC",
    "accuracy": "Accuracy",
    "f1": "F1",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "threshold": "Threshold",
    "epoch": "Epoch",
}
_LOCALISATION_NAMES = {
    "auroc": "Pixel AUROC",
    "aupro": "AUPRO",
    "pointing_game": "Pointing game",
}
_FINDING_FIGURES = ("pointing game", "constant map", "in lesion", "mirrored", "gap")


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    cases: Sequence[Case],
    metrics: Mapping[str, Any],
    settings: Mapping[str, object],
    scale: ColourScale,
    threshold: float,
    seconds: Mapping[str, float] | None = None,
    max_cases: int = 12,
    notes: Sequence[str] = (),
) -> Path:
    """Write the report of an evaluation, atomically.

    Args:
        path: the HTML file; its folder is created.
        title: heading of the report.
        cases: all scored images; only those in the gallery need pictures (see `choose_cases`).
        metrics: content of `metrics.json`; any part may be missing.
        settings: settings of the run; `backbone`, `k` and `seed` are also shown in the headline.
        scale: colour scale of the model; one without a threshold is shown with `threshold`.
        threshold: operating point on the anomaly score.
        seconds: time per stage; None takes `metrics["seconds"]`.
        max_cases: maximum number of images under each heading of the gallery.
        notes: sentences shown below the headline.

    Returns:
        Path of the HTML file.

    Raises:
        ValueError: when a score, p-value, label, picture or the threshold is invalid; the message names the case.
    """
    _validate(cases, threshold, max_cases)
    scale = replace(scale, threshold=float(threshold)) if scale.threshold is None else scale
    shown = choose_cases(cases, max_cases, pictured=True)
    sections = [
        ("results", "Results", _metrics_table(metrics)),
        ("operating-points", "Operating points", operating_points(metrics)),
        ("findings", "By finding", findings_table(metrics)),
        ("groups", "By group", group_tables(metrics)),
        ("localisation", "Localisation", _localisation(metrics.get("pixel") or {})),
        ("scores", "Scores", _charts(cases, metrics, threshold)),
        ("cases", "Cases", _gallery(cases, shown, scale)),
        ("all", "All images", _case_table(cases, shown)),
        ("run", "Run", run_section(settings, metrics.get("seconds") if seconds is None else seconds)),
    ]
    kept = [section for section in sections if section[2]]
    headline = _headline(cases, metrics, settings, threshold, notes)
    return write_page(path, title, headline, kept, scale)


def choose_cases(cases: Sequence[Case], limit: int, pictured: bool = False) -> list[tuple[str, list[int]]]:
    """Choose the cases of the gallery: those with the highest and the lowest scores of each label.

    A caller can choose first and then load pictures for these cases only.

    Args:
        cases: all scored images.
        limit: maximum number of cases under each heading.
        pictured: choose only among cases that have an image or an anomaly map.

    Returns:
        Pairs of a heading and its indices into `cases`, in the order of the report; empty headings are left out. The cases of
        a label are split in half by score, so none appears twice.
    """
    headings: dict[int | None, tuple[str, str]] = {
        1: ("Abnormal, highest", "Abnormal, lowest (most likely missed)"),
        0: ("Normal, highest (most likely false alarms)", "Normal, lowest"),
        None: ("No label, highest", "No label, lowest"),
    }
    chosen: list[tuple[str, list[int]]] = []
    for label, (highest, lowest) in headings.items():
        ranked = sorted(
            (i for i, case in enumerate(cases) if case.label == label and (_has_picture(case) or not pictured)),
            key=lambda i: -cases[i].anomaly_score,
        )
        half = (len(ranked) + 1) // 2
        chosen += [(highest, ranked[:half][:limit]), (lowest, ranked[half:][::-1][:limit])]
    return [(heading, indices) for heading, indices in chosen if indices]


def _has_picture(case: Case) -> bool:
    """Return whether there is anything to draw for a case."""
    return case.image is not None or case.anomaly_map is not None


def _validate(cases: Sequence[Case], threshold: float, max_cases: int) -> None:
    """Raise ValueError, naming the case, when an argument of `write_report` is invalid."""
    if not math.isfinite(threshold):
        raise ValueError(f"threshold must be finite, got {threshold}")
    if max_cases < 0:
        raise ValueError(f"max_cases must not be negative, got {max_cases}")
    for case in cases:
        if not math.isfinite(case.anomaly_score):
            raise ValueError(f"case {case.name!r}: anomaly score must be finite, got {case.anomaly_score}")
        if case.p_value is not None and not 0.0 <= case.p_value <= 1.0:
            raise ValueError(f"case {case.name!r}: p-value must be in [0, 1] or None, got {case.p_value}")
        if case.label not in KIND:
            raise ValueError(f"case {case.name!r}: label must be 0, 1 or None, got {case.label!r}")
        shapes = {np.shape(part) for part in (case.image, case.anomaly_map, case.mask) if part is not None}
        if len(shapes) > 1 or any(len(shape) != 2 for shape in shapes):
            raise ValueError(
                f"case {case.name!r}: image, anomaly map and mask must share one shape [H, W], got {shapes}"
            )


def _tag(case: Case) -> str:
    """Return the outcome, or without a label the decision, as HTML; wrong outcomes are marked."""
    outcome = outcome_text(case)
    if outcome is None:
        return "" if case.abnormal is None else f'<span class="tag">{decision_text(case)}</span>'
    return f'<span class="tag{" bad" if outcome in _WRONG else ""}">{outcome}</span>'


def _headline(
    cases: Sequence[Case],
    metrics: Mapping[str, Any],
    settings: Mapping[str, object],
    threshold: float,
    notes: Sequence[str],
) -> str:
    """Return the headline: AUROC or number of flagged images, the run, wrong decisions, disclaimer and notes."""
    auroc = number_text((metrics.get("honest") or {}).get("auroc"))
    counts = [
        metrics.get(f"n_{kind}") or sum(case.label == label for case in cases)
        for label, kind in ((0, "normal"), (1, "abnormal"))
    ]
    total = plural(len(cases), "image", "images")
    what = f"{counts[0]} normal and {counts[1]} abnormal test images" if any(counts) else f"{total}, no labels"
    run = [f"{key}\u00a0{settings[key]}" for key in ("backbone", "k", "seed") if settings.get(key) is not None]
    decided = [case for case in cases if case.abnormal is not None]
    big = f"{total} scored"
    if auroc != MISSING:
        big = f"Honest AUROC {auroc}"
    elif decided:
        big = f"{sum(bool(case.abnormal) for case in decided)} of {total} flagged"
    lines = [f'<p class="headline"><strong>{big}</strong>{escape(" · ".join([what, *run]))}</p>']
    if any(outcome_text(case) for case in decided):
        outcomes = [outcome_text(case) for case in decided]
        misses, alarms = outcomes.count("missed"), outcomes.count("false alarm")
        lines.append(
            f"<p>At threshold {number_text(float(threshold))}: <strong>{misses}</strong> of "
            f"{sum(case.label == 1 for case in decided)} abnormal images missed, <strong>{alarms}</strong> of "
            f"{sum(case.label == 0 for case in decided)} normal images flagged.</p>"
        )
    lines.append(f'<p class="research">{DISCLAIMER}</p>')
    lines.append(notes_box(notes))
    return "\n".join(line for line in lines if line)


def _metrics_table(metrics: Mapping[str, Any]) -> str:
    """Return the image-level metrics as a table; empty without metrics."""
    honest, paper = metrics.get("honest") or {}, metrics.get("paper") or {}
    keys = [*_METRIC_NAMES, *sorted((set(honest) | set(paper)) - set(_METRIC_NAMES))]
    rows = "".join(
        f'<tr><th scope="row">{escape(_METRIC_NAMES.get(key, key))}</th>'
        f"{_metric_cell(honest.get(key))}{_metric_cell(paper.get(key))}</tr>"
        for key in keys
        if key in honest or key in paper
    )
    if not rows:
        return ""
    table = _wide(
        "Image-level metrics",
        '<thead><tr><th scope="col">Image-level metric</th>'
        '<th scope="col">honest<span class="small">threshold set without the test images</span></th>'
        f'<th scope="col">paper<span class="small">{OPTIMISTIC}</span></th></tr></thead>'
        f"<tbody>{rows}</tbody>",
    )
    return f"{table}{_threshold_words(honest)}"


def _threshold_words(honest: Mapping[str, Any]) -> str:
    """Return why a rate is far below the AUROC, which surprises readers; empty where none is."""
    auroc = honest.get("auroc")
    low = [
        f"{name} of {number_text(honest[name])}"
        for name in ("sensitivity", "specificity")
        if auroc is not None and honest.get(name) is not None and auroc - honest[name] > _SURPRISING
    ]
    if not low:
        return ""
    return (
        f"<p>Why a {' and a '.join(low)} beside an AUROC of {number_text(auroc)}? AUROC is about the order of the scores and "
        "needs no threshold; the rates are about one threshold, which comes from held-out normal images alone. With few of "
        "them, or images of another site, it lies too high or too low. More normal images in training, or "
        "<code>monai-wscxr adapt</code> with normal images of this site, move it; the order stays.</p>"
    )


def _localisation(pixel: Mapping[str, Any]) -> str:
    """Return the figures of the maps against lesion masks beside those of a constant map, and by finding; empty without."""
    if not pixel:
        return ""
    constant = pixel.get("constant_map") or {}
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{_metric_cell(pixel.get(key))}{_metric_cell(constant.get(key))}</tr>'
        for key, name in _LOCALISATION_NAMES.items()
        if key in pixel or key in constant
    )
    parts = [
        _wide(
            "Map against lesion masks",
            '<thead><tr><th scope="col">Map against lesion masks</th><th scope="col">this model</th>'
            '<th scope="col">constant map<span class="small">the mean of all maps for every image</span></th></tr></thead>'
            f"<tbody>{rows}</tbody>",
        )
    ]
    percentiles = [number_text(pixel.get(key)) for key in ("percentile", "mirrored_percentile", "gap")]
    if percentiles[0] != MISSING:
        parts.append(
            "<p>Maps in lesions are higher than those of normal images at the same place in a share of "
            f"<strong>{percentiles[0]}</strong>, at the mirrored place of {percentiles[1]}; gap "
            f"<strong>{percentiles[2]}</strong>. Without a gap a map says how abnormal a picture is, not where.</p>"
        )
    if pixel.get("findings"):
        heads = "".join(f'<th scope="col">{head}</th>' for head in ("images", *_FINDING_FIGURES))
        body = "".join(
            f'<tr><th scope="row">{escape(name)}</th>{_metric_cell(found.get("images"))}'
            + "".join(_metric_cell(value) for value in _finding_figures(found))
            + "</tr>"
            for name, found in pixel["findings"].items()
        )
        head = f'<thead><tr><th scope="col">Finding</th>{heads}</tr></thead>'
        parts.append(_wide("Maps by finding", f"{head}<tbody>{body}</tbody>"))
    return "\n".join(parts)


def _wide(name: str, content: str) -> str:
    """Return a table of figures that scrolls sideways where the screen is narrow, instead of breaking words."""
    return f'<div class="wide" tabindex="0" role="region" aria-label="{name}"><table class="figures">{content}</table></div>'


def _finding_figures(found: Mapping[str, Any]) -> list[object]:
    """Return the figures of one finding in the order of `_FINDING_FIGURES`."""
    constant = (found.get("constant_map") or {}).get("pointing_game")
    return [found.get("pointing_game"), constant, *(found.get(k) for k in ("percentile", "mirrored_percentile", "gap"))]


def _metric_cell(value: object) -> str:
    """Return one cell of the table of metrics."""
    text = number_text(value)
    return f'<td class="missing">{text}</td>' if text == MISSING else f"<td>{text}</td>"


def _charts(cases: Sequence[Case], metrics: Mapping[str, Any], threshold: float) -> str:
    """Return the charts of scores and ROC side by side; empty without cases."""
    if not cases:
        return ""
    large = len(cases) > DOTS_PER_CLASS
    thinned = f" Classes with more than {DOTS_PER_CLASS} images are thinned to evenly spaced ranks." if large else ""
    strips = (
        f'<figure><h3>Anomaly score by class</h3>{strip_chart(cases, threshold)}<figcaption class="small">'
        f"One mark per image. Boxes span the interquartile range, thick lines are medians.{thinned}"
        "</figcaption></figure>"
    )
    labelled = [case for case in cases if case.label is not None]
    if len({case.label for case in labelled}) < 2:
        roc = "<p>No ROC curve: it requires labelled normal and abnormal images.</p>"
    else:
        auroc = number_text((metrics.get("honest") or {}).get("auroc"))
        roc = f"<figure><h3>ROC curve</h3>{roc_chart(labelled, threshold, auroc)}</figure>"
    return f'<div class="charts">{strips}{roc}</div>'


def _gallery(cases: Sequence[Case], shown: Sequence[tuple[str, list[int]]], scale: ColourScale) -> str:
    """Return the gallery of the chosen cases; empty without any."""
    if not shown:
        return ""
    bar = colour_bar(scale)
    outlined = any(cases[i].mask is not None for _, indices in shown for i in indices)
    mask_words = " A light blue line outlines the lesion mask." if outlined else ""
    links, groups = [], []
    for number, (heading, indices) in enumerate(shown):
        outcomes = [outcome_text(cases[i]) for i in indices]
        wrong = [f"{outcomes.count(kind)} {words}" for kind, words in _WRONG.items() if kind in outcomes]
        remark = ", ".join([plural(len(indices), "image", "images"), *wrong])
        links.append(f'<li><a href="#group-{number}">{heading}</a>: {remark}</li>')
        figures = "\n".join(_figure(cases[i], i, scale) for i in indices)
        groups.append(
            f'<div class="group" id="group-{number}"><div class="gallery-head"><h3>{heading}</h3>{bar}</div>'
            f'<div class="gallery">{figures}</div></div>'
        )
    return (
        "<p>Left: the radiograph. Right: the radiograph with its anomaly map. A white line outlines areas with values "
        "that the maps of normal images rarely reach anywhere; the decision refers to the score, so a flagged image may have "
        "no such area. "
        "All images share one colour scale: equal colours mean "
        f'equal values.{mask_words}</p><ul class="jump">{"".join(links)}</ul>\n' + "\n".join(groups)
    )


def _figure(case: Case, index: int, scale: ColourScale) -> str:
    """Return the pictures of one case with their caption."""
    images = "".join(f'<img src="{_data_uri(picture)}" alt="{escape(alt)}">' for alt, picture in _pictures(case, scale))
    p_value = "" if case.p_value is None else f" · p {p_value_text(case.p_value)}"
    return (
        f'<figure class="case" id="case-{index}"><div class="pair">{images}</div><figcaption>'
        f'<span class="name">{escape(case.name)}</span>{_tag(case)}'
        f'<span class="small">{escape(class_text(case))} · score {number_text(float(case.anomaly_score))}{p_value}</span>'
        "</figcaption></figure>"
    )


def _pictures(case: Case, scale: ColourScale) -> Iterable[tuple[str, np.ndarray]]:
    """Draw the radiograph and the anomaly map of a case, where it has them; yields alternative text and picture (uint8)."""
    try:
        image = None if case.image is None else shrink(case.image, _PICTURE_SIDE)
        anomaly_map = None if case.anomaly_map is None else shrink(case.anomaly_map, _PICTURE_SIDE)
        if image is not None and case.mask is not None and np.any(case.mask):
            # any overlap counts, so that small lesions stay visible at the lower resolution
            mask = shrink(np.asarray(case.mask, dtype=np.float32), _PICTURE_SIDE) > 0
            yield f"Radiograph of {case.name}, lesion outlined", outline(image, mask)
        elif image is not None:
            yield f"Radiograph of {case.name}", grey_levels(image)
        if anomaly_map is not None:
            flat = heatmap(anomaly_map, scale) if image is None else overlay(image, anomaly_map, scale)
            above = anomaly_map >= (math.inf if scale.threshold is None else scale.threshold)
            yield f"Anomaly map of {case.name}, {decision_text(case)}", outline(flat, above, THRESHOLD_COLOUR)
    except ValueError as error:
        raise ValueError(f"case {case.name!r}: {error}") from error


def _data_uri(picture: np.ndarray) -> str:
    """Encode a picture as a JPEG data URI."""
    return "data:image/jpeg;base64," + base64.b64encode(encode_jpeg(picture)).decode("ascii")


def _case_table(cases: Sequence[Case], shown: Sequence[tuple[str, list[int]]]) -> str:
    """Return the table of all cases, highest score first, with links to those in the gallery."""
    if not cases:
        return "<p>No image was scored.</p>"
    linked = {i for _, indices in shown for i in indices}
    filters = [("all", "All"), ("flagged", "Flagged"), ("not-flagged", "Not flagged")]
    if any(outcome_text(case) for case in cases):
        filters.append(("wrong", "Wrong"))
    buttons = "".join(
        f'<button type="button" data-filter="{key}" aria-pressed="false">{name}</button>' for key, name in filters
    )
    order = sorted(range(len(cases)), key=lambda i: -cases[i].anomaly_score)
    rows = "\n".join(_row(cases[i], i, i in linked) for i in order)
    return (
        f'<div class="tools" id="case-tools" role="group" aria-label="Show" hidden>{buttons}'
        '<span class="small" id="case-count" role="status"></span></div>'
        '<div class="scroll" tabindex="0" role="region" aria-label="All images"><table id="case-table"><thead><tr>'
        '<th scope="col">Image</th><th scope="col">Class</th>'
        '<th scope="col" class="figure" data-numeric aria-sort="descending">Score</th>'
        '<th scope="col" class="figure" data-numeric>p-value</th><th scope="col">Decision</th></tr></thead>'
        f"<tbody>\n{rows}\n</tbody></table></div>"
    )


def _row(case: Case, index: int, linked: bool) -> str:
    """Return one row of the table of cases."""
    outcome, name = outcome_text(case), escape(case.name)
    linked_name = f'<a href="#case-{index}">{name}</a>' if linked else name
    wrong = outcome in _WRONG
    groups = ([] if case.abnormal is None else [decision_text(case).replace(" ", "-")]) + (["wrong"] if wrong else [])
    return (
        f'<tr data-groups="{" ".join(groups)}"><th scope="row">'
        f"{linked_name}</th><td>{escape(class_text(case))}</td>"
        f'<td class="figure" data-value="{float(case.anomaly_score)!r}">{number_text(float(case.anomaly_score))}</td>'
        f'<td class="figure" data-value="{"" if case.p_value is None else repr(float(case.p_value))}">'
        f"{p_value_text(case.p_value)}</td>"
        f"<td>{decision_text(case)}{f' {_tag(case)}' if wrong else ''}</td></tr>"
    )
