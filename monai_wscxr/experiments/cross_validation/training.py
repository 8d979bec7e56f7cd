"""Training and scoring within one split, by the bundle's own functions without its engine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monai_wscxr.bank.feature_bank import FeatureBank
from monai_wscxr.data.perturbation import PERTURBATIONS, SHIFTS
from monai_wscxr.evaluation.metrics import auroc
from monai_wscxr.experiments.cross_validation.splits import RandomSplit
from monai_wscxr.model.losses import HingeLoss
from monai_wscxr.model.mining import farthest_of_each
from monai_wscxr.model.mixing import MixingInferer, PatchBatches, prepare_patch_batch
from monai_wscxr.model.networks import Discriminator, image_scores
from monai_wscxr.model.nuisance import nuisance_covariance
from monai_wscxr.model.opacity import opacity_directions
from monai_wscxr.model.regions import region_means
from monai_wscxr.model.whitening import NormalWhitening
from monai_wscxr.ops import min_distance
from monai_wscxr.training.configs import option_names
from monai_wscxr.training.distance import distance_weight, opacity_share, region_weight, weigh_opacity
from monai_wscxr.training.start import create_optimizer

METRICS = ("as they are", "perturbed alike", "perturbed each", "shifted alike")
"""AUROC on unchanged images; mean over perturbations of all images alike; with another perturbation for each image; mean over
shifts of all images alike."""

SCORING_OPTIONS = (
    *("distance_share", "score_share", "region_share", "region_shrinkage", "region_nuisance"),
    *("opacities", "opacity_share"),
)
"""Options of `train.yaml` that only affect scoring: variants that differ in nothing else share a trained discriminator."""

WHITENING_OPTIONS = ("whiten", "shrinkage", "copies", "copied_normals", "nuisance")
"""Options of `train.yaml` that the whitening depends on."""


def training_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a trained discriminator depends on: all of the configuration but `SCORING_OPTIONS`."""
    return {name: options[name] for name in option_names(options) if name not in SCORING_OPTIONS}


def bank_of(images: Tensor) -> FeatureBank:
    """Return the bank of patch features [n, C, h, w]."""
    grid = (images.shape[2], images.shape[3])
    names = [str(n) for n in range(len(images))]
    return FeatureBank.from_images(images.flatten(2).transpose(1, 2).contiguous(), names, grid)


def train(options: Mapping[str, Any], normal: FeatureBank, mined: Tensor) -> Discriminator:
    """Train a discriminator as the bundle does.

    Args:
        options: options of `train.yaml`.
        normal: normal bank, whitened if the variant whitens.
        mined: rows [k, C] of the mined bank, whitened likewise.
    """
    torch.manual_seed(options["seed"])
    discriminator = Discriminator(
        normal.rows.shape[1], options["depth"], options["width"], zero_start=options["zero_start"]
    ).train()
    batches = PatchBatches(options["batch_size"], options["seed"], min_batches=options["min_batches"])
    batches.fill(normal.rows)
    inferer = MixingInferer(options["seed"], options["alpha_min"], options["alpha_max"], options["mix_hidden"])
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


class Whitened(NamedTuple):
    """Features of a split after whitening.

    Attributes:
        whitening: fitted to the normal bank.
        normal: normal bank.
        images: features [n, C, h, w] of all validation images.
        perturbed: features [m, C, h, w] of those validation images that are perturbed, by name of the perturbation.
    """

    whitening: NormalWhitening
    normal: FeatureBank
    images: Tensor
    perturbed: dict[str, Tensor]


