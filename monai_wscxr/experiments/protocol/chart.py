"""The chart of a table: AUROC against the number of abnormal training images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

Key = tuple[str, int | None]  # method or variant, k

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#222222")
_DASHES = ("", "6 3", "2 3", "8 3 2 3", "4 4", "10 3", "1 2", "5 2 1 2")  # coprime to the colours: all pairs differ


def chart(summary: Mapping[Key, Mapping[str, Any]], titles: Mapping[str, str]) -> str:
    """Draw honest AUROC against k, with a line and interval per method; returns SVG.

    Methods that learn from normal images only are horizontal lines.

    Args:
        summary: `Table.summary`.
        titles: `Table.titles`.
    """
    ks = sorted({k for _, k in summary if k is not None}) or [1]
    values = [s["honest"]["auroc"] for s in summary.values()]
    low = min(0.95, math.floor(20 * min(v["low"] for v in values)) / 20)  # room below 1 even if all are perfect
    names = list(dict.fromkeys(name for name, _ in summary))

    def place(k: int) -> float:
        """Return the place of k on the axis: equal steps for doubled k, and one more down to 0."""
        return math.log2(k) if k else -1.0

    def x(k: int) -> float:
        span = place(ks[-1]) - place(ks[0])
        return 50 + 380 * ((place(k) - place(ks[0])) / span if span else 0.5)

    def y(value: float) -> float:
        return 300 - 270 * (value - low) / (1 - low)

    height = max(350, 24 * len(names) + 30)
    parts = [f'<rect width="760" height="{height}" fill="white"/>']
    for step in range(6):
        value = low + (1 - low) * step / 5
        parts.append(f'<path d="M50 {y(value):.1f}H430" stroke="#ddd"/>')
        parts.append(f'<text x="44" y="{y(value) + 4:.1f}" text-anchor="end">{value:.2f}</text>')
    parts += [f'<text x="{x(k):.1f}" y="318" text-anchor="middle">{k}</text>' for k in ks]
    parts.append('<text x="240" y="340" text-anchor="middle">abnormal training images per class (k)</text>')
    parts.append('<text x="50" y="18">AUROC, honest; bars: 95 % over test images</text>')
    for number, name in enumerate(names):
        colour, dash = _COLOURS[number % len(_COLOURS)], _DASHES[number % len(_DASHES)]
        line = f'stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}" fill="none"'
        points = sorted((k, s["honest"]["auroc"]) for (n, k), s in summary.items() if n == name and k is not None)
        if points:
            path = "L".join(f"{x(k):.1f} {y(f['mean']):.1f}" for k, f in points)
            parts.append(f'<path d="M{path}" {line}/>')
            for k, f in points:
                at = x(k) + 3 * (number - len(names) / 2)
                parts.append(f'<path d="M{at:.1f} {y(f["low"]):.1f}V{y(f["high"]):.1f}" stroke="{colour}"/>')
                parts.append(f'<circle cx="{x(k):.1f}" cy="{y(f["mean"]):.1f}" r="3.5" fill="{colour}"/>')
        else:
            f = summary[(name, None)]["honest"]["auroc"]
            top, thickness = y(f["high"]), y(f["low"]) - y(f["high"])
            parts.append(
                f'<rect x="50" y="{top:.1f}" width="380" height="{thickness:.1f}" fill="{colour}" opacity="0.1"/>'
            )
            parts.append(f'<path d="M50 {y(f["mean"]):.1f}H430" {line}/>')
        at = 40 + 24 * number
        parts.append(f'<path d="M450 {at}H480" {line}/><text x="488" y="{at + 4}">{escape(titles[name])}</text>')
    style = 'font-family="sans-serif" font-size="12" fill="#222"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {height}" {style}>{"".join(parts)}</svg>\n'
