"""Weekly report of a DICOM node as a page: alarm rate, drift and reasons without a score, by week, device and view."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from monai_wscxr.model.calibration import ColourScale
from monai_wscxr.model.drift import Drift
from monai_wscxr.report import drift as drift_report
from monai_wscxr.report.page import DISCLAIMER, notes_box, page_text, plural

_VERDICTS = {
    None: "no image scored",
    "within": "as promised, if all were normal",
    "above": "above the promise",
    "below": "below the promise",
}


@dataclass(frozen=True)
class Rate:
    """Share of flagged images.

    Attributes:
        scored, flagged: numbers of scored and of flagged images.
        low, high: ends of the interval of the share.
        promised: largest share of normal images that the model's operating point flags.
    """

    scored: int
    flagged: int
    low: float
    high: float
    promised: float

    @property
    def verdict(self) -> str | None:
        """Where the interval lies: "within" when it holds the promised rate, "above", or "below"; None without images."""
        if not self.scored:
            return None
        return "above" if self.low > self.promised else "below" if self.high < self.promised else "within"

    def to_dict(self) -> dict[str, Any]:
        """Return the rate as JSON values."""
        share = self.flagged / self.scored if self.scored else None
        return {
            "scored": self.scored,
            "flagged": self.flagged,
            "flagged_share": share,
            "interval": [self.low, self.high] if self.scored else None,
            "verdict": self.verdict,
        }

    def text(self) -> str:
        """Return share and interval as plain text."""
        if not self.scored:
            return ""
        return f"{self.flagged / self.scored:.1%} ({self.low:.1%} to {self.high:.1%})"


@dataclass(frozen=True)
class Group:
    """Images of one device or view.

    Attributes:
        name: of the group.
        rate: its share of flagged images.
        drift: comparison with the normals that calibrate the model.
    """

    name: str
    rate: Rate
    drift: Drift

    def to_dict(self) -> dict[str, Any]:
        """Return the group as JSON values."""
        return {"name": self.name, **self.rate.to_dict(), "drift": self.drift.to_dict()}


@dataclass(frozen=True)
class Week:
    """Images that arrived in one week.

    Attributes:
        name: ISO week, such as "2026-W48".
        received: number of images with a score or a reason.
        rate: share of flagged images among those with a score.
        drift: comparison with the normals that calibrate the model.
        reasons: number of images by reason code, the most frequent ones first.
        without: number of images with any reason.
    """

    name: str
    received: int
    rate: Rate
    drift: Drift
    reasons: Mapping[str, int]
    without: int

    def to_dict(self) -> dict[str, Any]:
        """Return the week as JSON values."""
        return {
            "week": self.name,
            "received": self.received,
            **self.rate.to_dict(),
            "drift": self.drift.to_dict(),
            "reasons": dict(self.reasons),
            "with_reason": self.without,
        }


@dataclass(frozen=True)
class Weekly:
    """The report.

    Attributes:
        weeks: in order.
        groups: by "device" and "view", over all weeks; missing where no header tells.
        promised: largest share of normal images that the operating point flags.
        promise: the same in words.
        level: of the intervals.
        fewest: images below which nothing is said about drift.
        model: folder of the model.
    """

    weeks: Sequence[Week]
    groups: Mapping[str, Sequence[Group]]
    promised: float
    promise: str
    level: float
    fewest: int
    model: str

    @property
    def drift_now(self) -> Drift | None:
        """Drift of the latest week of which enough images arrived; None without one."""
        return next((week.drift for week in reversed(self.weeks) if week.drift.named is not None), None)

    @property
    def command(self) -> str | None:
        """The command that adapts the model to the site, where drift is named."""
        if self.drift_now is None or not self.drift_now.named:
            return None
        return f"monai-wscxr adapt --model {shlex.quote(self.model)} --normals DIR --output NEW"

    def sentences(self) -> list[str]:
        """Return what the latest week says, as sentences."""
        if not self.weeks:
            return ["No image has been scored yet."]
        last = self.weeks[-1]
        found = []
        if last.rate.scored:
            words = {
                "above": "more than the operating point promises for normal images: abnormal images, or drift",
                "below": "fewer than the operating point promises for normal images",
                "within": "which the promise for normal images would allow",
            }[last.rate.verdict or "within"]
            found.append(f"Week {last.name}: {last.rate.text()} of {last.rate.scored} images flagged, {words}.")
        else:
            found.append(f"Week {last.name}: no image scored.")
        found.append(f"Promise: {self.promise}.")
        if self.command is not None:
            assert self.drift_now is not None
            found.append(
                f"DRIFT: the {self.drift_now.images} images of the latest week are unlike the normals that the model was "
                f"calibrated on (shift {self.drift_now.shift:.2f}, limit {self.drift_now.limit:.2g}): p-values and flags "
                "cannot be relied on. Adapt the model with a folder of normal radiographs of the site, then restart the node "
                "with the new one."
            )
        elif self.drift_now is None:
            found.append(f"Drift is unknown: that takes {self.fewest} images of a week, and a model with a reference.")
        else:
            found.append("No drift.")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "promised_rate": self.promised,
            "interval_level": self.level,
            "weeks": [week.to_dict() for week in self.weeks],
            "groups": {name: [group.to_dict() for group in several] for name, several in self.groups.items()},
            "drift": None if self.drift_now is None else self.drift_now.named,
            "adapt": self.command,
            "sentences": self.sentences(),
        }


def weekly_page(report: Weekly, scale: ColourScale) -> str:
    """Return the report as an HTML page.

    Args:
        report: the report.
        scale: colour scale of the model.
    """
    named = report.drift_now is not None and report.drift_now.named
    last = report.weeks[-1] if report.weeks else None
    words = "Drift" if named else "No drift" if report.drift_now else "Drift unknown"
    count = "" if last is None else f"{plural(last.received, 'image', 'images')} in week {escape(last.name)}"
    headline = (
        f'<p class="headline"><strong>{words}</strong>{count}</p>\n<p class="research">{DISCLAIMER}</p>\n'
        f"{notes_box(report.sentences())}"
    )
    if report.command is not None:
        headline += f"<pre><code>{escape(report.command)}</code></pre>"
    sections = []
    if report.weeks:
        weeks = [
            drift_report.Group(week.name, week.rate.scored, week.rate.flagged, week.drift) for week in report.weeks
        ]
        caption = f"Bars: {report.level:.0%} interval; dashed: promised for normal images, {report.promised:.1%}."
        charts = (
            f'<div class="charts"><figure>{rate_chart(report.weeks)}<figcaption class="small">Share of flagged images by week '
            f"of arrival. {caption}</figcaption></figure><figure>{drift_report.shift_chart(weeks)}"
            '<figcaption class="small">Shift of the image features by week, in variances of normal images; the line is the '
            "limit.</figcaption></figure></div>"
        )
        sections = [("course", "Course", charts), ("by-week", "By week", _weeks(report.weeks))]
        sections += [(f"by-{name}", f"By {name}", _groups(name, several)) for name, several in report.groups.items()]
        sections.append(("reasons", "Without a score, or not stored", _reasons(report.weeks)))
    return page_text("WSCXR node: weekly report", headline, sections, scale)


def rate_chart(weeks: Sequence[Week]) -> str:
    """Draw the share of flagged images of each week with its interval, and the promised rate as a line; returns SVG."""
    promised = weeks[0].rate.promised
    top = min(1.0, 1.1 * max(2 * promised, *(week.rate.high for week in weeks if week.rate.scored), 0.1))
    step, floor = 464 / len(weeks), 180

    def y(share: float) -> float:
        return floor - 160 * min(share / top, 1.0)

    parts = []
    for n, week in enumerate(weeks):
        if not week.rate.scored:
            continue
        x = 8 + (n + 0.5) * step
        kind = "abnormal" if week.rate.verdict == "above" else "normal"
        parts.append(
            f'<g class="{kind}"><title>{escape(week.name)}: {week.rate.text()}</title>'
            f'<path class="axis" d="M{x:.1f} {y(week.rate.low):.1f}V{y(week.rate.high):.1f}"/>'
            f'<circle class="dots" cx="{x:.1f}" cy="{y(week.rate.flagged / week.rate.scored):.1f}" r="4"/></g>'
        )
    ends = f'<text class="quiet" x="8" y="{floor + 16}">{escape(weeks[0].name)}</text>'
    if len(weeks) > 1:
        ends += f'<text class="quiet" x="472" y="{floor + 16}" text-anchor="end">{escape(weeks[-1].name)}</text>'
    return (
        f'<svg viewBox="0 0 480 {floor + 24}" role="img" aria-label="Share of flagged images in {len(weeks)} weeks">'
        f'{"".join(parts)}<path class="cut" d="M8 {y(promised):.1f}H472"/><path class="axis" d="M8 {floor}H472"/>'
        f'<text class="strong" x="472" y="{y(promised) - 4:.1f}" text-anchor="end">promised {promised:.1%}</text>{ends}</svg>'
    )


def _drift_cells(found: Drift) -> str:
    words = {None: "unknown", True: "drift", False: "no drift"}[found.named]
    shift = "" if math.isnan(found.shift) else f"{found.shift:.2f}"
    return f'<td class="figure">{shift}</td><td>{words}</td>'


def _weeks(weeks: Sequence[Week]) -> str:
    rows = [
        f'<tr><th scope="row">{escape(week.name)}</th><td class="figure">{week.received}</td>'
        f'<td class="figure">{week.without}</td><td class="figure">{week.rate.text()}</td>'
        f"<td>{_VERDICTS[week.rate.verdict]}</td>{_drift_cells(week.drift)}</tr>"
        for week in weeks
    ]
    return _table(("week of arrival", "images", "with a reason", "flagged", "alarm rate", "shift", "drift"), rows)


def _groups(name: str, groups: Sequence[Group]) -> str:
    rows = [
        f'<tr><th scope="row">{escape(group.name)}</th><td class="figure">{group.rate.scored}</td>'
        f'<td class="figure">{group.rate.text()}</td><td>{_VERDICTS[group.rate.verdict]}</td>{_drift_cells(group.drift)}</tr>'
        for group in groups
    ]
    return _table((name, "scored", "flagged", "alarm rate", "shift", "drift"), rows)


def _reasons(weeks: Sequence[Week]) -> str:
    codes = list(dict.fromkeys(code for week in reversed(weeks) for code in week.reasons))
    if not codes:
        return "<p>none</p>"
    rows = [
        f'<tr><th scope="row">{escape(week.name)}</th>'
        + "".join(f'<td class="figure">{week.reasons.get(code, "")}</td>' for code in codes)
        + "</tr>"
        for week in weeks
    ]
    return _table(("week of arrival", *codes), rows)


def _table(heads: Sequence[str], rows: Sequence[str]) -> str:
    cells = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
