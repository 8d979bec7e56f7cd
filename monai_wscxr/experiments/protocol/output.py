"""Files of a finished table: results.csv (cells), summary.csv, findings.csv, results.md, results.svg and protocol.json."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from monai_wscxr.experiments.protocol.metrics import (
    BY_FINDING,
    HONEST,
    PAPER,
    Bootstrap,
    finding_metrics,
    interval,
    summarise,
)
from monai_wscxr.model.calibration import percent
from monai_wscxr.report.predictions import escape_cell
from monai_wscxr.system.atomic import write_text_atomic

NAMES = {
    "wscxr": "WSCXR",
    "discriminant": "LDA on image means",
    "logistic": "logistic regression on image means",
    "nearest": "nearest normal image mean",
    "patchcore": "PatchCore",
    "simplenet": "SimpleNet",
    "cutpaste": "CutPaste",
}
VARIANTS = {"neither": "neither", "mining": "mining only", "mixing": "mixing only", "both": "mining and mixing"}
_TITLES = {
    "auroc": "AUROC",
    "accuracy": "accuracy",
    "f1": "F1",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "sensitivity_90": "sensitivity at 90 %",
    "sensitivity_95": "sensitivity at 95 %",
}
T = TypeVar("T")
Key = tuple[str, int | None]  # method or variant, k


def write_tables(
    folder: Path,
    table: str,
    results: Sequence[dict[str, Any]],
    labels: Sequence[int],
    patients: NDArray[np.int64],
    findings: Sequence[Sequence[str]],
    record: dict[str, Any],
) -> Path:
    """Write all files, each atomically.

    Args:
        folder: output folder of the protocol.
        table: "table1" or "table2".
        results: results of all cells.
        labels: labels of the test images, in the order of the cells' scores.
        patients: number of the patient of each of them.
        findings: findings of each of them, none of a normal one.
        record: command, versions and settings of the run.

    Returns:
        Path of the Markdown file.
    """
    bootstrap = Bootstrap(labels, patients)
    grouped: dict[Key, list[dict[str, Any]]] = {}
    for result in results:
        grouped.setdefault((result["variant"] or result["method"], result["k"]), []).append(result)
    summary = {key: summarise(cells, bootstrap) for key, cells in grouped.items()}
    by_finding = {key: finding_metrics(labels, findings, cells) for key, cells in grouped.items()}
    write_text_atomic(folder / "findings.csv", _findings_csv(by_finding))
    write_text_atomic(folder / "results.csv", _cells_csv(results))
    write_text_atomic(folder / "summary.csv", _summary_csv(summary))
    write_text_atomic(folder / "results.svg", chart(summary))
    write_text_atomic(folder / "protocol.json", json.dumps(record, indent=1))
    path = folder / "results.md"
    write_text_atomic(path, markdown(table, summary, by_finding, results, labels, record))
    return path


def title(name: str) -> str:
    """Return the readable name of a method or variant."""
    return NAMES.get(name) or VARIANTS.get(name, name)


def _cells_csv(results: Sequence[dict[str, Any]]) -> str:
    """Return the content of results.csv, one row per cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["method", "variant", "k_per_class", "seed"]
        + [f"honest_{name}" for name in (*HONEST, "specificity_90", "specificity_95", "threshold")]
        + [f"paper_{name}" for name in PAPER]
        + ["seconds"]
    )
    for r in results:
        honest = [f"{r['honest'][n]:.6f}" for n in (*HONEST, "specificity_90", "specificity_95", "threshold")]
        paper = [f"{r['paper'][name]:.6f}" for name in PAPER]
        k = "-" if r["k"] is None else r["k"]
        writer.writerow([r["method"], r["variant"], k, r["seed"], *honest, *paper, f"{r['seconds']:.1f}"])
    return text.getvalue()


