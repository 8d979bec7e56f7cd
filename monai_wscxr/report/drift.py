"""Page on drift: shift and flagged share by week, device and view, and the test martingale over the stream."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from monai_wscxr.model.calibration import ColourScale
from monai_wscxr.model.drift import LIMIT, Drift
from monai_wscxr.report.page import DISCLAIMER, notes_box, plural, write_page

_POINTS = 400  # longer curves are thinned


@dataclass(frozen=True)
class Group:
    """Images of one week, run, device or view.

    Attributes:
        name: of the group.
        images, flagged: numbers of scored and of flagged images.
        drift: comparison with the normals that calibrate the model.
    """

    name: str
    images: int
    flagged: int
    drift: Drift


def write_drift_report(
    path: str | os.PathLike[str],
    groups: Mapping[str, Sequence[Group]],
    martingale: NDArray[np.float64],
    alarm: float,
    notes: Sequence[str],
    scale: ColourScale,
) -> Path:
    """Write the page, atomically.

    Args:
        path: the HTML file.
        groups: by the name of the grouping; the first grouping is drawn in its order.
        martingale: [T] base-10 logarithm of the martingale after each image.
        alarm: its value at which exchangeability is rejected.
        notes: sentences below the headline.
        scale: colour scale of the model.
    """
    first = next(iter(groups))
    named = sum(group.drift.named is True for group in groups[first])
    words = f"Drift in {named} of {plural(len(groups[first]), first, first + 's')}" if named else "No drift"
    headline = (
        f'<p class="headline"><strong>{words}</strong>{plural(len(martingale), "image", "images")}</p>\n'
        f'<p class="research">{DISCLAIMER}</p>\n{notes_box(notes)}'
    )
    sections = [
        (
            "course",
            "Course",
            f'<div class="charts"><figure>{shift_chart(groups[first])}<figcaption class="small">Shift of the image features by '
            f"{escape(first)}, in variances of normal images; the line is the limit.</figcaption></figure>"
            f'<figure>{martingale_chart(martingale, alarm)}<figcaption class="small">Test martingale over the images in order. '
            "While images are like the normals of the calibration, it reaches the line in at most 1 % of streams."
            "</figcaption></figure></div>",
        ),
        *((f"by-{name}", f"By {name}", _table(name, several)) for name, several in groups.items()),
    ]
    return write_page(path, "WSCXR drift", headline, sections, scale)


def shift_chart(groups: Sequence[Group]) -> str:
    """Draw the shift of each group as a bar, with the limit as a line; returns SVG."""
    shifts = [max(0.0, group.drift.shift) if not math.isnan(group.drift.shift) else 0.0 for group in groups]
    top = max([*shifts, 2 * LIMIT])
    width, floor = min(60.0, 464 / max(1, len(groups))), 180
    parts = []
    for n, (group, shift) in enumerate(zip(groups, shifts, strict=True)):
        height = 150 * shift / top
        kind = "abnormal" if group.drift.named else "normal"
        words = "too few images" if group.drift.named is None else f"shift {group.drift.shift:.2f}"
        parts.append(
            f'<g class="{kind}"><path class="dots" d="M{8 + n * width + 1:.1f} {floor}v{-max(height, 1):.1f}'
            f'h{max(width - 2, 1):.1f}V{floor}z"><title>{escape(group.name)}: {words}</title></path></g>'
        )
    line = floor - 150 * LIMIT / top
    ends = f'<text class="quiet" x="8" y="{floor + 16}">{escape(groups[0].name)}</text>'
    if len(groups) > 1:
        last = 8 + len(groups) * width
        ends += (
            f'<text class="quiet" x="{last:.1f}" y="{floor + 16}" text-anchor="end">{escape(groups[-1].name)}</text>'
        )
    return (
        f'<svg viewBox="0 0 480 {floor + 24}" role="img" aria-label="Shift of {len(groups)} groups, limit {LIMIT:g}">'
        f'{"".join(parts)}<path class="cut" d="M8 {line:.1f}H472"/><path class="axis" d="M8 {floor}H472"/>'
        f'<text class="strong" x="472" y="{line - 4:.1f}" text-anchor="end">limit {LIMIT:g}</text>{ends}</svg>'
    )


def martingale_chart(values: NDArray[np.float64], alarm: float) -> str:
    """Draw the martingale [T] (base-10 logarithm), with its alarm as a line; returns SVG."""
    keep = np.unique(np.linspace(0, len(values) - 1, min(len(values), _POINTS)).round().astype(int))
    low, high = min(float(values.min()), -1.0), max(float(values.max()), alarm + 0.5)
    floor = 180

    def y(value: float) -> float:
        return floor - 160 * (value - low) / (high - low)

    steps = " ".join(f"{8 + 464 * n / max(1, len(values) - 1):.1f},{y(float(values[n])):.1f}" for n in keep)
    return (
        f'<svg viewBox="0 0 480 {floor + 24}" role="img" aria-label="Test martingale over {len(values)} images, highest '
        f'10 to the {float(values.max()):.1f}"><path class="cut" d="M8 {y(alarm):.1f}H472"/>'
        f'<polyline class="roc" points="{steps}" fill="none"/><path class="axis" d="M8 {floor}H472"/>'
        f'<text class="strong" x="8" y="{y(alarm) - 4:.1f}">10^{alarm:g}</text>'
        f'<text class="quiet" x="472" y="{floor + 16}" text-anchor="end">images</text></svg>'
    )


def _table(name: str, groups: Sequence[Group]) -> str:
    """Return the table of one grouping as HTML."""
    rows = []
    for group in groups:
        words = {None: "too few images", True: "drift", False: "no drift"}[group.drift.named]
        shift = "" if math.isnan(group.drift.shift) else f"{group.drift.shift:.2f}"
        rows.append(
            f'<tr><th scope="row">{escape(group.name)}</th><td class="figure">{group.images}</td>'
            f'<td class="figure">{group.flagged / group.images:.1%}</td><td class="figure">{shift}</td><td>{words}</td></tr>'
        )
    heads = "".join(f'<th scope="col">{head}</th>' for head in (escape(name), "images", "flagged", "shift", "drift"))
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
