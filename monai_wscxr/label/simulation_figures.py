"""Tables and charts of a simulated labelling: AUROC over rounds, and its difference from labelling at random, draw by draw."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

BASE = "random"
"""The strategy that the others are compared with."""
_LEVEL = 0.95
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
_DASHES = ("", "6 3", "2 3", "9 3 2 3")

Curve = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
"""Middle, low and high end of a figure by round."""


def measured_rounds(settings: Mapping[str, Any]) -> list[int]:
    """Return the numbers of the rounds that are measured: the first one, each `every`-th, and the last one."""
    last = settings["rounds"]
    return [number for number in range(last + 1) if number % settings["every"] == 0 or number == last]


def figures(record: Mapping[str, Any], strategy: str, key: str) -> NDArray[np.float64]:
    """Collect one figure as [draws, measured rounds]; a draw whose archive ran out keeps its last value."""
    found = []
    for draw in range(record["settings"]["draws"]):
        rows = record["rounds"][f"{strategy}-{draw}"]
        found.append(
            [[r[key] for r in rows if r["round"] <= number][-1] for number in measured_rounds(record["settings"])]
        )
    return np.array(found, dtype=float)


def paired_difference(values: NDArray[np.float64], base: NDArray[np.float64]) -> Curve:
    """Return mean and 95 % interval (Student's t over the draws) of paired differences, by round.

    Args:
        values, base: [draws, rounds] of the same draws in the same order, at least two draws.
    """
    differences = values - base
    draws = len(differences)
    mean = differences.mean(0)
    half = stats.t.ppf((1 + _LEVEL) / 2, draws - 1) * differences.std(0, ddof=1) / math.sqrt(draws)
    return mean, mean - half, mean + half


def _differences(record: Mapping[str, Any]) -> dict[str, Curve]:
    """Return the paired differences of the AUROC from `BASE` by strategy; none without it or with a single draw."""
    settings = record["settings"]
    others = [name for name in settings["strategies"] if name != BASE]
    if BASE not in settings["strategies"] or settings["draws"] < 2:
        return {}
    base = figures(record, BASE, "auroc")
    return {name: paired_difference(figures(record, name, "auroc"), base) for name in others}


def table(record: Mapping[str, Any], command: str) -> str:
    """Format the results as Markdown."""
    settings = record["settings"]
    strategies = settings["strategies"]
    values = {s: (figures(record, s, "auroc"), figures(record, s, "abnormal_found")) for s in strategies}
    labelled = figures(record, strategies[0], "labelled")
    numbers = list(enumerate(measured_rounds(settings)))
    rows = []
    for n, number in numbers:
        cells = [f"{number}", f"{labelled[:, n].mean():.0f}"]
        for scores, found in values.values():
            column = scores[:, n]
            cells += [
                f"{column.mean():.3f} ({column.min():.3f} to {column.max():.3f})",
                f"{found[:, n].mean():.1f}",
            ]
        rows.append(cells)
    heads = [head for s in strategies for head in (f"{s}: AUROC mean (lowest to highest)", "abnormal labelled")]
    lines = _markdown(["round", "labelled", *heads], rows)
    if differences := _differences(record):
        lines += [
            "",
            f"AUROC minus that of {BASE} in the same draw, mean (95 % interval, Student's t over the draws):",
            "",
        ]
        rows = [
            [
                f"{number}",
                *(f"{mean[n]:+.3f} ({low[n]:+.3f} to {high[n]:+.3f})" for mean, low, high in differences.values()),
            ]
            for n, number in numbers
        ]
        lines += _markdown(["round", *differences], rows)
    seconds = np.concatenate([figures(record, s, "seconds").ravel() for s in strategies])
    cpu = np.concatenate([figures(record, s, "cpu_seconds").ravel() for s in strategies])
    pictures = [f"![{text}]({name})" for name, (text, _) in _drawn(record).items()]
    lines += [
        "",
        f"{settings['draws']} draws, {settings['per_round']} image(s) labelled per round, {settings['archive_normal']} normal "
        f"images in the archive. Retraining and ranking again: median {np.median(seconds):.1f} s, highest {seconds.max():.1f} "
        f"s; processor time {np.median(cpu):.1f} s.",
        "",
        *pictures,
        "",
        f"`{command}`; options {settings['options'] or 'defaults'}; {torch.get_num_threads()} threads.",
        "",
    ]
    return "\n".join(lines)


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads), *(f"| {' | '.join(row)} |" for row in rows)]


def charts(record: Mapping[str, Any]) -> dict[str, str]:
    """Draw the results as SVG, by file name: AUROC over rounds, and its paired difference where there is one."""
    return {name: drawn for name, (_, drawn) in _drawn(record).items()}


def _drawn(record: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return caption and SVG of each chart by file name."""
    numbers = measured_rounds(record["settings"])
    scores = {s: figures(record, s, "auroc") for s in record["settings"]["strategies"]}
    curves = {s: (v.mean(0), v.min(0), v.max(0)) for s, v in scores.items()}
    low = float(np.floor(20 * min(v.min() for v in scores.values())) / 20)
    found = {
        "results.svg": ("AUROC over rounds", _chart(numbers, curves, low, 1.0, "AUROC of test images; band: all draws"))
    }
    if differences := _differences(record):
        ends = np.concatenate([np.concatenate(curve) for curve in differences.values()])
        bottom, top = (
            float(f(50 * v) / 50) for f, v in ((np.floor, min(ends.min(), 0)), (np.ceil, max(ends.max(), 0)))
        )
        title = f"AUROC minus that of {BASE} in the same draw; band: 95 % interval"
        drawn = _chart(numbers, differences, bottom, max(top, bottom + 0.02), title, 0.0)
        found["differences.svg"] = (f"AUROC minus that of {BASE}, over rounds", drawn)
    return found


def _chart(
    numbers: Sequence[int],
    curves: Mapping[str, Curve],
    low: float,
    high: float,
    title: str,
    line: float | None = None,
) -> str:
    """Draw curves with their bands over the rounds as SVG.

    Args:
        numbers: rounds that were measured.
        curves: by strategy.
        low, high: ends of the axis.
        title: plain text.
        line: value that is marked.
    """
    last = numbers[-1]

    def at(number: int, value: float) -> str:
        return f"{50 + 430 * number / max(last, 1):.1f} {270 - 240 * (value - low) / (high - low):.1f}"

    parts = ['<rect width="640" height="320" fill="white"/>', f'<text x="50" y="18">{title}</text>']
    for step in range(6):
        value = low + (high - low) * step / 5
        parts.append(f'<path d="M{at(0, value)}H480" stroke="#ddd"/>')
        parts.append(f'<text x="44" y="{270 - 48 * step + 4}" text-anchor="end">{value:.2f}</text>')
    if line is not None:
        parts.append(f'<path d="M{at(0, line)}H480" stroke="#222"/>')
    parts += [f'<text x="{at(n, low).split()[0]}" y="288" text-anchor="middle">{n}</text>' for n in numbers]
    parts.append('<text x="265" y="310" text-anchor="middle">rounds of labelling</text>')
    for number, (strategy, (middle, bottom, top)) in enumerate(curves.items()):
        colour, dash = _COLOURS[number % len(_COLOURS)], _DASHES[number % len(_DASHES)]
        edge = [at(n, v) for n, v in zip(numbers, top, strict=True)]
        edge += [at(n, v) for n, v in zip(numbers, bottom, strict=True)][::-1]
        curve = "L".join(at(n, v) for n, v in zip(numbers, middle, strict=True))
        stroke = f'stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}" fill="none"'
        parts.append(f'<path d="M{"L".join(edge)}Z" fill="{colour}" opacity="0.15"/>')
        parts.append(f'<path d="M{curve}" {stroke}/>')
        y = 40 + 24 * number
        parts.append(f'<path d="M490 {y}H516" {stroke}/><text x="522" y="{y + 4}">{strategy.replace("_", " ")}</text>')
    style = 'font-family="sans-serif" font-size="12" fill="#222"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 320" {style}>{"".join(parts)}</svg>\n'