def _summary_csv(summary: dict[Key, dict[str, Any]]) -> str:
    """Return the content of summary.csv, one row per method, k and metric."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "k_per_class", "seeds", "rules", "figure", "mean", "sd_over_seeds", "low_95", "high_95"])
    for (name, k), s in summary.items():
        start = [name, "-" if k is None else k, s["seeds"]]
        for metric, spread in s["honest"].items():
            values = [f"{spread[part]:.6f}" for part in ("mean", "sd", "low", "high")]
            writer.writerow([*start, "honest", metric, *values])
        for metric, mean in s["paper"].items():
            writer.writerow([*start, "paper", metric, f"{mean:.6f}", "", "", ""])
    return text.getvalue()


def markdown(
    table: str,
    summary: dict[Key, dict[str, Any]],
    by_finding: dict[Key, dict[str, dict[str, float]]],
    results: Sequence[dict[str, Any]],
    labels: Sequence[int],
    record: dict[str, Any],
) -> str:
    """Return the content of results.md: the tables, their differences, and how they were computed."""
    heading = "Comparison of methods" if table == "table1" else "Ablation: mining and mixing"
    classes = [name for name in record["images"].get("training", {}) if name != "normal"]
    lines = [
        f"# {heading}",
        "",
        f"k counts abnormal training images **per class**; there are {len(classes)} classes ({', '.join(classes)}), so k = "
        f"{record['k'][-1]} means up to {record['k'][-1] * len(classes)} abnormal images. Methods with k `-` learn from "
        f"normal images only. {labels.count(0)} normal and {labels.count(1)} abnormal test images; "
        f"mean over {record['seeds']} seeds ± standard deviation over seeds; in brackets the 95 % interval over 1,000 "
        "resamples of the patients of the test images.",
        "",
        "## Honest: nothing chosen on test images",
        "",
        "Last epoch; thresholds from held-out normal images, for the operating point and for 90 and 95 % specificity.",
        "",
        "| method | k | " + " | ".join(_TITLES[n] for n in HONEST) + " |",
        "|" + "---|" * (2 + len(HONEST)),
    ]
    for (name, k), s in _ordered(summary):
        cells = [_spread(s["honest"][n], s["seeds"], bracket=n == "auroc") for n in HONEST]
        lines.append(f"| {title(name)} | {'-' if k is None else k} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "## Paper: epoch and threshold chosen on the test images (optimistic)",
        "",
        "By the published rules, only for comparison with published tables; sensitivities are read off the test ROC.",
        "",
        "| method | k | " + " | ".join(_TITLES[n] for n in PAPER) + " |",
        "|" + "---|" * (2 + len(PAPER)),
    ]
    for (name, k), s in _ordered(summary):
        cells = [f"{s['paper'][n]:.3f}" for n in PAPER]
        lines.append(f"| {title(name)} | {'-' if k is None else k} | " + " | ".join(cells) + " |")
    lines += _by_finding(by_finding)
    lines += ["", "## Differences in honest AUROC", "", *_differences(table, summary), ""]
    lines += _false_positives(results)
    lines += [
        "![AUROC over k](results.svg)",
        "",
        "## How this was computed",
        "",
        "```",
        record["command"] or "(library call)",
    ]
    lines += [
        "```",
        "",
        f"monai_wscxr {record['monai_wscxr']} (code and configurations {record['code']}), Python {record['python']}, "
        + ", ".join(f"{name} {version}" for name, version in record["packages"].items())
        + f"; {record['machine']}.",
        f"Options: {record['options'] or 'defaults'}. Features {record['features']}, split {record['split']}.",
        f"Features took {record['seconds']['features']:.0f} s, this run {record['seconds']['this run']:.0f} s, all cells "
        f"together {sum(r['seconds'] for r in results):.0f} s ("
        + ", ".join(f"{title(n)} {_mean_seconds(results, n):.1f}" for n in dict.fromkeys(r["method"] for r in results))
        + " s each).",
        "",
    ]
    return "\n".join(lines)


def _findings_csv(by_finding: dict[Key, dict[str, dict[str, float]]]) -> str:
    """Return the content of findings.csv, one row per method, k and finding."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "k_per_class", "finding", "images", *BY_FINDING])
    for (name, k), found in by_finding.items():
        for finding, row in found.items():
            figures = [f"{row[figure]:.6f}" for figure in BY_FINDING]
            writer.writerow([name, "-" if k is None else k, escape_cell(finding), row["images"], *figures])
    return text.getvalue()


def _by_finding(by_finding: dict[Key, dict[str, dict[str, float]]]) -> list[str]:
    """Return the section of figures by finding, of each method with its largest k."""
    largest = max((k for _, k in by_finding if k is not None), default=None)
    shown = [(key, found) for key, found in _ordered(by_finding) if key[1] in (None, largest)]
    names = [title(name) if k is None else f"{title(name)}, k = {k}" for (name, k), _ in shown]
    lines = [
        "",
        "## By finding",
        "",
        "AUROC against all normal test images / sensitivity at the operating point, mean over seeds; findings.csv has all k "
        "and 90 and 95 % specificity. An image with several findings counts for each.",
        "",
        "| finding | images | " + " | ".join(names) + " |",
        "|" + "---|" * (2 + len(names)),
    ]
    for finding, row in shown[0][1].items():
        cells = [f"{found[finding]['auroc']:.3f} / {found[finding]['sensitivity']:.3f}" for _, found in shown]
        plain = finding.replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {plain} | {row['images']} | " + " | ".join(cells) + " |")
    return lines


