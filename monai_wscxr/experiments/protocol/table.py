"""A finished table on one data set: its rows, their titles and figures."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_wscxr.experiments.protocol.chart import Key
from monai_wscxr.experiments.protocol.methods import KINDS
from monai_wscxr.experiments.protocol.metrics import Bootstrap, finding_metrics, summarise

VARIANTS = {"neither": "neither", "mining": "mining only", "mixing": "mixing only", "both": "mining and mixing"}


@dataclass(frozen=True)
class Table:
    """A finished table on one data set.

    Attributes:
        folder: output folder.
        table: "table1" or "table2".
        results: results of all cells.
        labels: labels of the test images, in the order of the cells' scores.
        patients: number of the patient of each of them.
        findings: findings of each of them, none of a normal one.
        record: command, versions and settings of the run.
    """

    folder: Path
    table: str
    results: Sequence[dict[str, Any]]
    labels: Sequence[int]
    patients: NDArray[np.int64]
    findings: Sequence[Sequence[str]]
    record: Mapping[str, Any]

    @functools.cached_property
    def rows(self) -> dict[Key, list[dict[str, Any]]]:
        """Results by row: by method or variant, in order of first appearance, then by k."""
        grouped: dict[Key, list[dict[str, Any]]] = {}
        for result in self.results:
            grouped.setdefault((result["variant"] or result["method"], result["k"]), []).append(result)
        order = list(dict.fromkeys(name for name, _ in grouped))
        return dict(sorted(grouped.items(), key=lambda row: (order.index(row[0][0]), row[0][1] or 0)))

    @functools.cached_property
    def titles(self) -> dict[str, str]:
        """Readable name of each method or variant; a method that trained for less than published says so."""
        found = {}
        for result in self.results:
            name = result["variant"] or result["method"]
            short = f", {result['training']['effort']} effort" if result["training"]["shortened"] else ""
            found[name] = VARIANTS[name] if result["variant"] else f"{KINDS[name].title}{short}"
        return found

    @functools.cached_property
    def summary(self) -> dict[Key, dict[str, Any]]:
        """Mean, spread and interval of the metrics of every row."""
        bootstrap = Bootstrap(self.labels, self.patients)
        return {key: summarise(cells, bootstrap) for key, cells in self.rows.items()}

    @functools.cached_property
    def by_finding(self) -> dict[Key, dict[str, dict[str, float]]]:
        """Figures by finding of every row."""
        return {key: finding_metrics(self.labels, self.findings, cells) for key, cells in self.rows.items()}
