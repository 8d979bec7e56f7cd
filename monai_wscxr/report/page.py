"""Frame of all report pages: template, headline parts, colour bar, settings and times.

A page is one HTML file that loads nothing from a network. Style and scripts are in `template.html`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template

from monai_wscxr.model.calibration import ColourScale
from monai_wscxr.report.case import MISSING, number_text
from monai_wscxr.report.overlay import colour_bar_symbol
from monai_wscxr.system.atomic import write_text_atomic

DISCLAIMER = "For research use only. Not a medical device; not for diagnosis."

_TEMPLATE = Path(__file__).with_name("template.html")


def write_page(
    path: str | os.PathLike[str],
    title: str,
    headline: str,
    sections: Sequence[tuple[str, str, str]],
    scale: ColourScale,
    images: str = "data:",
    opaque: bool = False,
) -> Path:
    """Fill the template and write the page, atomically.

    Args:
        path: the HTML file; its folder is created.
        title: plain text.
        headline: HTML.
        sections: (key, heading, HTML content) in order.
        scale: colour scale of the model.
        images: allowed sources of images, as in a Content Security Policy.
        opaque: the page shows maps without a radiograph, too, so the colour bar has their colours.

    Returns:
        Path of the HTML file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_text_atomic(path, page_text(title, headline, sections, scale, images, opaque))


def page_text(
    title: str,
    headline: str,
    sections: Sequence[tuple[str, str, str]],
    scale: ColourScale,
    images: str = "data:",
    opaque: bool = False,
) -> str:
    """Return the page as text; arguments as of `write_page`."""
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(title),
        images=images,
        symbols=colour_bar_symbol(scale, opaque),
        headline=headline,
        links="".join(f'<li><a href="#{key}">{name}</a></li>' for key, name, _ in sections),
        body="\n".join(
            f'<section id="{key}"><h2>{name}</h2>\n{content}\n</section>' for key, name, content in sections
        ),
        disclaimer=DISCLAIMER,
    )


def p_value_text(value: float | None) -> str:
    """Return a p-value as HTML text."""
    if value is None:
        return MISSING
    return "&lt; 0.001" if value < 0.001 else f"{value:.3f}"


def plural(count: int, one: str, many: str) -> str:
    """Return a count with its noun in singular or plural."""
    return f"{count} {one if count == 1 else many}"


def notes_box(notes: Sequence[str]) -> str:
    """Return the box with notes below the headline; empty without notes."""
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<div class="notes" role="note"><ul>{items}</ul></div>' if notes else ""


def colour_bar(scale: ColourScale) -> str:
    """Return the colour bar as HTML, a reference to the symbol that the page defines once."""
    ends = f"Colour scale from {number_text(float(scale.low))} to {number_text(float(scale.high))}"
    return f'<svg viewBox="0 0 320 46" role="img" aria-label="{ends}"><use href="#colour-bar"></use></svg>'


def run_section(settings: Mapping[str, object], seconds: Mapping[str, float] | None) -> str:
    """Return settings and times as HTML tables; empty tables are left out."""

    def table(caption: str, rows: Iterable[tuple[str, str]], kind: str) -> str:
        body = "".join(f'<tr><th scope="row">{escape(k)}</th><td{kind}>{escape(v)}</td></tr>' for k, v in rows)
        return f"<table><caption>{caption}</caption><tbody>{body}</tbody></table>" if body else ""

    texts = ((str(k), v if isinstance(v, str) else json.dumps(v, default=str)) for k, v in settings.items())
    times = ((str(k), _duration(float(v))) for k, v in (seconds or {}).items())
    both = table("Settings", texts, "") + table("Time per stage", times, ' class="figure"')
    return f'<div class="two">{both}</div>' if both else ""


def _duration(seconds: float) -> str:
    """Format a duration in seconds, minutes or hours."""
    if not math.isfinite(seconds):
        return MISSING
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