def _false_positives(results: Sequence[dict[str, Any]]) -> list[str]:
    """Return the section that shows whether the operating point keeps its rate, by method and k."""
    first = results[0]["false_positives"]
    target = f"Target: {percent(first['wanted'])}."
    if first["supported"] > first["wanted"]:
        target += f" There are too few held-out normals for it; they support {percent(first['supported'])}."
    lines = [
        "## False-positive rate",
        "",
        f"{target} Held-out and normal test images are pooled and split at random, {first['splits']} "
        "times, into calibration and test images. Mean over seeds; in brackets the standard deviation over single splits.",
        "",
        "| method | k | mean rate |",
        "|---|---|---|",
    ]
    grouped: dict[Key, list[dict[str, float]]] = {}
    for result in results:
        grouped.setdefault((result["variant"] or result["method"], result["k"]), []).append(result["false_positives"])
    for (name, k), found in _ordered(grouped):
        mean, sd = (sum(f[part] for f in found) / len(found) for part in ("mean", "sd"))
        lines.append(f"| {title(name)} | {'-' if k is None else k} | {mean:.1%} ({sd:.1%}) |")
    return [*lines, ""]


def _differences(table: str, summary: dict[Key, dict[str, Any]]) -> list[str]:
    """Return the paired differences to the other methods, one sentence each, with intervals from common resamples."""
    lines = []
    for k in sorted({k for _, k in summary if k is not None}):
        ours_name = "wscxr" if table == "table1" else "both"
        ours = summary.get((ours_name, k))
        if ours is None:
            continue
        for (name, other_k), other in _ordered(summary):
            if name == ours_name or other_k not in (None, k):
                continue
            low, high = interval(ours["resampled"]["auroc"] - other["resampled"]["auroc"])
            a, b = ours["honest"]["auroc"]["mean"], other["honest"]["auroc"]["mean"]
            verdict = "higher" if low > 0 else "lower" if high < 0 else "not distinguishable"
            error = f"; error (1 - AUROC) is {(1 - a) / (1 - b):.2f} of it" if b < 1 else ""
            lines.append(
                f"- k = {k}: {title(ours_name)} {a:.4f}, {title(name)} {b:.4f}, difference {a - b:+.4f} "
                f"[{low:+.4f}, {high:+.4f}]: {verdict}{error}."
            )
    return lines or ["Nothing to compare."]


def _ordered(summary: Mapping[Key, T]) -> list[tuple[Key, T]]:
    """Sort entries by method, in order of first appearance, then by k."""
    order = list(dict.fromkeys(name for name, _ in summary))
    return sorted(summary.items(), key=lambda entry: (order.index(entry[0][0]), entry[0][1] or 0))


def _spread(metric: Mapping[str, float], seeds: int, bracket: bool) -> str:
    """Format mean and, over several seeds, standard deviation, with the interval if `bracket`."""
    text = f"{metric['mean']:.3f}" + (f" ± {metric['sd']:.3f}" if seeds > 1 else "")
    return f"{text} [{metric['low']:.3f}, {metric['high']:.3f}]" if bracket else text


def _mean_seconds(results: Sequence[dict[str, Any]], method: str) -> float:
    """Return the mean time of a method's cells in seconds."""
    seconds = [r["seconds"] for r in results if r["method"] == method]
    return sum(seconds) / len(seconds)


_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#222222")
_DASHES = ("", "6 3", "2 3", "8 3 2 3", "4 4", "10 3", "1 2")


def chart(summary: dict[Key, dict[str, Any]]) -> str:
    """Draw honest AUROC against k, with a line and interval per method; returns SVG.

    Methods that learn from normal images only are horizontal lines.
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

    parts = ['<rect width="620" height="350" fill="white"/>']
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
            top, height = y(f["high"]), y(f["low"]) - y(f["high"])
            parts.append(
                f'<rect x="50" y="{top:.1f}" width="380" height="{height:.1f}" fill="{colour}" opacity="0.1"/>'
            )
            parts.append(f'<path d="M50 {y(f["mean"]):.1f}H430" {line}/>')
        at = 40 + 24 * number
        parts.append(f'<path d="M450 {at}H480" {line}/><text x="488" y="{at + 4}">{escape(title(name))}</text>')
    style = 'font-family="sans-serif" font-size="12" fill="#222"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 620 350" {style}>{"".join(parts)}</svg>\n'
