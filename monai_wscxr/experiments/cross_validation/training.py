"""Training and scoring within one draw, by the bundle's own functions without its engine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_wscxr.bank.feature_bank import FeatureBank
from monai_wscxr.data.perturbation import PERTURBATIONS, SHIFTS
from monai_wscxr.evaluation.metrics import auroc
from monai_wscxr.experiments.cross_validation.draws import Draw
from monai_wscxr.model.losses import HingeLoss
from monai_wscxr.model.mining import farthest_of_each
from monai_wscxr.model.mixing import MixingInferer, PatchBatches, prepare_patch_batch
from monai_wscxr.model.networks import Discriminator, image_scores
from monai_wscxr.model.nuisance import nuisance_covariance
from monai_wscxr.model.whitening import NormalWhitening
from monai_wscxr.ops import min_distance
from monai_wscxr.training.distance import distance_weight
from monai_wscxr.training.start import create_optimizer

TRAINING_OPTIONS = (
    *(
        "seed",
        "retention",
        "mining_scope",
        "whiten",
        "shrinkage",
        "zero_start",
        "depth",
        "width",
        "batch_size",
        "min_batches",
    ),
    *(
        "copies",
        "copied_normals",
        "nuisance",
        "epochs",
        "alpha_min",
        "alpha_max",
        "optimizer_name",
        "learning_rate",
        "weight_decay",
    ),
)
FIGURES = ("as they are", "perturbed alike", "perturbed each", "shifted alike")


def bank_of(images: Tensor) -> FeatureBank:
    """Bank of patch features [n, C, h, w]."""
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
        copies: per altered copy, the same.
        subset: indices of the perturbed and copied items.
        labels: of all training items.
    """

    def __init__(
        self,
        draw: Draw,
        features: Tensor,
        perturbed: Mapping[str, Tensor],
        copies: Sequence[Tensor],
        subset: Sequence[int],
        labels: NDArray[np.int64],
    ) -> None:
        self.draw, self.features, self.perturbed, self.labels = draw, features, perturbed, labels
        self.copies = copies
        self.place = {i: n for n, i in enumerate(subset)}
        self.normal = bank_of(features[draw.normal])
        few = draw.few_shot[max(draw.few_shot)]
        distance, _ = min_distance(bank_of(features[few]).rows, self.normal.rows)
        self.distance = dict(zip(few, distance.split(features.shape[2] * features.shape[3]), strict=True))
        self.whitened: dict[tuple, tuple[NormalWhitening, FeatureBank, Tensor, dict[str, Tensor]]] = {}
        self.trained: dict[str, Discriminator] = {}

    def mined(self, k: int, retention: float, scope: str = "all") -> Tensor:
        """Rows of the mined bank (Eq. 4 and 5); distances were measured once for all k."""
        few = self.draw.few_shot[k]
        distance = torch.stack([self.distance[i] for i in few])
        images = distance if scope == "image" else distance.reshape(1, -1)  # all together are one large image
        return bank_of(self.features[few]).rows[farthest_of_each(images, retention)]

    def nuisance(self, options: Mapping[str, Any]) -> Tensor | None:
        """Weighted covariance of what alterations do to normal images of this draw."""
        if not options["copies"] or not options["nuisance"]:
            return None
        copied = [i for i in self.draw.normal if i in self.place][: options["copied_normals"]]
        before = bank_of(self.features[copied]).rows
        where = [self.place[i] for i in copied]
        made = [nuisance_covariance(before, bank_of(maps[where]).rows) for maps in self.copies[: options["copies"]]]
        return options["nuisance"] * torch.stack(made).mean(0)

    def white(self, options: Mapping[str, Any]) -> tuple[NormalWhitening, FeatureBank, Tensor, dict[str, Tensor]]:
        """Whitening, whitened normal bank, and all images that validate, as they are and perturbed, whitened."""
        key = tuple(options[o] for o in ("whiten", "shrinkage", "copies", "copied_normals", "nuisance"))
        if key not in self.whitened:
            whitening = NormalWhitening(self.features.shape[1], options["whiten"])
            whitening.fit(self.normal.rows, options["shrinkage"], self.nuisance(options))
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
        """The `FIGURES`, and per perturbation the mean movement of scores as a share of the class gap."""
        whitening, normal, images, perturbed = self.white(options)
        key = json.dumps([k, {o: options[o] for o in TRAINING_OPTIONS}], default=str)
        if key not in self.trained:
            self.trained[key] = train(
                options,
                normal,
                whitening(self.mined(k, options["retention"], options["mining_scope"])),
            )
        discriminator = self.trained[key]
        few = len(self.draw.few_shot[k])
        weight = distance_weight(discriminator, normal, few, options["distance_share"], options["score_share"])
        discriminator.distance_weight.fill_(weight)
        discriminator.eval()
        judged = self.judged(k)
        rows = {i: n for n, i in enumerate(self.judged())}
        within = {i: n for n, i in enumerate(i for i in self.judged() if i in self.place)}
        both = [i for i in judged if i in within]

        def score(maps: Tensor) -> NDArray[np.float64]:
            return image_scores(discriminator, maps, options["score_share"])[:, 0].double().numpy()

        scores = dict(zip(judged, score(images[[rows[i] for i in judged]]), strict=True))
        own = np.array([scores[i] for i in both])
        changed = {name: score(maps[[within[i] for i in both]]) for name, maps in perturbed.items()}
        plain = auroc(self.labels[judged], list(scores.values()))
        return _perturbed_figures(plain, self.labels[both], own, changed)


def _perturbed_figures(
    plain: float, labels: NDArray[np.int64], own: NDArray[np.float64], changed: Mapping[str, NDArray[np.float64]]
) -> tuple[list[float], list[float]]:
    """Figures from scores [n], unperturbed and by perturbation or shift."""
    alike, shifted = (
        float(np.mean([auroc(labels, changed[name]) for name in names])) for names in (PERTURBATIONS, SHIFTS)
    )
    mixed = np.stack([own, *(changed[name] for name in PERTURBATIONS)])
    rng = np.random.default_rng(0)
    columns = np.arange(len(labels))
    each = [auroc(labels, mixed[rng.integers(0, len(mixed), len(labels)), columns]) for _ in range(5)]
    gap = np.median(own[labels == 1]) - np.median(own[labels == 0])
    movement = [float(np.abs(scores - own).mean() / gap) for scores in changed.values()]
    return [plain, alike, float(np.mean(each)), shifted], movement
