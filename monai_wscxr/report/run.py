"""The report of a prediction run: a table of every image, and a viewer for radiograph, map and overlay side by side.

Pictures lie beside the page in `pictures/`, three for each image: `NUMBER-radiograph.jpg`, `-map.jpg`, `-overlay.jpg`. The
folder can be copied as a whole and opens without a network. Without scripts the names in the table lead to the overlays.
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
from monai_wscxr.report.html import DISCLAIMER, colour_bar, notes_box, p_text, plural, run_section, write_page

PICTURES = (
    ("radiograph", "Radiograph"),
    ("map", "Anomaly map, colours opaque"),
    ("overlay", "Map over radiograph"),
)
"""What the viewer shows of an image: the end of a picture's name and the words for it."""


@dataclass(frozen=True)
class Entry:
    """One input of a run.

    Attributes:
        name: what a person recognises it by.
        stem: number that its pictures begin with, or None without pictures.
        anomaly_score, p_value, abnormal: None when it was rejected.
        reason: why it was rejected: code and sentence, else empty.
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
    """Writes the report of a prediction run, atomically.

    Args:
        path: the HTML file; `pictures/` is beside it.
        entries: every input, in order.
        scale: the one colour scale of the run.
        threshold: the operating point on the anomaly score.
        settings: what the run was.
        notes: sentences under the headline.

    Returns:
        The path written.
    """
    sections = [("images", "Images", _images(entries, scale))]
    cases = [
        Case(e.name, None, None, e.anomaly_score, e.p_value, e.abnormal) for e in entries if e.anomaly_score is not None
    ]
    if cases:
        words = (
            '<figcaption class="small">One mark per image; the box spans the middle half of the scores.</figcaption>'
        )
        chart = f'<div class="charts"><figure>{strip_chart(cases, threshold)}{words}</figure></div>'
        sections.append(("scores", "Scores", chart))
    sections.append(("run", "Run", run_section(settings, None)))
    # 'self' alone does not cover pages that are opened from a disk
    return write_page(
        path, "WSCXR predictions", _headline(entries, threshold, notes), sections, scale, "'self' file: data:"
    )


def _headline(entries: Sequence[Entry], threshold: float, notes: Sequence[str]) -> str:
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
    # the most abnormal first, what has no score last
    order = sorted(range(len(entries)), key=lambda i: _rank(entries[i]))
    folder = _common_folder([entry.name for entry in entries])
    rows = "\n".join(_row(entries[i], entries[i].name[len(folder) :]) for i in order)
    where = f"<p>Names are paths below <code>{escape(folder)}</code></p>" if folder else ""
    return (
        "<p>Choose an image to see it with its anomaly map; arrow keys go to the next one. All maps share one colour scale, "
        "so equal colours mean equal values. The p-value is the share of normal images like those held out in training "
        f"that score at least as high.</p>{where}"
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
    """What all paths begin with, up to a separator: said once, it need not stand in every row. Empty for next to nothing."""
    if len(names) < 2:
        return ""
    first, last = min(names), max(names)  # what these share, all share
    common = first[: next((i for i, pair in enumerate(zip(first, last, strict=False)) if len(set(pair)) > 1), None)]
    common = common[: max(common.rfind("/"), common.rfind(os.sep)) + 1]
    return common if len(common) > 3 else ""


def _rank(entry: Entry) -> float:
    return float("inf") if entry.anomaly_score is None else -entry.anomaly_score


def _row(entry: Entry, short: str) -> str:
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
        f"{p_text(entry.p_value)}</td><td>{decision}</td></tr>"
    )


def _viewer(scale: ColourScale) -> str:
    """The dialog; the template's script fills it."""
    figures = "".join(
        f'<figure><img data-kind="{kind}" data-words="{words}" alt=""><figcaption>{words}</figcaption></figure>'
        for kind, words in PICTURES
    )
    buttons = "".join(
        f'<button type="button" id="viewer-{key}"{" autofocus" if key == "next" else ""}>{words}</button>'
        for key, words in (("previous", "← Previous"), ("next", "Next →"), ("close", "Close"))
    )
    return (
        '<dialog id="viewer" aria-labelledby="viewer-title"><div class="viewer-head">'
        f'<h2 id="viewer-title"></h2><div class="tools">{buttons}</div></div>'
        f'<div class="viewer-pictures">{figures}</div>'
        f'<div class="viewer-foot"><p id="viewer-text" role="status"></p>{colour_bar(scale)}</div>'
        '<p class="small">A white line surrounds what reaches the threshold. The decision is about the score, which comes from '
        "the patches before smoothing, by default from their highest quarter, so line and decision need not agree.</p></dialog>"
    )
