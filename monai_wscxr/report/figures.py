"""Tables of the report with intervals: operating points, figures by finding, figures by group of images.

They show what `evaluation.operating_points` computed and compute nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from monai_wscxr.report.case import MISSING, number_text

OPERATING_POINTS = (
    ("own", "the model's own threshold", "set without these images"),
    ("at_90", "90 % specificity", "threshold from the normal images of this evaluation"),
    ("at_95", "95 % specificity", "threshold from the normal images of this evaluation"),
)
"""Operating points in their order: key in the metrics, name, and where the threshold comes from."""
_KINDS = {"sex": "Sex", "age": "Age in years", "view": "View", "site": "Site", "device": "Device"}
_FEW = (
    '<p class="small">* says little: it rests on fewer than 10 patients, or its threshold on fewer than 3 patients above it. '
    "Intervals are of 95 %; patients, not images, were resampled.</p>"
)


def figure_text(figure: Mapping[str, float] | None) -> str:
    """Return a figure with its interval: `0.91 [0.85, 0.95]`, or `n/a`."""
    if figure is None:
        return MISSING
    return f"{figure['value']:.2f} [{figure['low']:.2f}, {figure['high']:.2f}]"


def operating_points(metrics: Mapping[str, Any]) -> str:
    """Return the operating points as HTML; empty where the metrics have none."""
    points = metrics.get("operating_points")
    if not points:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{name}<span class="small">{escape(source)}</span></th>'
        f"{_cell(points[key]['sensitivity'], points[key].get('few_normal', False))}"
        f"<td>{points[key]['specificity']:.2f}</td><td>{number_text(points[key]['threshold'])}</td></tr>"
        for key, name, source in OPERATING_POINTS
    )
    heads = "".join(f'<th scope="col">{name}</th>' for name in ("Sensitivity", "Specificity", "Threshold"))
    return (
        _wide(
            "Operating points",
            f'<thead><tr><th scope="col">Operating point</th>{heads}</tr></thead><tbody>{rows}</tbody>',
        )
        + f"<p>AUROC {figure_text(points['auroc'])}, {points['patients']} patients. The thresholds for 90 and 95 % specificity "
        "were read off these images: they say what the scores could do here, not what this model does.</p>"
    )


def findings_table(metrics: Mapping[str, Any]) -> str:
    """Return the figures by finding as HTML; empty without findings."""
    heads = ("Images", "AUROC", "Sensitivity", "at 90 %", "at 95 %")
    few = {n: metrics["operating_points"][f"at_{n}"]["few_normal"] for n in (90, 95)} if metrics.get("findings") else {}
    rows = [
        (
            name,
            [
                _cell(row["abnormal"]),
                *(_cell(row[key], row["few_abnormal"]) for key in ("auroc", "sensitivity")),
                *(_cell(row[f"sensitivity_{n}"], row["few_abnormal"] or few[n]) for n in few),
            ],
        )
        for name, row in (metrics.get("findings") or {}).items()
    ]
    if not rows:
        return ""
    words = (
        "<p>Each finding against all normal images; an image with several findings counts for each. Sensitivity at the model's "
        "own threshold, and at 90 and 95 % specificity with thresholds from the normal images of this evaluation.</p>"
    )
    return words + _table("By finding", "Finding", heads, rows) + _FEW


def group_tables(metrics: Mapping[str, Any]) -> str:
    """Return the figures by sex, age band, view, site and device as HTML; empty where nothing is known of them."""
    groups = metrics.get("groups") or {}
    if not groups:
        return ""
    heads = ("Normal", "Abnormal", "False positive rate", "Sensitivity", "AUROC")
    parts = [
        "<p>Rates at the model's own threshold. What neither the data list nor a header says counts as unknown.</p>",
    ]
    for kind, several in groups.items():
        rows = [
            (
                name,
                [
                    _cell(row["normal"]),
                    _cell(row["abnormal"]),
                    _cell(row["false_positive_rate"], row["few_normal"]),
                    _cell(row["sensitivity"], row["few_abnormal"]),
                    _cell(row["auroc"], row["few_normal"] or row["few_abnormal"]),
                ],
            )
            for name, row in several.items()
        ]
        parts.append(_table(f"By {kind}", _KINDS.get(kind, kind), heads, rows))
    return "".join(parts) + _FEW


def _table(label: str, first: str, heads: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Return a table; `rows` are names and cells as HTML."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in (first, *heads))
    body = "".join(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>' for name, cells in rows)
    return _wide(label, f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>")


def _wide(label: str, content: str) -> str:
    """Return a table that scrolls sideways on a narrow screen."""
    region = f'<div class="wide" tabindex="0" role="region" aria-label="{escape(label)}">'
    return f'{region}<table class="figures">{content}</table></div>'


def _cell(figure: Mapping[str, float] | int | None, few: bool = False) -> str:
    """Return a cell: a count, or a figure above its interval, marked where it rests on few patients."""
    if figure is None:
        return f'<td class="missing">{MISSING}</td>'
    if isinstance(figure, int):
        return f"<td>{figure}</td>"
    mark = "*" if few else ""
    interval = f"{figure['low']:.2f} to {figure['high']:.2f}"
    return f'<td><strong>{figure["value"]:.2f}</strong>{mark}<span class="small">{interval}</span></td>'
