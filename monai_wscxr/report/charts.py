"""Charts of the report as SVG text: anomaly scores by class, and the ROC curve.

The charts draw the given scores and decisions. Colours are CSS classes, styled in `template.html`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

import numpy as np

from monai_wscxr.report.case import KIND, MISSING, Case, class_text, number_text

DOTS_PER_CLASS = 400  # larger classes are thinned to evenly spaced ranks
_MARKS = {  # path from the centre: circle, diamond, square; shapes differ, so that labels can be told apart without colour
    "normal": "m-3 0a3 3 0 1 0 6 0a3 3 0 1 0 -6 0z",
    "abnormal": "m0 -4l4 4l-4 4l-4 -4z",
    "unknown": "m-2.5 -2.5h5v5h-5z",
}


def _ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers within [low, high]."""
    raw = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= raw * 0.999)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def strip_chart(cases: Sequence[Case], threshold: float) -> str:
    """Draw the scores of each class as a strip on a common axis, with the threshold as a vertical line; returns SVG."""
    groups: dict[tuple[int, str], list[Case]] = {}
    for case in cases:
        groups.setdefault((2 if case.label is None else case.label, class_text(case)), []).append(case)
    values = [float(case.anomaly_score) for case in cases] + [float(threshold)]
    margin = 0.03 * (max(values) - min(values)) or 0.5
    low, high = min(values) - margin, max(values) + margin

    def x(value: float) -> float:
        return 8 + 464 * (value - low) / (high - low)

    floor = 30 + 62 * len(groups)
    parts = [
        f'<path class="grid" d="M{x(tick):.1f} 26V{floor}"/>'
        f'<text class="quiet" x="{x(tick):.1f}" y="{floor + 16}" text-anchor="middle">{tick:.6g}</text>'
        for tick in _ticks(low, high)
    ]
    parts.append(f'<path class="cut" d="M{x(threshold):.1f} 20V{floor}"/>')
    for row, (_, group) in enumerate(sorted(groups.items(), key=lambda item: item[0])):
        parts.append(_strip(group, 30 + 62 * row, x))
    right = x(threshold) < 240
    words = f"threshold {number_text(float(threshold))}" + (", flagged →" if right else "")
    parts += [
        f'<path class="axis" d="M8 {floor}H472"/>',
        f'<text class="strong" x="{x(threshold) + (-4 if right else 4):.1f}" y="13" '
        f'text-anchor="{"start" if right else "end"}">{words}</text>',
        f'<text class="quiet" x="472" y="{floor + 32}" text-anchor="end">anomaly score, higher is more abnormal</text>',
    ]
    label = f"Anomaly scores of {len(cases)} images by class, with the threshold at {number_text(float(threshold))}"
    return f'<svg viewBox="0 0 480 {floor + 38}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _strip(group: Sequence[Case], top: float, x: Callable[[float], float]) -> str:
    """Draw one class of the score chart: name, a mark per image, quartile box and median."""
    ranked = sorted(group, key=lambda case: case.anomaly_score)
    keep = np.unique(np.linspace(0, len(ranked) - 1, min(len(ranked), DOTS_PER_CLASS)).round().astype(int))
    marks = []
    for position, index in enumerate(keep):
        case = ranked[index]
        # multiples of the golden ratio spread images of similar score evenly over the height of the strip
        y = top + 24 + 30 * ((position * 0.618034) % 1.0)
        title = f"<title>{escape(case.name)}: {number_text(float(case.anomaly_score))}</title>"
        marks.append(f'<path d="M{x(case.anomaly_score):.1f} {y:.1f}{_MARKS[KIND[case.label]]}">{title}</path>')
    first, middle, third = (x(q) for q in np.percentile([case.anomaly_score for case in ranked], (25, 50, 75)))
    text = f"{escape(class_text(ranked[0]))} ({len(ranked)})"
    return (
        f'<g class="{KIND[ranked[0].label]}"><g class="dots">{"".join(marks)}</g>'
        f'<rect class="box" x="{first:.1f}" y="{top + 22}" width="{third - first:.1f}" height="34"/>'
        f'<path class="median" d="M{middle:.1f} {top + 22}v34"/>'
        f'<text class="halo strong" x="10" y="{top + 15}">{text}</text></g>'
    )


def roc_chart(cases: Sequence[Case], threshold: float, auroc: str) -> str:
    """Draw the ROC curve of labelled cases, with the operating point; returns SVG.

    Args:
        cases: normal and abnormal cases, at least one of each.
        threshold: operating point on the anomaly score.
        auroc: area under the curve as text, or `n/a`.
    """
    label = np.array([bool(case.label) for case in cases])
    score = np.array([case.anomaly_score for case in cases], dtype=np.float64)
    if all(case.abnormal is not None for case in cases):
        flagged = np.array([bool(case.abnormal) for case in cases])
    else:
        flagged = score >= threshold
    alarms, found = float(flagged[~label].mean()), float(flagged[label].mean())

    def at(fpr: float, tpr: float) -> str:
        return f"{44 + 300 * fpr:.1f} {326 - 300 * tpr:.1f}"

    from sklearn.metrics import roc_curve  # slow to import, and predictions of unlabelled images have no curve

    fpr, tpr, _ = roc_curve(label, score)
    curve = "L".join(at(a, b) for a, b in zip(fpr, tpr, strict=True))
    grid = "".join(
        f'<path class="grid" d="M{at(0, t)}H344M{at(t, 0)}V26"/>'
        f'<text class="quiet" x="38" y="{330 - 300 * t:.0f}" text-anchor="end">{t:.0%}</text>'
        f'<text class="quiet" x="{44 + 300 * t:.0f}" y="342" text-anchor="middle">{t:.0%}</text>'
        for t in (0, 0.25, 0.5, 0.75, 1)
    )
    left = alarms < 0.4
    x, y = 44 + 300 * alarms + (12 if left else -12), min(max(326 - 300 * found + 22, 54), 296)
    anchor = "start" if left else "end"
    words = (
        f'<text class="halo strong" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
        f"threshold {number_text(float(threshold))}</text>"
        f'<text class="halo" x="{x:.1f}" y="{y + 16:.1f}" text-anchor="{anchor}">'
        f"finds {found:.0%}, false alarms {alarms:.0%}</text>"
    )
    area = (
        "" if auroc == MISSING else f'<text class="halo strong" x="338" y="316" text-anchor="end">AUROC {auroc}</text>'
    )
    summary = f"ROC curve; the threshold finds {found:.0%} of abnormal and flags {alarms:.0%} of normal images"
    return (
        f'<svg viewBox="0 0 360 364" role="img" aria-label="{summary}">{grid}'
        f'<path class="axis" stroke-dasharray="2 4" d="M{at(0, 0)}L{at(1, 1)}"/><path class="roc" d="M{curve}"/>'
        f'<circle class="point" cx="{44 + 300 * alarms:.1f}" cy="{326 - 300 * found:.1f}" r="5.5"/>{words}{area}'
        '<text class="quiet" x="344" y="359" text-anchor="end">normal images flagged (1 &minus; specificity)</text>'
        '<text class="quiet" x="6" y="12">abnormal images found (sensitivity)</text></svg>'
    )
