"""Comparison of variants on common splits, and the tables with the results."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import ConfigParser

from monai_wscxr.data.split import checked_datalist
from monai_wscxr.errors import InputError
from monai_wscxr.experiments.cross_validation.maps import CHANGES, BackboneMaps
from monai_wscxr.experiments.cross_validation.splits import random_split
from monai_wscxr.experiments.cross_validation.training import METRICS, SplitFeatures
from monai_wscxr.features.backbones import NAMED
from monai_wscxr.system.atomic import write_text_atomic
from monai_wscxr.training.configs import find_configs, option_names, unknown_option

logger = logging.getLogger("monai_wscxr")

PUBLISHED_TRAINING = {
    "whiten": False,
    "zero_start": False,
    "optimizer_name": "Adam",
    "learning_rate": 2e-4,
    "distance_share": 0.0,
    "region_share": 0.0,
    "opacity_share": 0.0,
    "copies": 0,
    "mining_scope": "all",
}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "published recipe": {
        **PUBLISHED_TRAINING,
        "image_size": 256,
        "intensity": "as_read",
        "layers": ["4"],
        "retention": 0.2,
        "score_share": 0.0,
    },
    "intensity as read": {"intensity": "as_read"},
    "image size 256": {"image_size": 256},
    "layers 3, 4": {"layers": ["3", "4"]},
    "layers 1, 2, 3, 4": {"layers": ["1", "2", "3", "4"]},
    "p = 3": {"neighbourhood": 3},
    "p = 7": {"neighbourhood": 7},
    "published training": PUBLISHED_TRAINING,
    "whitened, random start, Adam": {**PUBLISHED_TRAINING, "whiten": True},
    "shrinkage 0.1": {"shrinkage": 0.1},
    "shrinkage 10": {"shrinkage": 10.0},
    "no copies": {"copies": 0},
    "1 copy": {"copies": 1},
    "4 copies": {"copies": 4},
    "nuisance 4": {"nuisance": 4.0},
    "nuisance 10": {"nuisance": 10.0},
    "mined over all images": {"mining_scope": "all"},
    "r = 0.2": {"retention": 0.2},
    "r = 1 (no mining)": {"retention": 1.0},
    "alpha = 1 (no mixing)": {"alpha_min": 1.0},
    "learning rate 0.003": {"learning_rate": 0.003},
    "no distance": {"distance_share": 0.0},
    "distance 1.2": {"distance_share": 1.2},
    "no regions": {"region_share": 0.0},
    "no opacities": {"opacity_share": 0.0},
    "maximum": {"score_share": 0.0},
    "mean": {"score_share": 1.0},
}
FEATURE_OPTIONS = ("image_size", "intensity", "backbone", "weights", "layers", "neighbourhood")


class CrossValidation:
    """Variants of the training options on common random splits.

    Args:
        source: data set; only its training part is used.
        folder: folder for the results.
        ks: abnormal images per class, one or more values.
        draws: number of random splits.
        perturbed_normals: see `BackboneMaps`.
        changes: options for all variants, in place of those in `train.yaml`.

    Attributes:
        options: all options of `train.yaml`, with the changes.

    Raises:
        InputError: on an unknown option, or a k that leaves no abnormal image for validation.
    """

    def __init__(
        self,
        source: str,
        folder: Path,
        ks: Sequence[int],
        draws: int,
        perturbed_normals: int = 200,
        changes: Mapping[str, Any] | None = None,
    ) -> None:
        self.items = checked_datalist(source, allow_overlap=True).training
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.ks, self.perturbed_normals = folder, list(ks), perturbed_normals
        self.splits = [random_split(self.items, ks, 1000 + d) for d in range(draws)]
        configuration = ConfigParser.load_config_file(str(find_configs() / "train.yaml"))
        self.options: dict[str, Any] = {name: configuration[name] for name in option_names(configuration)}
        self._check("options", changes or {})
        self.options.update(changes or {})
        self.most_copies = max(self.options["copies"], *(v.get("copies", 0) for v in VARIANTS.values()))
        self.most_opacities = max(self.options["opacities"], *(v.get("opacities", 0) for v in VARIANTS.values()))
        self._maps: tuple[tuple[str, ...], BackboneMaps] | None = None

    def run(self, variants: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Train and score variants that share their features.

        Args:
            variants: changes of options by name of the variant.

        Returns:
            {name: {k: {metric: [value per split], "shift": [[mean movement per perturbation] per split]}}}.

        Raises:
            InputError: on an unknown option.
        """
        for name, changes in variants.items():
            self._check(f"variant {name!r}", changes)
        first = {**self.options, **next(iter(variants.values()))}
        layers: list[str] = list(first["layers"] or NAMED[first["backbone"]].layers or ())
        maps = self._backbone_maps({**first, "layers": layers})
        features = maps.choose(maps.images, layers, first["neighbourhood"])
        perturbed = {n: maps.choose(m, layers, first["neighbourhood"]) for n, m in maps.perturbed.items()}
        copies = [maps.choose(m, layers, first["neighbourhood"]) for m in maps.copies]
        opacities = [maps.choose(m, layers, first["neighbourhood"]) for m in maps.opacities]
        labels = np.array([item["label"] for item in self.items])
        results: dict[str, Any] = {n: {str(k): {m: [] for m in (*METRICS, "shift")} for k in self.ks} for n in variants}
        for number, split in enumerate(self.splits):
            data = SplitFeatures(split, features, perturbed, copies, maps.subset, labels, opacities)
            for name, changes in variants.items():
                for k in self.ks:
                    values, shift = data.metrics({**self.options, **changes}, k)
                    for metric, value in zip(METRICS, values, strict=True):
                        results[name][str(k)][metric].append(value)
                    results[name][str(k)]["shift"].append(shift)
            logger.info("split %d of %d: %s", number + 1, len(self.splits), ", ".join(variants))
        return results

    def _check(self, what: str, changes: Mapping[str, Any]) -> None:
        """Raise InputError when `train.yaml` lacks one of the options."""
        for name in changes:
            if name not in self.options:
                raise InputError(f"{what}: {unknown_option(name, self.options)}")

    def _backbone_maps(self, options: Mapping[str, Any]) -> BackboneMaps:
        """Return the maps of the backbone; the latest ones are kept."""
        key = tuple(str(options[k]) for k in ("image_size", "intensity", "backbone", "weights"))
        if self._maps is None or self._maps[0] != key:
            self._maps = None  # free the memory of the previous maps first
            self._maps = (
                key,
                BackboneMaps(self.items, options, self.perturbed_normals, self.most_copies, self.most_opacities),
            )
        return self._maps[1]

    def table(self, results: Mapping[str, Mapping[str, Any]]) -> str:
        """Format results as Markdown.

        The first variant has mean ± standard deviation over splits. The others have mean and, in brackets, the paired
        difference to the first variant ± its standard error, in thousandths.
        """
        first = next(iter(results))
        heads = [f"k = {k}, {metric}" for k in self.ks for metric in METRICS]
        lines = ["| variant | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
        for name, result in results.items():
            cells = []
            for k in self.ks:
                for metric in METRICS:
                    values = np.array(result[str(k)][metric])
                    cell = f"{values.mean():.3f} ± {values.std():.3f}"
                    if name != first:
                        difference = values - np.array(results[first][str(k)][metric])
                        error = difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else 0.0
                        cell = f"{values.mean():.3f} ({1000 * difference.mean():+.1f} ± {1000 * error:.1f})"
                    cells.append(cell)
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        return "\n".join(lines) + "\n"


def cross_validate(
    dataset_dir: str,
    output_dir: Path,
    k: Sequence[int],
    draws: int,
    variants: Sequence[str] = (),
    perturbed_normals: int = 200,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Compare variants of the training options and write `table.md` and `shifts.md`.

    Variants that have results in the output folder are not run again.

    Args:
        dataset_dir: data set; only its training part is read.
        output_dir: folder for the results; holds one file per group of variants that share their features.
        k: abnormal images per class, one or more values.
        draws: number of random splits, the same for all variants.
        variants: names from `VARIANTS`; empty means all. "default" is always included, as the reference of all differences.
        perturbed_normals: number of normal images that are perturbed and copied.
        options: options of `train.yaml` for all variants.

    Raises:
        InputError: on an unknown variant or option.
    """
    unknown = [name for name in variants if name not in VARIANTS]
    if unknown:
        raise InputError(f"there is no variant {unknown[0]!r}; choose from {'; '.join(VARIANTS)}")
    names = list(dict.fromkeys(["default", *(variants or VARIANTS)]))
    ks = list(k)
    run = CrossValidation(dataset_dir, output_dir, ks, draws, perturbed_normals, dict(options or {}))
    results: dict[str, Any] = {}
    for group in _groups(names):
        asked = {
            "changes": {n: VARIANTS[n] for n in group},
            "k": ks,
            "draws": draws,
            "options": run.options,
        }
        kept = output_dir / f"{group[0].replace('/', '_')}.json"
        if kept.is_file() and json.loads(kept.read_text())["asked"] == asked:
            results.update(json.loads(kept.read_text())["result"])
            continue
        found = run.run({n: VARIANTS[n] for n in group})
        write_text_atomic(kept, json.dumps({"asked": asked, "result": found}))
        results.update(found)
        logger.info("%s", run.table(results))
    write_text_atomic(output_dir / "table.md", run.table(results))
    shifts = np.array([np.mean(results["default"][str(k)]["shift"], axis=0) for k in ks])
    lines = [f"| {name} | " + " | ".join(f"{s:.3f}" for s in shifts[:, n]) + " |" for n, name in enumerate(CHANGES)]
    head = "| mean movement of a score, share of the gap | " + " | ".join(f"k = {k}" for k in ks) + " |"
    text = "\n".join([head, "|---" * (len(ks) + 1) + "|", *lines]) + "\n"
    write_text_atomic(output_dir / "shifts.md", text)
    logger.info("%s\n%s", run.table(results), text)


def _groups(names: Sequence[str]) -> list[list[str]]:
    """Group the variants that share their features."""
    groups: dict[str, list[str]] = {}
    for name in names:
        features = {option: VARIANTS[name].get(option) for option in FEATURE_OPTIONS}
        groups.setdefault(json.dumps(features), []).append(name)
    return list(groups.values())