class SplitFeatures:
    """Features of one split; results that variants have in common are computed once.

    Args:
        split: training and validation images.
        features: features [n, C, h, w] of all training items.
        perturbed: features [m, C, h, w] of the items `subset`, by name of the perturbation.
        copies: features [m, C, h, w] of the items `subset`, for each altered copy.
        subset: indices of the m perturbed and copied items.
        labels: labels [n] of all training items.
        opacities: features [m, C, h, w] of the items `subset`, for each copy with a synthetic opacity.
    """

    def __init__(
        self,
        split: RandomSplit,
        features: Tensor,
        perturbed: Mapping[str, Tensor],
        copies: Sequence[Tensor],
        subset: Sequence[int],
        labels: NDArray[np.int64],
        opacities: Sequence[Tensor] = (),
    ) -> None:
        self.split, self.features, self.perturbed, self.labels = split, features, perturbed, labels
        self.copies, self.opacities = copies, opacities
        self.place = {i: n for n, i in enumerate(subset)}
        self.normal = bank_of(features[split.normal])
        few = split.few_shot[max(split.few_shot)]
        distance, _ = min_distance(bank_of(features[few]).rows, self.normal.rows)
        self.distance = dict(zip(few, distance.split(features.shape[2] * features.shape[3]), strict=True))
        self._whitened: dict[tuple[Any, ...], Whitened] = {}
        self._trained: dict[str, Discriminator] = {}

    def mined(self, k: int, retention: float, scope: str = "all") -> Tensor:
        """Return the rows of the mined bank (Eq. 4 and 5), from the distances measured once for all k."""
        few = self.split.few_shot[k]
        distance = torch.stack([self.distance[i] for i in few])
        images = distance if scope == "image" else distance.reshape(1, -1)  # all together are one large image
        return bank_of(self.features[few]).rows[farthest_of_each(images, retention)]

    def nuisance(self, options: Mapping[str, Any]) -> Tensor | None:
        """Return the weighted covariance [C, C] of the changes that alterations make to features of normal training images.

        None if the options turn it off.
        """
        if not options["copies"] or not options["nuisance"]:
            return None
        copied = [i for i in self.split.normal if i in self.place][: options["copied_normals"]]
        before = bank_of(self.features[copied]).rows
        where = [self.place[i] for i in copied]
        made = [nuisance_covariance(before, bank_of(maps[where]).rows) for maps in self.copies[: options["copies"]]]
        return options["nuisance"] * torch.stack(made).mean(0)

    def whitened(self, options: Mapping[str, Any]) -> Whitened:
        """Fit the whitening and apply it to normal bank and validation images; once for equal options."""
        key = tuple(options[name] for name in WHITENING_OPTIONS)
        if key not in self._whitened:
            whitening = NormalWhitening(self.features.shape[1], options["whiten"])
            whitening.fit(self.normal.rows, options["shrinkage"], self.nuisance(options))
            bank = replace(self.normal, rows=whitening(self.normal.rows))
            validation = self.validation_items()
            where = [self.place[i] for i in validation if i in self.place]
            perturbed = {name: whitening(maps[where]) for name, maps in self.perturbed.items()}
            self._whitened[key] = Whitened(whitening, bank, whitening(self.features[validation]), perturbed)
        return self._whitened[key]

    def validation_items(self, k: int | None = None) -> list[int]:
        """Return the indices of the validation items for this k, or for any k if None."""
        unseen = sorted({i for u in self.split.unseen.values() for i in u}) if k is None else self.split.unseen[k]
        return self.split.held_out + unseen

    def metrics(self, options: Mapping[str, Any], k: int) -> tuple[list[float], list[float]]:
        """Train a variant and compute its metrics on the validation images.

        Args:
            options: options of `train.yaml`.
            k: abnormal images per class.

        Returns:
            The values of `METRICS`; and for each perturbation the mean movement of a score, as a share of the gap between the
            classes.
        """
        whitening, normal, images, perturbed = self.whitened(options)
        key = json.dumps([k, training_options(options)], default=str)
        if key not in self._trained:
            mined = self.mined(k, options["retention"], options["mining_scope"])
            self._trained[key] = train(options, normal, whitening(mined))
        discriminator = self._trained[key]
        few = len(self.split.few_shot[k])
        weight = distance_weight(discriminator, normal, few, options["distance_share"], options["score_share"])
        discriminator.distance_weight.fill_(weight)
        discriminator.opacity.zero_()  # the regions are weighed without them
        self._set_regions(discriminator, options, k, whitening, normal)
        self._set_opacity(discriminator, options, k, whitening, normal)
        validation = self.validation_items(k)
        row = {i: n for n, i in enumerate(self.validation_items())}
        perturbed_row = {i: n for n, i in enumerate(i for i in self.validation_items() if i in self.place)}
        both = [i for i in validation if i in perturbed_row]

        def score(maps: Tensor) -> NDArray[np.float64]:
            return image_scores(discriminator, maps, options["score_share"])[:, 0].double().numpy()

        scores = dict(zip(validation, score(images[[row[i] for i in validation]]), strict=True))
        own = np.array([scores[i] for i in both])
        changed = {name: score(maps[[perturbed_row[i] for i in both]]) for name, maps in perturbed.items()}
        plain = auroc(self.labels[validation], list(scores.values()))
        return _perturbed_metrics(plain, self.labels[both], own, changed)

    def _set_opacity(
        self,
        discriminator: Discriminator,
        options: Mapping[str, Any],
        k: int,
        whitening: NormalWhitening,
        normal: FeatureBank,
    ) -> None:
        """Add the direction of synthetic opacities as the bundle does."""
        copied = [i for i in self.split.normal if i in self.place][: options["copied_normals"]]
        made = self.opacities[: options["opacities"]]
        if not (options["opacity_share"] and options["whiten"] and copied and made):
            return
        where, before = [self.place[i] for i in copied], self.features[copied]
        changes = torch.cat([(maps[where] - before).flatten(2).transpose(1, 2) for maps in made])
        share = opacity_share(options["opacity_share"], k, 1)
        direction, _ = opacity_directions(changes, whitening, options["shrinkage"])
        weigh_opacity(discriminator, normal, direction, share, options["score_share"])

    def _set_regions(
        self,
        discriminator: Discriminator,
        options: Mapping[str, Any],
        k: int,
        whitening: NormalWhitening,
        normal: FeatureBank,
    ) -> None:
        """Fit and weigh the opinion of the regions as the bundle does."""
        discriminator.regions.weight.zero_()
        if not options["region_share"]:
            return
        copied = [i for i in self.split.normal if i in self.place][: options["copied_normals"]]
        where, moved = [self.place[i] for i in copied], None
        if options["copies"] and options["whiten"] and copied:
            before = region_means(whitening(self.features[copied]))
            moved = torch.cat(
                [region_means(whitening(maps[where])) - before for maps in self.copies[: options["copies"]]]
            )
        discriminator.regions.fit(
            region_means(normal.images),
            region_means(whitening(self.features[self.split.few_shot[k]])),
            moved,
            options["region_shrinkage"],
            options["region_nuisance"],
        )
        share = region_weight(discriminator, normal, options["region_share"], options["score_share"])
        discriminator.regions.weight.fill_(share)


def _perturbed_metrics(
    plain: float, labels: NDArray[np.int64], own: NDArray[np.float64], changed: Mapping[str, NDArray[np.float64]]
) -> tuple[list[float], list[float]]:
    """Compute the values of `METRICS` and the movement of scores.

    Args:
        plain: AUROC on all unchanged validation images.
        labels: labels [n] of the perturbed validation images.
        own: scores [n] of the same images, unchanged.
        changed: scores [n] by name of the perturbation or shift.
    """
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
