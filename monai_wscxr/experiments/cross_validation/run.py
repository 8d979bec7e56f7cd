"""Variants on common draws, their table, and the command."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import ConfigParser

from monai_wscxr.data.datalist import load_datalist
from monai_wscxr.errors import InputError
from monai_wscxr.experiments.cross_validation.draws import make_draw
from monai_wscxr.experiments.cross_validation.maps import CHANGES, Maps
from monai_wscxr.experiments.cross_validation.training import FIGURES, DrawData
from monai_wscxr.features.backbones import NAMED
from monai_wscxr.system.atomic import write_text_atomic

logger = logging.getLogger("monai_wscxr")

TRAIN_CONFIG = Path(__file__).parents[3] / "bundles" / "wscxr_chest_xray" / "configs" / "train.yaml"
PUBLISHED_TRAINING = {
    "whiten": False,
    "zero_start": False,
    "optimizer_name": "Adam",
    "learning_rate": 2e-4,
    "distance_share": 0.0,
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
    "maximum": {"score_share": 0.0},
    "mean": {"score_share": 1.0},
}
FEATURE_OPTIONS = ("image_size", "intensity", "backbone", "weights", "layers", "neighbourhood")


class CrossValidation:
    """Variants on common draws.

    Args:
        source: data set; only its training part is used.
        folder: results.
        ks: abnormal images per class.
        draws: number of draws.
        perturbed_normals: see `Maps`.
        changes: options for all variants, over those of `train.yaml`.
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
        self.items = load_datalist(source)["training"]
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.ks, self.perturbed_normals = folder, list(ks), perturbed_normals
        self.draws = [make_draw(self.items, ks, 1000 + d) for d in range(draws)]
        parser = ConfigParser()
        parser.read_config(str(TRAIN_CONFIG))
        self.options: dict[str, Any] = parser.get()
        self._check("options", changes or {})
        self.options.update(changes or {})
        self.most_copies = max(self.options["copies"], *(v.get("copies", 0) for v in VARIANTS.values()))
        self.maps: tuple[tuple, Maps] | None = None

    def run(self, variants: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Figures of variants that share their features: {name: {k: {figure: [one per draw], "shift": [...]}}}."""
        for name, changes in variants.items():
            self._check(f"variant {name!r}", changes)
        first = {**self.options, **next(iter(variants.values()))}
        layers: list[str] = list(first["layers"] or NAMED[first["backbone"]].layers or ())
        maps = self._maps({**first, "layers": layers})
        features = maps.choose(maps.images, layers, first["neighbourhood"])
        perturbed = {n: maps.choose(m, layers, first["neighbourhood"]) for n, m in maps.perturbed.items()}
        copies = [maps.choose(m, layers, first["neighbourhood"]) for m in maps.copies]
        labels = np.array([item["label"] for item in self.items])
        results: dict[str, Any] = {n: {str(k): {f: [] for f in (*FIGURES, "shift")} for k in self.ks} for n in variants}
        for number, draw in enumerate(self.draws):
            data = DrawData(draw, features, perturbed, copies, maps.subset, labels)
            for name, changes in variants.items():
                for k in self.ks:
                    figures, shift = data.figures({**self.options, **changes}, k)
                    for figure, value in zip(FIGURES, figures, strict=True):
                        results[name][str(k)][figure].append(value)
                    results[name][str(k)]["shift"].append(shift)
            logger.info("draw %d of %d: %s", number + 1, len(self.draws), ", ".join(variants))
        return results

    def _check(self, what: str, changes: Mapping[str, Any]) -> None:
        unknown = [key for key in changes if key not in self.options]
        if unknown:
            raise InputError(f"{what}: there is an option {unknown[0]!r}, which train.yaml does not have")

    def _maps(self, options: Mapping[str, Any]) -> Maps:
        key = tuple(str(options[k]) for k in ("image_size", "intensity", "backbone", "weights"))
        if self.maps is None or self.maps[0] != key:
            self.maps = None  # free the old ones first
            self.maps = (key, Maps(self.items, options, self.perturbed_normals, self.most_copies))
        return self.maps[1]

    def table(self, results: Mapping[str, Mapping[str, Any]]) -> str:
        """Markdown: mean and standard deviation over draws, and the paired difference to the first variant."""
        first = next(iter(results))
        heads = [f"k = {k}, {f}" for k in self.ks for f in FIGURES]
        lines = ["| variant | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
        for name, result in results.items():
            cells = []
            for k in self.ks:
                for figure in FIGURES:
                    values = np.array(result[str(k)][figure])
                    cell = f"{values.mean():.3f} ± {values.std():.3f}"
                    if name != first:
                        difference = values - np.array(results[first][str(k)][figure])
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
    """Compare variants of the training options and write `table.md` and `shifts.md`; results in the folder are kept.

    Args:
        dataset_dir: data set; only its training part is read.
        output_dir: folder for results, one file for each group of variants.
        k: abnormal images per class.
        draws: number of draws, the same for every variant.
        variants: names from `VARIANTS`; empty for all. "default" is always run, since differences are taken from it.
        perturbed_normals: normal images that are perturbed and copied.
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
            "options": _plain(run.options),
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
    """Variants that share their features, together."""
    groups: dict[str, list[str]] = {}
    for name in names:
        features = {option: VARIANTS[name].get(option) for option in FEATURE_OPTIONS}
        groups.setdefault(json.dumps(features), []).append(name)
    return list(groups.values())


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in options.items() if isinstance(v, (int, float, str, bool, list, type(None)))}
