"""The page of a table: results.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from monai_wscxr.experiments.protocol.experiment import MAP_SIZE
from monai_wscxr.experiments.protocol.methods import KINDS
from monai_wscxr.experiments.protocol.metrics import HONEST, PAPER, interval
from monai_wscxr.experiments.protocol.table import Table
from monai_wscxr.model.calibration import percent

METRICS = {
    "auroc": "AUROC",
    "accuracy": "accuracy",
    "f1": "F1",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "sensitivity_90": "sensitivity at 90 %",
    "sensitivity_95": "sensitivity at 95 %",
}


def markdown(table: Table) -> str:
    """Return the content of results.md: the tables, their differences, and how they were computed."""
    results, labels, record, summary, titles = table.results, table.labels, table.record, table.summary, table.titles
    heading = "Comparison of methods" if table.table == "table1" else "Ablation: mining and mixing"
    classes = [name for name in record["images"].get("training", {}) if name != "normal"]
    lines = [
        f"# {heading}",
        "",
        f"k counts abnormal training images **per class**; there are {len(classes)} classes ({', '.join(classes)}), so k = "
        f"{record['k'][-1]} means up to {record['k'][-1] * len(classes)} abnormal images. Methods with k `-` learn from "
        f"normal images only. {labels.count(0)} normal and {labels.count(1)} abnormal test images; "
        f"mean over {counted_seeds(record['seeds'])} ± standard deviation over them; in brackets the 95 % interval over 1,000 "
        "resamples of the patients of the test images.",
        "",
        "## Honest: nothing chosen on test images",
        "",
        "Last epoch; thresholds from held-out normal images, for the operating point and for 90 and 95 % specificity.",
        "",
        "| method | k | " + " | ".join(METRICS[n] for n in HONEST) + " |",
        "|" + "---|" * (2 + len(HONEST)),
    ]
    for (name, k), s in summary.items():
        cells = [spread_text(s["honest"][n], s["seeds"], bracket=n == "auroc") for n in HONEST]
        lines.append(f"| {titles[name]} | {'-' if k is None else k} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "## Paper: epoch and threshold chosen on the test images (optimistic)",
        "",
        "By the published rules, only for comparison with published tables; sensitivities are read off the test ROC.",
        "",
        "| method | k | " + " | ".join(METRICS[n] for n in PAPER) + " |",
        "|" + "---|" * (2 + len(PAPER)),
    ]
    for (name, k), s in summary.items():
        cells = [f"{s['paper'][n]:.3f}" for n in PAPER]
        lines.append(f"| {titles[name]} | {'-' if k is None else k} | " + " | ".join(cells) + " |")
    lines += _training(table)
    lines += _localisation(table)
    lines += _by_finding(table)
    lines += ["", "## Differences in honest AUROC", "", *_differences(table), ""]
    lines += _false_positives(table)
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
        f"Options: {record['options'] or 'defaults'}. Efforts: "
        + ", ".join(f"{name} {effort}" for name, effort in record["efforts"].items())
        + f". Features {record['features']}, split {record['split']}.",
        f"Features took {record['seconds']['features']:.0f} s, this run {record['seconds']['this run']:.0f} s, all cells "
        f"together {sum(r['seconds'] for r in results):.0f} s ("
        + ", ".join(
            f"{KINDS[n].title} {_mean_seconds(results, n):.1f}" for n in dict.fromkeys(r["method"] for r in results)
        )
        + " s each).",
        "",
    ]
    return "\n".join(lines)


def _training(table: Table) -> list[str]:
    """Return the section that says what was trained for how long, row by row."""
    lines = [
        "",
        "## Training",
        "",
        "Mean over seeds; processor time (user and system) of all processes, without the features that all methods share.",
        "",
        "| method | k | network | length | training images | processor time |",
        "|---|---|---|---|---|---|",
    ]
    for (name, k), results in table.rows.items():
        trained = [result["training"] for result in results]
        images = sum(one["images"] for one in trained) / len(trained)
        lines.append(
            f"| {table.titles[name]} | {'-' if k is None else k} | {trained[0]['network']} | {length_text(trained[0])} | "
            f"{images:.0f} | {duration_text(sum(one['processor_seconds'] for one in trained) / len(trained))} |"
        )
    return lines


def counted_seeds(count: int) -> str:
    """Return "1 seed", "3 seeds"."""
    return f"{count} seed{'' if count == 1 else 's'}"


def length_text(training: Mapping[str, Any]) -> str:
    """Say how long a method trained, in epochs and steps; "-" for one that does not train in steps.

    Example:
        >>> length_text({"epochs": 160, "steps": 19360})
        '160 epochs, 19,360 steps'
    """
    parts = [
        f"{training[unit]:,} {unit.removesuffix('s') if training[unit] == 1 else unit}"
        for unit in ("epochs", "steps")
        if training[unit]
    ]
    return ", ".join(parts) or "-"


def duration_text(seconds: float) -> str:
    """Return a time in seconds, minutes or hours.

    Example:
        >>> duration_text(4.24), duration_text(600), duration_text(7200)
        ('4.2 s', '10.0 min', '2.0 h')
    """
    unit, size = ("s", 1) if seconds < 120 else ("min", 60) if seconds < 7200 else ("h", 3600)
    return f"{seconds / size:.1f} {unit}"


def _localisation(table: Table) -> list[str]:
    """Return the section on anomaly maps; none without lesion masks or maps."""
    lines = [
        "",
        "## Localisation",
        "",
        f"Anomaly maps at {MAP_SIZE} x {MAP_SIZE} pixels against lesion masks, mean over seeds. In brackets: the mean of all "
        "maps in place of every map, so what a map reaches that is the same for every image. Percentile: how high the lesion "
        "stands among normal images at the same place; mirrored: the same for the place on the other side. Other methods give "
        "no maps.",
        "",
        "| method | k | pointing game | percentile in lesions | mirrored | gap | pixel AUROC | AUPRO |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = {
        key: [result["pixel"] for result in found] for key, found in table.rows.items() if found[0]["pixel"] is not None
    }
    for (name, k), pixel in rows.items():
        values = [
            " - " if pixel[0][part] is None else f"{sum(one[part] for one in pixel) / len(pixel):.3f}"
            for part in ("percentile", "mirrored_percentile", "gap")
        ]
        beside = [
            f"{sum(one[part] for one in pixel) / len(pixel):.3f} "
            f"({sum(one['constant_map'][part] for one in pixel) / len(pixel):.3f})"
            for part in ("pointing_game", "auroc", "aupro")
        ]
        cells = [beside[0], *values, *beside[1:]]
        note = KINDS[name].map_note if name in KINDS else ""
        lines.append(
            f"| {table.titles[name]}{f' ({note})' if note else ''} | {'-' if k is None else k} | "
            + " | ".join(cells)
            + " |"
        )
    return lines if rows else []


def _by_finding(table: Table) -> list[str]:
    """Return the section of figures by finding, of each method with its largest k."""
    by_finding, titles = table.by_finding, table.titles
    largest = max((k for _, k in by_finding if k is not None), default=None)
    shown = [(key, found) for key, found in by_finding.items() if key[1] in (None, largest)]
    names = [titles[name] if k is None else f"{titles[name]}, k = {k}" for (name, k), _ in shown]
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


def _false_positives(table: Table) -> list[str]:
    """Return the section that shows whether the operating point keeps its rate, by method and k."""
    first = table.results[0]["false_positives"]
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
    for (name, k), results in table.rows.items():
        found = [result["false_positives"] for result in results]
        mean, sd = (sum(f[part] for f in found) / len(found) for part in ("mean", "sd"))
        lines.append(f"| {table.titles[name]} | {'-' if k is None else k} | {mean:.1%} ({sd:.1%}) |")
    return [*lines, ""]


def _differences(table: Table) -> list[str]:
    """Return the paired differences to the other methods, one sentence each, with intervals from common resamples."""
    summary, titles = table.summary, table.titles
    lines = []
    for k in sorted({k for _, k in summary if k is not None}):
        ours_name = "wscxr" if table.table == "table1" else "both"
        ours = summary.get((ours_name, k))
        if ours is None:
            continue
        for (name, other_k), other in summary.items():
            if name == ours_name or other_k not in (None, k):
                continue
            low, high = interval(ours["resampled"]["auroc"] - other["resampled"]["auroc"])
            a, b = ours["honest"]["auroc"]["mean"], other["honest"]["auroc"]["mean"]
            verdict = "higher" if low > 0 else "lower" if high < 0 else "not distinguishable"
            error = f"; error (1 - AUROC) is {(1 - a) / (1 - b):.2f} of it" if b < 1 else ""
            lines.append(
                f"- k = {k}: {titles[ours_name]} {a:.4f}, {titles[name]} {b:.4f}, difference {a - b:+.4f} "
                f"[{low:+.4f}, {high:+.4f}]: {verdict}{error}."
            )
    return lines or ["Nothing to compare."]


def spread_text(metric: Mapping[str, float], seeds: int, bracket: bool) -> str:
    """Format mean and, over several seeds, standard deviation, with the interval if `bracket`."""
    text = f"{metric['mean']:.3f}" + (f" ± {metric['sd']:.3f}" if seeds > 1 else "")
    return f"{text} [{metric['low']:.3f}, {metric['high']:.3f}]" if bracket else text


def _mean_seconds(results: Sequence[dict[str, Any]], method: str) -> float:
    """Return the mean time of a method's cells in seconds."""
    seconds = [r["seconds"] for r in results if r["method"] == method]
    return sum(seconds) / len(seconds)
