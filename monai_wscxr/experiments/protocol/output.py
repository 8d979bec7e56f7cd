"""Files of a finished table: results.csv (cells), summary.csv, findings.csv, results.md, results.svg and protocol.json."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_wscxr.experiments.protocol.chart import Key, chart
from monai_wscxr.experiments.protocol.metrics import BY_FINDING, HONEST, PAPER
from monai_wscxr.experiments.protocol.page import markdown
from monai_wscxr.experiments.protocol.table import Table
from monai_wscxr.report.predictions import escape_cell
from monai_wscxr.system.atomic import write_text_atomic

PIXEL = ("pointing_game", "percentile", "mirrored_percentile", "gap", "auroc", "aupro")
CONSTANT = ("pointing_game", "auroc", "aupro")


def write_table(table: Table) -> Path:
    """Write all files, each atomically; return the path of the Markdown file."""
    folder = table.folder
    write_text_atomic(folder / "findings.csv", _findings_csv(table.by_finding))
    write_text_atomic(folder / "results.csv", _cells_csv(table.results))
    write_text_atomic(folder / "summary.csv", _summary_csv(table.summary))
    write_text_atomic(folder / "results.svg", chart(table.summary, table.titles))
    write_text_atomic(folder / "protocol.json", json.dumps(table.record, indent=1))
    path = folder / "results.md"
    write_text_atomic(path, markdown(table))
    return path


def _cells_csv(results: Sequence[dict[str, Any]]) -> str:
    """Return the content of results.csv, one row per cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["method", "variant", "k_per_class", "seed"]
        + [f"honest_{name}" for name in (*HONEST, "specificity_90", "specificity_95", "threshold")]
        + [f"paper_{name}" for name in PAPER]
        + [f"pixel_{name}" for name in PIXEL]
        + [f"constant_map_{name}" for name in CONSTANT]
        + ["effort", "network", "training_images", "epochs", "steps", "processor_seconds", "seconds"]
    )
    for r in results:
        honest = [f"{r['honest'][n]:.6f}" for n in (*HONEST, "specificity_90", "specificity_95", "threshold")]
        paper = [f"{r['paper'][name]:.6f}" for name in PAPER]
        k = "-" if r["k"] is None else r["k"]
        pixel, trained = r["pixel"], r["training"]
        maps = [""] * (len(PIXEL) + len(CONSTANT))
        if pixel is not None:
            values = [*(pixel[name] for name in PIXEL), *(pixel["constant_map"][name] for name in CONSTANT)]
            maps = ["" if value is None else f"{value:.6f}" for value in values]
        training = [trained[name] for name in ("effort", "network", "images", "epochs", "steps")]
        times = [f"{trained['processor_seconds']:.1f}", f"{r['seconds']:.1f}"]
        writer.writerow([r["method"], r["variant"], k, r["seed"], *honest, *paper, *maps, *training, *times])
    return text.getvalue()


def _summary_csv(summary: Mapping[Key, dict[str, Any]]) -> str:
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


def _findings_csv(by_finding: Mapping[Key, dict[str, dict[str, float]]]) -> str:
    """Return the content of findings.csv, one row per method, k and finding."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "k_per_class", "finding", "images", *BY_FINDING])
    for (name, k), found in by_finding.items():
        for finding, row in found.items():
            figures = [f"{row[figure]:.6f}" for figure in BY_FINDING]
            writer.writerow([name, "-" if k is None else k, escape_cell(finding), row["images"], *figures])
    return text.getvalue()
