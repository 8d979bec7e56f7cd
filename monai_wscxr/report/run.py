"""Report of a prediction run: a table of all images, and a viewer with radiograph, map and overlay side by side.

The folder `pictures/` beside the page holds three pictures per image: `NUMBER-radiograph.jpg`, `NUMBER-map.jpg` and
`NUMBER-overlay.jpg`. The folder of the report can be copied as a whole and needs no network. With scripts disabled, the names
in the table link to the overlays.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from monai_wscxr.model.calibration import ColourScale
from monai_wscxr.report.case import MISSING, Case, decision_text, number_text
from monai_wscxr.report.charts import strip_chart
from monai_wscxr.report.page import DISCLAIMER, colour_bar, notes_box, p_value_text, plural, run_section, write_page

PICTURES = (
    ("radiograph", "Radiograph"),
    ("map", "Anomaly map, colours opaque"),
    ("overlay", "Map over radiograph"),
)
"""Pictures in the viewer: suffix of the file name, and caption."""


@dataclass(frozen=True)
class Entry:
    """One input of a prediction run.

    Attributes:
        name: name shown to the reader, usually the file.
        stem: number that starts the names of its pictures; None without pictures.
        anomaly_score, p_value, abnormal: see `Prediction`; None for a rejected input.
        reason: reason code and message of a rejected input, otherwise "".
    """

    name: str
    stem: str | None
    anomaly_score: float | None
    p_value: float | None
    abnormal: bool | None
    reason: str = ""


def write_run_report(
    path: str | os.PathLike[str],
    entries: Sequence[Entry],
    scale: ColourScale,
    threshold: float,
    settings: Mapping[str, object],
    notes: Sequence[str] = (),
) -> Path:
    """Write the report of a prediction run, atomically.

    Args:
        path: the HTML file; the folder `pictures/` is beside it.
        entries: all inputs, in order.
        scale: colour scale of the model.
        threshold: operating point on the anomaly score.
        settings: settings of the model and the run.
        notes: sentences shown below the headline.

    Returns:
        Path of the HTML file.
    """
    sections = [("images", "Images", _images(entries, scale))]
    cases = [
        Case(e.name, None, None, e.anomaly_score, e.p_value, e.abnormal) for e in entries if e.anomaly_score is not None
    ]
    if cases:
        caption = "One mark per image. The box spans the interquartile range, the thick line is the median."
        chart = (
            f'<div class="charts"><figure>{strip_chart(cases, threshold)}'
            f'<figcaption class="small">{caption}</figcaption></figure></div>'
        )
        sections.append(("scores", "Scores", chart))
    sections.append(("run", "Run", run_section(settings, None)))
    # 'self' alone does not cover pages opened from a disk
    return write_page(
        path,
        "WSCXR predictions",
        _headline(entries, threshold, notes),
        sections,
        scale,
        "'self' file: data:",
        opaque=True,
    )


def _headline(entries: Sequence[Entry], threshold: float, notes: Sequence[str]) -> str:
    """Return the headline: number of flagged images, threshold, rejected inputs, disclaimer and notes."""
    flagged = sum(bool(e.abnormal) for e in entries)
    rejected = sum(e.anomaly_score is None for e in entries)
    total = plural(len(entries), "image", "images")
    what = [f"threshold {number_text(float(threshold))}", f"{rejected} rejected" if rejected else "none rejected"]
    lines = [
        f'<p class="headline"><strong>{flagged} of {total} flagged</strong>{escape(" · ".join(what))}</p>',
        f'<p class="research">{DISCLAIMER}</p>',
        notes_box(notes),
    ]
    return "\n".join(line for line in lines if line)


def _images(entries: Sequence[Entry], scale: ColourScale) -> str:
    """Return the table of all inputs with its filters, and the viewer."""
    counts = {
        "all": len(entries),
        "flagged": sum(e.abnormal is True for e in entries),
        "not-flagged": sum(e.abnormal is False for e in entries),
        "rejected": sum(e.anomaly_score is None for e in entries),
    }
    names = {"all": "All", "flagged": "Flagged", "not-flagged": "Not flagged", "rejected": "Rejected"}
    buttons = "".join(
        f'<button type="button" data-filter="{key}" aria-pressed="false">{names[key]} ({counts[key]})</button>'
        for key in names
    )
    # highest score first, rejected inputs last
    order = sorted(range(len(entries)), key=lambda i: _rank(entries[i]))
    folder = _common_folder([entry.name for entry in entries])
    rows = "\n".join(_row(entries[i], entries[i].name[len(folder) :]) for i in order)
    where = f"<p>Names are paths below <code>{escape(folder)}</code></p>" if folder else ""
    return (
        "<p>Select an image to view it with its anomaly map; the arrow keys move between images. All maps share one colour "
        "scale: equal colours mean equal values. The p-value estimates the share of normal images, like those held out in "
        f"training, that score at least as high.</p>{where}"
        f'<div class="tools" id="case-tools" role="group" aria-label="Show" hidden>{buttons}'
        '<label class="small">Name contains <input type="search" id="case-search"></label>'
        '<span class="small" id="case-count" role="status"></span></div>'
        '<div class="scroll" tabindex="0" role="region" aria-label="Images"><table id="case-table" class="inputs"><thead><tr>'
        '<th scope="col">Image</th>'
        '<th scope="col" class="figure" data-numeric aria-sort="descending">Score</th>'
        '<th scope="col" class="figure" data-numeric>p-value</th><th scope="col">Decision</th></tr></thead>'
        f"<tbody>\n{rows}\n</tbody></table></div>\n{_viewer(scale)}"
    )


def _common_folder(names: Sequence[str]) -> str:
    """Return the folder that all paths share, with its separator, so that rows need not repeat it; empty if it is short."""
    if len(names) < 2:
        return ""
    first, last = min(names), max(names)  # a prefix that these two share is common to all
    common = first[: next((i for i, pair in enumerate(zip(first, last, strict=False)) if len(set(pair)) > 1), None)]
    common = common[: max(common.rfind("/"), common.rfind(os.sep)) + 1]
    return common if len(common) > 3 else ""


def _rank(entry: Entry) -> float:
    """Return the sort key of a row."""
    return float("inf") if entry.anomaly_score is None else -entry.anomaly_score


def _row(entry: Entry, short: str) -> str:
    """Return one row of the table; `short` is the name without the common folder."""
    name, stem = escape(short), entry.stem
    if stem is not None:
        picture = f"pictures/{stem}-overlay.jpg"
        name = f'<a class="open" href="{picture}"><img src="{picture}" alt="" loading="lazy"><span>{name}</span></a>'
    if entry.anomaly_score is None:
        group, decision = "rejected", f'rejected<span class="small">{escape(entry.reason)}</span>'
    else:
        words = decision_text(Case(entry.name, None, None, entry.anomaly_score, entry.p_value, entry.abnormal))
        group, tag = words.replace(" ", "-"), "tag bad" if entry.abnormal else "tag"
        decision = f'<span class="{tag}">{words}</span>'
    score = MISSING if entry.anomaly_score is None else number_text(float(entry.anomaly_score))
    return (
        f'<tr data-groups="{group}"{"" if stem is None else f""" data-stem="{stem}" """.rstrip()}>'
        f'<th scope="row">{name}</th>'
        f'<td class="figure" data-value="{"" if entry.anomaly_score is None else repr(float(entry.anomaly_score))}">'
        f"{score}</td>"
        f'<td class="figure" data-value="{"" if entry.p_value is None else repr(float(entry.p_value))}">'
        f"{p_value_text(entry.p_value)}</td><td>{decision}</td></tr>"
    )


_VIEW_TOOLS = (
    '<div class="tools" role="group" aria-label="View" id="viewer-view">'
    '<button type="button" id="viewer-out" aria-label="Zoom out">&minus;</button>'
    '<button type="button" id="viewer-fit">Fit</button>'
    '<button type="button" id="viewer-in" aria-label="Zoom in">+</button>'
    '<span class="small" id="viewer-zoom" role="status">100 %</span>'
    '<label class="small">Brightness <input type="range" id="viewer-brightness" min="-80" max="80" step="5" value="0"></label>'
    '<label class="small">Contrast <input type="range" id="viewer-contrast" min="-80" max="80" step="5" value="0"></label>'
    '<button type="button" id="viewer-reset">Reset</button>'
    '<span class="small keys">Keys: + and &minus; zoom, 0 fits, Shift with an arrow or dragging moves the pictures</span></div>'
)


def _viewer(scale: ColourScale) -> str:
    """Return the dialog of the viewer, which the template's script fills."""
    figures = "".join(
        f'<figure><div class="frame"><img data-kind="{kind}" data-words="{words}" alt="" draggable="false"></div>'
        f"<figcaption>{words}</figcaption></figure>"
        for kind, words in PICTURES
    )
    buttons = "".join(
        f'<button type="button" id="viewer-{key}"{" autofocus" if key == "next" else ""}>{words}</button>'
        for key, words in (("previous", "← Previous"), ("next", "Next →"), ("close", "Close"))
    )
    return (
        '<dialog id="viewer" aria-labelledby="viewer-title"><div class="viewer-head">'
        f'<h2 id="viewer-title"></h2><div class="tools">{buttons}</div></div>'
        f'{_VIEW_TOOLS}<div class="viewer-pictures">{figures}</div>'
        f'<div class="viewer-foot"><p id="viewer-text" role="status"></p>{colour_bar(scale)}</div>'
        '<p class="small">A white line outlines areas with values that the maps of normal images rarely reach '
        "anywhere. The decision refers to the anomaly score, by default the mean of all patch scores, so outline and decision "
        "may disagree.</p></dialog>"
    )
