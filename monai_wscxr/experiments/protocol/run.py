"""Run of a table: its cells in order, without those whose results exist, and the files that summarise them."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import monai_wscxr
from monai_wscxr.errors import InputError
from monai_wscxr.evaluation.resampling import number_patients
from monai_wscxr.experiments.protocol.cells import LABELLED_METHODS, Cell, Experiment, run_cell
from monai_wscxr.experiments.protocol.output import write_tables
from monai_wscxr.system.atomic import write_text_atomic
from monai_wscxr.system.progress import progress_bar
from monai_wscxr.training.configs import check_settable, find_configs
from monai_wscxr.training.start import quiet_training

METHODS = ("wscxr", "discriminant", "logistic", "nearest", "patchcore", "simplenet", "cutpaste")
LABELLED = ("wscxr", *LABELLED_METHODS)  # learn from abnormal images as well
TABLES = ("table1", "table2")
# table 2: the options that switch parts off, in the order of the publication
ABLATIONS: dict[str, dict[str, Any]] = {
    "neither": {"retention": 1, "alpha_min": 1, "alpha_max": 1},
    "mining": {"alpha_min": 1, "alpha_max": 1},
    "mixing": {"retention": 1},
    "both": {},
}
_PACKAGES = ("torch", "torchvision", "monai", "pytorch-ignite", "timm", "numpy", "scikit-learn")


def run_protocol(
    table: str,
    dataset_dir: str,
    output_dir: str | Path,
    methods: Sequence[str] = METHODS,
    k: Sequence[int] = (2, 4, 8, 16),
    seeds: int = 3,
    options: Mapping[str, Any] | None = None,
    bundle: str | Path | None = None,
    command: str = "",
    progress: bool = True,
    keep_runs: bool = False,
) -> Path:
    """Run one of the tables; cells that have a result are not run again.

    Args:
        table: "table1" (methods at every k) or "table2" (mining and mixing on and off).
        dataset_dir: folder or data list with a training and a test part.
        output_dir: a new folder, or that of the same protocol.
        methods: methods of table 1, from `METHODS`.
        k: abnormal images per class; 0 for WSCXR on normal images alone, in table 1.
        seeds: number of seeds, >= 1; they are 0, 1, ...
        options: options of `train.yaml` for all cells.
        bundle: folder of the bundle; None means the one beside the package.
        command: command line, for the record.
        progress: show a progress bar over the cells.
        keep_runs: keep the output folders of the trainings.

    Returns:
        Path of the Markdown table.

    Raises:
        InputError: on unknown methods or options, numbers out of range, or an output folder of another protocol.
    """
    began = time.perf_counter()
    cells = grid(table, methods, k, seeds)
    options = dict(options or {})
    configs = find_configs(bundle)
    check_settable(options, [configs / f"{name}.yaml" for name in ("train", *(m for m in methods if m != "wscxr"))])
    folder = Path(output_dir)
    done = folder / "cells"
    done.mkdir(parents=True, exist_ok=True)
    with quiet_training():
        options.setdefault("progress", progress)
        experiment = Experiment(configs, dataset_dir, folder / "runs", options)
        experiment.extract()
        extraction = time.perf_counter() - began
        settings = _settings(configs, experiment, options)
        results = []
        bar = progress_bar(len(cells), table, progress, unit="cell")
        for cell in cells:
            bar.set_postfix_str(cell.name)
            results.append(_cell(experiment, cell, done / f"{cell.name}.json", settings))
            if not keep_runs:
                shutil.rmtree(experiment.runs / cell.name, ignore_errors=True)
            bar.update()
        bar.close()
    if not keep_runs:
        shutil.rmtree(experiment.runs, ignore_errors=True)
    record = {
        "table": table,
        "command": command,
        "k": list(k),
        "seeds": seeds,
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
    return write_tables(
        folder, table, results, experiment.labels, number_patients(experiment.test), experiment.findings, record
    )


def grid(table: str, methods: Sequence[str], k: Sequence[int], seeds: int) -> list[Cell]:
    """List the cells of a table: all methods of one seed before the next seed, so an unfinished table compares methods.

    Raises:
        InputError: on an unknown table or method, k below 0 (in table 2 below 1), seeds below 1, or nothing to run.
    """
    if table not in TABLES:
        raise InputError(f"there is no table {table!r}; the tables are {', '.join(TABLES)}")
    unknown = [name for name in methods if name not in METHODS]
    if unknown or not methods:
        raise InputError(f"unknown methods: {', '.join(unknown) or 'none given'}; they are {', '.join(METHODS)}")
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
            if method in LABELLED:  # only WSCXR learns without abnormal images, too
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
