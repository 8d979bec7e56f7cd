"""The grid: which cells, in which order, what is there already, and what comes out."""

from __future__ import annotations

import difflib
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
import yaml
from tqdm import tqdm

import monai_wscxr
from monai_wscxr.errors import InputError
from monai_wscxr.experiments.protocol.cells import Cell, Laboratory
from monai_wscxr.experiments.protocol.output import write_tables
from monai_wscxr.system.atomic import write_text_atomic
from monai_wscxr.training.options import find_configs
from monai_wscxr.training.start import quiet_training

METHODS = ("wscxr", "patchcore", "simplenet", "cutpaste")
TABLES = ("table1", "table2")
# table 2: what is switched off, in the order of the publication
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
    """Run one of the tables; cells whose results are there are not run again.

    Args:
        table: "table1" (methods at every k) or "table2" (mining and mixing on and off).
        dataset_dir: folder or datalist with a training and a test part.
        output_dir: new, or that of the same protocol.
        methods: of table 1, from `METHODS`.
        k: abnormal images per class, ascending.
        seeds: number of seeds, from 0.
        options: options of `train.yaml` for every cell.
        bundle: the bundle's folder; None finds the one beside the package.
        command: as typed, for the record.
        progress: show a bar over the cells.
        keep_runs: keep the output folders of the trainings.

    Returns:
        Path of the Markdown table.

    Raises:
        InputError: on unknown methods, numbers out of range, or an output folder of another protocol.
    """
    began = time.perf_counter()
    cells = grid(table, methods, k, seeds)
    options = dict(options or {})
    configs = find_configs(bundle)
    _check_options(configs, methods, options)
    folder = Path(output_dir)
    done = folder / "cells"
    done.mkdir(parents=True, exist_ok=True)
    with quiet_training():
        options.setdefault("progress", progress)
        laboratory = Laboratory(configs, dataset_dir, folder / "runs", options)
        laboratory.extract()
        extraction = time.perf_counter() - began
        settings = _settings(configs, laboratory, options)
        results = []
        bar = tqdm(total=len(cells), desc=table, unit="cell", disable=not progress)
        for cell in cells:
            bar.set_postfix_str(cell.name)
            results.append(_cell(laboratory, cell, done / f"{cell.name}.json", settings))
            if not keep_runs:
                shutil.rmtree(laboratory.runs / cell.name, ignore_errors=True)
            bar.update()
        bar.close()
    if not keep_runs:
        shutil.rmtree(laboratory.runs, ignore_errors=True)
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
        f"{laboratory.extractor.device}",
        "images": _counts(laboratory),
        "rejected": [[code, message] for _, code, message in laboratory.extractor.done.rejected],
        "seconds": {"this run": time.perf_counter() - began, "features": extraction},
    }
    return write_tables(folder, table, results, laboratory.labels, record)


def grid(table: str, methods: Sequence[str], k: Sequence[int], seeds: int) -> list[Cell]:
    """Cells of a table, cheap and telling ones first: all methods of one seed before the next seed.

    Raises:
        InputError: on an unknown table or method, k or seeds below 1, or nothing to run.
    """
    if table not in TABLES:
        raise InputError(f"there is no {table!r}; the tables are {', '.join(TABLES)}")
    unknown = [name for name in methods if name not in METHODS]
    if unknown or not methods:
        raise InputError(f"unknown methods: {', '.join(unknown) or 'none given'}; they are {', '.join(METHODS)}")
    if not k or min(k) < 1 or seeds < 1:
        raise InputError(f"k and seeds must be 1 or more, got k {list(k)} and {seeds} seeds")
    numbers = sorted(set(k))
    cells = []
    for seed in range(seeds):
        if table == "table2":
            cells += [Cell("wscxr", n, seed, name, off) for n in numbers for name, off in ABLATIONS.items()]
            continue
        for method in dict.fromkeys(methods):
            cells += [Cell(method, n, seed) for n in numbers] if method == "wscxr" else [Cell(method, None, seed)]
    return cells


def _check_options(configs: Path, methods: Sequence[str], options: Mapping[str, Any]) -> None:
    """Refuse options that no configuration has, and those that the protocol sets itself."""
    own = {"dataset_dir", "output_dir", "k", "seed"}
    known: set[str] = set()
    for name in ("train", *(m for m in methods if m != "wscxr")):
        known |= set(yaml.safe_load((configs / f"{name}.yaml").read_text(encoding="utf-8")))
    for name in options:
        if name in own:
            raise InputError(f"{name} is an option of the protocol itself and cannot be set again")
        if name.partition("#")[0] not in known:
            close = difflib.get_close_matches(name, sorted(known), n=3)
            hint = f"did you mean {', '.join(close)}?" if close else "see the top of train.yaml for all"
            raise InputError(f"unknown option {name}: {hint}")


def _cell(laboratory: Laboratory, cell: Cell, path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The cell's result, from its file where there is one."""
    if path.exists():
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            before = result["settings"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged; remove it and give the same command again") from error
        changed = sorted(name for name in {*before, *settings} if before.get(name) != settings.get(name))
        if changed:
            raise InputError(
                f"{path} was measured with another {' and '.join(changed)}; results of both would be mixed. Choose "
                "another --output_dir, or remove this one"
            )
        return result
    result = {**laboratory.run(cell), "settings": settings}
    write_text_atomic(path, json.dumps(result))
    return result


def _settings(configs: Path, laboratory: Laboratory, options: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same for results to stand in one table."""
    return {
        "options": {key: value for key, value in options.items() if key != "progress"},
        "features": laboratory.extractor.cache.fingerprint if laboratory.extractor.cache else "not cached",
        "split": split_digest(laboratory),
        "code": code_digest(configs),
    }


def split_digest(laboratory: Laboratory) -> str:
    """Digest over content, part, label, class and patient of every image: the same data, the same digest."""
    lines = sorted(
        f"{part} {laboratory.extractor.digests.get(item['image'], '-')} {item['label']} {item['class']} {item['patient']}"
        for part, items in laboratory.datalist.items()
        for item in items
    )
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=12).hexdigest()


def code_digest(configs: Path) -> str:
    """Digest over the package's sources and the configurations."""
    digest = hashlib.blake2b(digest_size=12)
    for path in [*sorted(Path(monai_wscxr.__file__).parent.rglob("*.py")), *sorted(configs.glob("*.yaml"))]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _counts(laboratory: Laboratory) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for part, items in laboratory.datalist.items():
        for item in items:
            counts = found.setdefault(part, {})
            counts[item["class"]] = counts.get(item["class"], 0) + 1
    return found
