"""Cross-validation of training options on the training part of a data set; its test part is never opened.

    python -m monai_wscxr.cross_validation DIR OUT --k 1,8 --draws 10

A draw holds out a quarter of the normal images by patient, chooses k abnormal images per class, trains as the bundle does
(same functions, without the engine) and scores the held-out normals and the abnormal images of other patients: as they are,
and perturbed in ways that say nothing about disease. All variants see the same draws, so differences are paired. A variant
is a change of options of `train.yaml`. Layers are joined at the coarsest grid.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser
from monai.transforms import Compose
from numpy.typing import NDArray
from torch import Tensor

from monai_wscxr.atomic import write_text_atomic
from monai_wscxr.backbones import NAMED, create_backbone
from monai_wscxr.bank import FeatureBank
from monai_wscxr.bundle import create_optimizer
from monai_wscxr.data.datalist import load_datalist
from monai_wscxr.data.perturbation import PERTURBATIONS
from monai_wscxr.errors import InputError, show_input_errors_plainly
from monai_wscxr.extraction import PatchExtractor
from monai_wscxr.features import PatchFeatures
from monai_wscxr.handlers import DistanceHandler
from monai_wscxr.losses import HingeLoss
from monai_wscxr.metrics import auroc
from monai_wscxr.mixing import MixingInferer, PatchBatches, prepare_patch_batch
from monai_wscxr.networks import Discriminator, anomaly_score
from monai_wscxr.ops import min_distance
from monai_wscxr.transforms import LoadRadiographd, Preprocessing, ResizeRadiographd, radiograph_transforms
from monai_wscxr.whitening import NormalWhitening

logger = logging.getLogger("monai_wscxr")

TRAIN_CONFIG = Path(__file__).parents[1] / "bundles" / "wscxr_chest_xray" / "configs" / "train.yaml"
PUBLISHED_TRAINING = {
    "whiten": False,
    "zero_start": False,
    "optimizer_name": "Adam",
    "learning_rate": 2e-4,
    "distance_share": 0.0,
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
TRAINING_OPTIONS = (
    *("seed", "retention", "whiten", "shrinkage", "zero_start", "depth", "width", "batch_size", "min_batches"),
    *("epochs", "alpha_min", "alpha_max", "optimizer_name", "learning_rate", "weight_decay"),
)
FIGURES = ("as they are", "perturbed alike", "perturbed each")


@dataclass(frozen=True)
class Draw:
    """Indices into the training items of one draw.

    Attributes:
        normal: train the bank.
        held_out: normal images that validate.
        few_shot: per k, the abnormal images that train.
        unseen: per k, the abnormal images of other patients, which validate.
    """

    normal: list[int]
    held_out: list[int]
    few_shot: dict[int, list[int]]
    unseen: dict[int, list[int]]


def make_draw(items: Sequence[Mapping[str, Any]], ks: Sequence[int], seed: int, share: float = 0.25) -> Draw:
    """Random draw over patients; a smaller k is part of a larger one.

    Args:
        items: training items with label, class and patient.
        ks: abnormal images per class.
        seed: of the draw.
        share: of the normal images held out, in (0, 1).

    Raises:
        InputError: when no abnormal image is left to validate with.
    """
    rng = random.Random(seed)
    patients = [str(item.get("patient") or item["image"]) for item in items]
    normal = [i for i, item in enumerate(items) if item["label"] == 0]
    shuffled = sorted({patients[i] for i in normal})
    rng.shuffle(shuffled)
    out: set[str] = set()
    for patient in shuffled:
        if sum(patients[i] in out for i in normal) >= share * len(normal):
            break
        out.add(patient)
    classes: dict[str, list[int]] = {}
    for i, item in enumerate(items):
        if item["label"] == 1:
            classes.setdefault(str(item["class"]), []).append(i)
    for name in sorted(classes):
        rng.shuffle(classes[name])
    few_shot, unseen = {}, {}
    for k in ks:
        few_shot[k] = [i for name in sorted(classes) for i in classes[name][:k]]
        seen = {patients[i] for i in few_shot[k]}
        unseen[k] = [i for name in sorted(classes) for i in classes[name][k:] if patients[i] not in seen]
        if not unseen[k]:
            raise InputError(f"k = {k} leaves no abnormal image of another patient to validate with; take a smaller k")
    return Draw(
        [i for i in normal if patients[i] not in out], [i for i in normal if patients[i] in out], few_shot, unseen
    )


class Maps:
    """Backbone maps of all stages at the coarsest grid, as they are and perturbed; layers and p are chosen later.

    Args:
        items: training items.
        options: image_size, intensity, backbone and weights of `train.yaml`.
        folder: perturbed maps are kept here.
        perturbed_normals: normal images that are perturbed, besides every abnormal one.
    """

    def __init__(self, items: Sequence[dict], options: Mapping[str, Any], folder: Path, perturbed_normals: int) -> None:
        stages = ["1", "2", "3", "4"] if options["backbone"] == "efficientnet_lite0" else options["layers"]
        backbone = create_backbone(options["backbone"], stages, options["weights"])
        features = PatchFeatures(backbone, 1, None, "coarsest")
        size, intensity = options["image_size"], options["intensity"]
        preprocessing = Preprocessing(size, backbone.mean, backbone.std, intensity=intensity)
        extractor = PatchExtractor(features, preprocessing, cache=options["cache"], max_bad_share=0.0)
        self.channels = dict(zip(backbone.layers, backbone.channels, strict=True))
        self.grid = extractor.grid
        self.images = extractor.bank(items).images
        normal = [i for i, item in enumerate(items) if item["label"] == 0]
        chosen = random.Random(5).sample(normal, min(perturbed_normals, len(normal)))
        self.subset = sorted(chosen) + [i for i, item in enumerate(items) if item["label"] == 1]
        kept = folder / f"perturbed_{options['backbone'].replace('/', '_')}_{size}_{intensity}.pt"
        if kept.is_file():
            self.perturbed = torch.load(kept, weights_only=True)
            return
        self.perturbed = {name: self._perturb(items, extractor, name) for name in PERTURBATIONS}
        torch.save(self.perturbed, kept)

    def _perturb(self, items: Sequence[dict], extractor: PatchExtractor, name: str) -> Tensor:
        preprocessing = extractor.preprocessing
        read = Compose([LoadRadiographd(("image",)), ResizeRadiographd(("image",), preprocessing.image_size)])
        rest = Compose(list(radiograph_transforms(preprocessing).transforms[2:]))
        rng = random.Random(3)
        rows = []
        for start in range(0, len(self.subset), 16):
            batch = []
            for i in self.subset[start : start + 16]:
                image = PERTURBATIONS[name](read({"image": items[i]["image"]})["image"].float(), rng)
                batch.append(rest({"image": image})["image"])
            with torch.inference_mode():
                rows.append(extractor.network(torch.stack(batch)))
        logger.info("%s: %d images", name, len(self.subset))
        return torch.cat(rows).clone()

    def choose(self, maps: Tensor, layers: Sequence[str], p: int) -> Tensor:
        """Patch features of Eq. 1 to 3, [n, C, h, w], from maps of all stages."""
        first = np.cumsum([0, *self.channels.values()])
        names = list(self.channels)
        part = torch.cat([maps[:, first[names.index(x)] : first[names.index(x) + 1]] for x in layers], 1)
        return F.avg_pool2d(part, p, stride=1, padding=p // 2, count_include_pad=True) if p > 1 else part


class _Banks:
    """Banks of one draw, as `DistanceHandler` wants them."""

    def __init__(self, normal: FeatureBank, abnormal: FeatureBank) -> None:
        self.normal, self.abnormal = normal, abnormal


def _bank(images: Tensor) -> FeatureBank:
    grid = (images.shape[2], images.shape[3])
    names = [str(n) for n in range(len(images))]
    return FeatureBank.from_images(images.flatten(2).transpose(1, 2).contiguous(), names, grid)


def train(options: Mapping[str, Any], normal: FeatureBank, mined: Tensor) -> Discriminator:
    """Train a discriminator as the bundle does.

    Args:
        options: of `train.yaml`.
        normal: normal bank, whitened where the variant whitens.
        mined: rows of the mined bank, likewise.
    """
    torch.manual_seed(options["seed"])
    discriminator = Discriminator(
        normal.rows.shape[1], options["depth"], options["width"], zero_start=options["zero_start"]
    ).train()
    batches = PatchBatches(options["batch_size"], options["seed"], min_batches=options["min_batches"])
    batches.fill(normal.rows)
    inferer = MixingInferer(options["seed"], options["alpha_min"], options["alpha_max"])
    inferer.fill(mined)
    loss_function = HingeLoss()
    optimizer = create_optimizer(
        options["optimizer_name"], discriminator.parameters(), options["learning_rate"], options["weight_decay"]
    )
    for _ in range(options["epochs"]):
        for batch in batches:
            inputs, target, _, keywords = prepare_patch_batch(batch)
            optimizer.zero_grad()
            loss_function(inferer(inputs, discriminator, **keywords), target).backward()
            optimizer.step()
    return discriminator.eval()


class DrawData:
    """Features of one draw; what variants have in common is computed once.

    Args:
        draw: who trains and who validates.
        features: [n, C, h, w] of all training items.
        perturbed: per perturbation, features of the items `subset`.
        subset: indices of the perturbed items.
        labels: of all training items.
    """

    def __init__(
        self,
        draw: Draw,
        features: Tensor,
        perturbed: Mapping[str, Tensor],
        subset: Sequence[int],
        labels: NDArray[np.int64],
    ) -> None:
        self.draw, self.features, self.perturbed, self.labels = draw, features, perturbed, labels
        self.place = {i: n for n, i in enumerate(subset)}
        self.normal = _bank(features[draw.normal])
        few = draw.few_shot[max(draw.few_shot)]
        distance, _ = min_distance(_bank(features[few]).rows, self.normal.rows)
        self.distance = dict(zip(few, distance.split(features.shape[2] * features.shape[3]), strict=True))
        self.whitened: dict[tuple, tuple[NormalWhitening, FeatureBank, Tensor, dict[str, Tensor]]] = {}
        self.trained: dict[str, Discriminator] = {}

    def mined(self, k: int, retention: float) -> Tensor:
        """Rows of the mined bank (Eq. 4 and 5); distances were measured once for all k."""
        few = self.draw.few_shot[k]
        distance = torch.cat([self.distance[i] for i in few])
        order = torch.sort(distance, descending=True, stable=True).indices
        return _bank(self.features[few]).rows[order[: max(1, int(retention * len(order) + 1e-9))]]

    def white(self, options: Mapping[str, Any]) -> tuple[NormalWhitening, FeatureBank, Tensor, dict[str, Tensor]]:
        """Whitening, whitened normal bank, and all images that validate, as they are and perturbed, whitened."""
        key = (options["whiten"], options["shrinkage"])
        if key not in self.whitened:
            whitening = NormalWhitening(self.features.shape[1], options["whiten"])
            whitening.fit(self.normal.rows, options["shrinkage"])
            bank = replace(self.normal, rows=whitening(self.normal.rows))
            judged = self.judged()
            where = [self.place[i] for i in judged if i in self.place]
            perturbed = {name: whitening(maps[where]) for name, maps in self.perturbed.items()}
            self.whitened[key] = whitening, bank, whitening(self.features[judged]), perturbed
        return self.whitened[key]

    def judged(self, k: int | None = None) -> list[int]:
        """Items that validate with this k, or with any."""
        unseen = sorted({i for u in self.draw.unseen.values() for i in u}) if k is None else self.draw.unseen[k]
        return self.draw.held_out + unseen

    def figures(self, options: Mapping[str, Any], k: int) -> tuple[list[float], list[float]]:
        """The three `FIGURES`, and per perturbation the mean movement of scores as a share of the class gap."""
        whitening, normal, images, perturbed = self.white(options)
        key = json.dumps([k, {o: options[o] for o in TRAINING_OPTIONS}], default=str)
        if key not in self.trained:
            self.trained[key] = train(options, normal, whitening(self.mined(k, options["retention"])))
        discriminator = self.trained[key]
        few: Any = _Banks(normal, _bank(self.features[self.draw.few_shot[k]]))
        handler = DistanceHandler(few, discriminator, options["distance_share"], options["score_share"])
        handler(None)  # type: ignore[arg-type]
        discriminator.eval()
        judged = self.judged(k)
        rows = {i: n for n, i in enumerate(self.judged())}
        within = {i: n for n, i in enumerate(i for i in self.judged() if i in self.place)}
        both = [i for i in judged if i in within]
        with torch.inference_mode():

            def score(maps: Tensor) -> NDArray[np.float64]:
                return anomaly_score(discriminator(maps), options["score_share"])[:, 0].double().numpy()

            scores = dict(zip(judged, score(images[[rows[i] for i in judged]]), strict=True))
            own = [np.array([scores[i] for i in both])]
            own += [score(perturbed[name][[within[i] for i in both]]) for name in PERTURBATIONS]
        plain = auroc(self.labels[judged], list(scores.values()))
        return _perturbed_figures(plain, self.labels[both], np.stack(own))


def _perturbed_figures(
    plain: float, labels: NDArray[np.int64], scores: NDArray[np.float64]
) -> tuple[list[float], list[float]]:
    """Figures from scores [1 + perturbations, n], the first row being unperturbed."""
    alike = float(np.mean([auroc(labels, row) for row in scores[1:]]))
    rng = np.random.default_rng(0)
    columns = np.arange(len(labels))
    each = [auroc(labels, scores[rng.integers(0, len(scores), len(labels)), columns]) for _ in range(5)]
    gap = np.median(scores[0][labels == 1]) - np.median(scores[0][labels == 0])
    return [plain, alike, float(np.mean(each))], [float(np.abs(row - scores[0]).mean() / gap) for row in scores[1:]]


class CrossValidation:
    """Variants on common draws.

    Args:
        source: data set; only its training part is used.
        folder: results and perturbed maps.
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
        labels = np.array([item["label"] for item in self.items])
        results: dict[str, Any] = {n: {str(k): {f: [] for f in (*FIGURES, "shift")} for k in self.ks} for n in variants}
        for number, draw in enumerate(self.draws):
            data = DrawData(draw, features, perturbed, maps.subset, labels)
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
            self.maps = (key, Maps(self.items, options, self.folder, self.perturbed_normals))
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; variants whose results are in OUT are not run again."""
    parser = argparse.ArgumentParser(prog="python -m monai_wscxr.cross_validation", description=__doc__)
    parser.add_argument("dataset_dir")
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--k", default="1,8", help="abnormal images per class, with commas")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--variants", default="", help=f"names with semicolons; all by default: {'; '.join(VARIANTS)}")
    parser.add_argument("--perturbed_normals", type=int, default=200)
    parser.add_argument(
        "--options", type=json.loads, default={}, help="options of train.yaml for all variants, as JSON"
    )
    given = parser.parse_args(arguments)
    show_input_errors_plainly()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    names = [name.strip() for name in given.variants.split(";") if name.strip()] or list(VARIANTS)
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        raise InputError(f"there is no variant {unknown[0]!r}; choose from {'; '.join(VARIANTS)}")
    names = list(dict.fromkeys(["default", *names]))
    ks = [int(k) for k in given.k.split(",")]
    run = CrossValidation(given.dataset_dir, given.output_dir, ks, given.draws, given.perturbed_normals, given.options)
    results: dict[str, Any] = {}
    for group in _groups(names):
        asked = {
            "changes": {n: VARIANTS[n] for n in group},
            "k": ks,
            "draws": given.draws,
            "options": _plain(run.options),
        }
        kept = given.output_dir / f"{group[0].replace('/', '_')}.json"
        if kept.is_file() and json.loads(kept.read_text())["asked"] == asked:
            results.update(json.loads(kept.read_text())["result"])
            continue
        found = run.run({n: VARIANTS[n] for n in group})
        write_text_atomic(kept, json.dumps({"asked": asked, "result": found}))
        results.update(found)
        logger.info("%s", run.table(results))
    write_text_atomic(given.output_dir / "table.md", run.table(results))
    shifts = np.array([np.mean(results["default"][str(k)]["shift"], axis=0) for k in ks])
    lines = [
        f"| {name} | " + " | ".join(f"{s:.3f}" for s in shifts[:, n]) + " |" for n, name in enumerate(PERTURBATIONS)
    ]
    head = "| mean movement of a score, share of the gap | " + " | ".join(f"k = {k}" for k in ks) + " |"
    text = "\n".join([head, "|---" * (len(ks) + 1) + "|", *lines]) + "\n"
    write_text_atomic(given.output_dir / "shifts.md", text)
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


if __name__ == "__main__":
    main()
