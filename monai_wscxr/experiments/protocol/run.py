"""Run of a table: its cells in order, without those whose results exist, and the files that summarise them."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import monai_wscxr
from monai_wscxr.errors import InputError
from monai_wscxr.evaluation.resampling import number_patients
from monai_wscxr.experiments.protocol.cells import Cell, run_cell
from monai_wscxr.experiments.protocol.combined import write_combined
from monai_wscxr.experiments.protocol.experiment import Experiment
from monai_wscxr.experiments.protocol.methods import KINDS, ON_FEATURES, check_methods, parse_efforts
from monai_wscxr.experiments.protocol.output import write_table
from monai_wscxr.experiments.protocol.table import Table
from monai_wscxr.system.atomic import write_text_atomic
from monai_wscxr.system.progress import progress_bar
from monai_wscxr.training.configs import check_settable, find_configs
from monai_wscxr.training.start import quiet_training

TABLES = ("table1", "table2")
# table 2: the options that switch parts off, in the order of the publication
ABLATIONS: dict[str, dict[str, Any]] = {
    "neither": {"retention": 1, "alpha_min": 1, "alpha_max": 1},
    "mining": {"alpha_min": 1, "alpha_max": 1},
    "mixing": {"retention": 1},
    "both": {},
}
_PACKAGES = ("torch", "torchvision", "monai", "pytorch-ignite", "timm", "numpy", "scikit-learn")


@dataclass(frozen=True)
class Plan:
    """What a run of a table computes, besides the data set.

    Attributes:
        table: "table1" (methods at every k) or "table2" (mining and mixing on and off).
        methods: methods of table 1, from `METHODS`.
        k: abnormal images per class; 0 for WSCXR on normal images alone, in table 1.
        seeds: number of seeds, >= 1; they are 0, 1, ...
        efforts: effort of every method, see `parse_efforts`.
        options: options of the configurations for all cells.
        configs: folder of the configurations.
        command: command line, for the record.
        progress: show a progress bar over the cells.
        keep_runs: keep the output folders of the trainings.
    """

    table: str
    methods: tuple[str, ...]
    k: tuple[int, ...]
    seeds: int
    efforts: Mapping[str, str]
    options: Mapping[str, Any]
    configs: Path
    command: str
    progress: bool
    keep_runs: bool


def run_protocol(
    table: str,
    datasets: str | Path | Mapping[str, str | Path],
    output_dir: str | Path,
    methods: Sequence[str] = ON_FEATURES,
    k: Sequence[int] = (2, 4, 8, 16),
    seeds: int = 3,
    options: Mapping[str, Any] | None = None,
    bundle: str | Path | None = None,
    command: str = "",
    progress: bool = True,
    keep_runs: bool = False,
    effort: str = "reduced",
) -> Path:
    """Run one of the tables; cells that have a result are not run again.

    Args:
        table: "table1" (methods at every k) or "table2" (mining and mixing on and off).
        datasets: folder or data list with a training and a test part; or several of them by name, each of which gets a folder
            of its own in `output_dir`, beside a table of them all.
        output_dir: a new folder, or that of the same protocol.
        methods: methods of table 1, from `METHODS`.
        k: abnormal images per class; 0 for WSCXR on normal images alone, in table 1.
        seeds: number of seeds, >= 1; they are 0, 1, ...
        options: options of the configurations for all cells.
        bundle: folder of the bundle; None means the one beside the package.
        command: command line, for the record.
        progress: show a progress bar over the cells.
        keep_runs: keep the output folders of the trainings.
        effort: how long methods train: one of `EFFORTS`, and METHOD=EFFORT for single methods, separated by commas.

    Returns:
        Path of the Markdown table.

    Raises:
        InputError: on unknown methods, efforts or options, numbers or names out of range, or an output folder of another
            protocol.
    """
    grid(table, methods, k, seeds)  # complains before anything is read
    configs, efforts = find_configs(bundle), parse_efforts(effort)
    trained = list(dict.fromkeys(methods)) if table == "table1" else ["wscxr"]
    files = list(dict.fromkeys(["train.yaml", *(KINDS[name].configuration for name in trained)]))
    check_settable(options or {}, [configs / name for name in files])
    plan = Plan(
        *(table, tuple(trained), tuple(k), seeds, efforts, dict(options or {}), configs, command, progress, keep_runs)
    )
    if not isinstance(datasets, Mapping):
        return write_table(run_table(plan, str(datasets), Path(output_dir)))
    check_dataset_names(datasets)
    found = {}
    for name, source in datasets.items():
        found[name] = run_table(plan, str(source), Path(output_dir) / name)
        write_table(found[name])
    return write_combined(Path(output_dir), found, command)


def check_dataset_names(datasets: Mapping[str, Any]) -> None:
    """Check the names of data sets, which become names of folders.

    Raises:
        InputError: when there is none, or a name has other characters than letters, digits, "_", "-" and ".".
    """
    for name in datasets:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
            raise InputError(f"{name!r} cannot be the name of a data set: use letters, digits, _, - and .")
    if not datasets:
        raise InputError("no data set was given")


def run_table(plan: Plan, dataset_dir: str, folder: Path) -> Table:
    """Run the missing cells of a table on one data set.

    Args:
        plan: what to compute.
        dataset_dir: folder or data list with a training and a test part.
        folder: output folder of this data set.

    Returns:
        The finished table, not yet written.
    """
    began = time.perf_counter()
    cells = grid(plan.table, plan.methods, plan.k, plan.seeds)
    options = dict(plan.options)
    done = folder / "cells"
    done.mkdir(parents=True, exist_ok=True)
    with quiet_training():
        options.setdefault("progress", plan.progress)
        experiment = Experiment(plan.configs, dataset_dir, folder / "runs", options, plan.efforts)
        experiment.extract()
        extraction = time.perf_counter() - began
        settings = _settings(plan.configs, experiment, options)
        results = []
        with progress_bar(len(cells), plan.table, plan.progress, unit="cell") as bar:
            for cell in cells:
                bar.set_postfix_str(cell.name)
                own = {**settings, "effort": plan.efforts[cell.method]}
                results.append(_cell(experiment, cell, done / f"{cell.name}.json", own))
                if not plan.keep_runs:
                    shutil.rmtree(experiment.runs / cell.name, ignore_errors=True)
                bar.update()
    if not plan.keep_runs:
        shutil.rmtree(experiment.runs, ignore_errors=True)
    record = {
        "table": plan.table,
        "command": plan.command,
        "k": list(plan.k),
        "seeds": plan.seeds,
        "efforts": {name: plan.efforts[name] for name in plan.methods},
        **settings,
        "monai_wscxr": monai_wscxr.__version__,
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads, "
        f"{experiment.extractor.device}",
        "images": _counts(experiment),
        "rejected": [[code, message] for _, code, message in experiment.extractor.done.rejected],
        "seconds": {"this run": time.perf_counter() - began, "features": extraction},
    }
    patients = number_patients(experiment.test)
    return Table(folder, plan.table, results, experiment.labels, patients, experiment.findings, record)


def grid(table: str, methods: Sequence[str], k: Sequence[int], seeds: int) -> list[Cell]:
    """List the cells of a table: all methods of one seed before the next seed, so an unfinished table compares methods.

    Raises:
        InputError: on an unknown table or method, k below 0 (in table 2 below 1), seeds below 1, or nothing to run.
    """
    if table not in TABLES:
        raise InputError(f"there is no table {table!r}; the tables are {', '.join(TABLES)}")
    check_methods(methods)
    least = 0 if table == "table1" else 1  # without abnormal images there is nothing to mine or mix
    if not k or min(k) < least or seeds < 1:
        raise InputError(
            f"k must be {least} or more in {table}, and seeds 1 or more; got k {list(k)} and {seeds} seeds"
        )
    numbers = sorted(set(k))
    cells = []
    for seed in range(seeds):
        if table == "table2":
            cells += [Cell("wscxr", n, seed, name, off) for n in numbers for name, off in ABLATIONS.items()]
            continue
        for method in dict.fromkeys(methods):
            if KINDS[method].labelled:  # only WSCXR learns without abnormal images, too
                cells += [Cell(method, n, seed) for n in numbers if n or method == "wscxr"]
            else:
                cells.append(Cell(method, None, seed))
    return cells


def _cell(experiment: Experiment, cell: Cell, path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the result of a cell: from its file if it exists, otherwise run the cell and write the file."""
    if path.exists():
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            before = result["settings"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged; remove it and give the same command again") from error
        changed = sorted(name for name in {*before, *settings} if before.get(name) != settings.get(name))
        if changed:
            raise InputError(
                f"{path} was computed with another {' and '.join(changed)}; the table would mix both. Choose "
                "another --output_dir, or remove this one"
            )
        return result
    result = {**run_cell(experiment, cell), "settings": settings}
    write_text_atomic(path, json.dumps(result))
    return result


def _settings(configs: Path, experiment: Experiment, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that all results of a table must share."""
    return {
        "options": {key: value for key, value in options.items() if key != "progress"},
        "features": experiment.extractor.cache.fingerprint if experiment.extractor.cache else "not cached",
        "split": split_digest(experiment),
        "code": code_digest(configs),
    }


def split_digest(experiment: Experiment) -> str:
    """Compute a digest of the data set: content, part, label, class and patient of every image."""
    lines = sorted(
        f"{part} {experiment.extractor.digests.get(item['image'], '-')} {item['label']} {item['class']} {item['patient']}"
        for part, items in experiment.datalist.items()
        for item in items
    )
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=12).hexdigest()


def code_digest(configs: Path) -> str:
    """Compute a digest of the package's sources and the configurations."""
    digest = hashlib.blake2b(digest_size=12)
    for path in [*sorted(Path(monai_wscxr.__file__).parent.rglob("*.py")), *sorted(configs.glob("*.yaml"))]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _counts(experiment: Experiment) -> dict[str, dict[str, int]]:
    """Count the images by part and class."""
    found: dict[str, dict[str, int]] = {}
    for part, items in experiment.datalist.items():
        for item in items:
            counts = found.setdefault(part, {})
            counts[item["class"]] = counts.get(item["class"], 0) + 1
    return found
