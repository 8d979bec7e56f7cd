"""Adapt a trained model to another site by its normal images, or without labels by the bulk of its images.

From normal images come the operating point, p-values, colours and the reference for drift of the site. Where the features are
whitened, the model is also aligned with the site (`NormalWhitening.align`). Scores that calibrate come from cross-fitting: the
images are divided into folds, and each is scored by a model that was aligned with the others.

From unlabelled images the scores of normal images are estimated (`estimate_null`); nothing is aligned then, because the
covariance would contain the findings.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monai_wscxr.data.stream import Rejected
from monai_wscxr.errors import InputError
from monai_wscxr.features.extraction import PatchExtractor
from monai_wscxr.model.artefact import TrainedModel, save_model
from monai_wscxr.model.calibration import FEWEST_UNLABELLED, Calibration, estimate_null, percent, recalibrate
from monai_wscxr.model.drift import Drift, measure_drift
from monai_wscxr.model.local_map import LocalMap
from monai_wscxr.model.networks import WSCXRNet
from monai_wscxr.model.predictions import check_images, map_peaks
from monai_wscxr.model.scores import anomaly_score
from monai_wscxr.model.whitening import Moments

logger = logging.getLogger("monai_wscxr")

FEWEST_NORMALS = 20
_FOLDS = 10
_MANY_FLAGGED = 0.25  # of normal images of the model's own site; more are no normals


@dataclass(frozen=True)
class Adaptation:
    """What an adaptation did.

    Attributes:
        images: number of images that it rests on.
        rejected: (file, reason code, message) of images that could not be used.
        before, after: calibration of the model and of the adapted model.
        flagged_before: share of the images that the model flags as it is, in [0, 1].
        drift: drift of the images against what calibrated the model.
        aligned: whether features were aligned with the site.
        sha256: hash of the adapted model's weights.
    """

    images: int
    rejected: tuple[Rejected, ...]
    before: Calibration
    after: Calibration
    flagged_before: float
    drift: Drift
    aligned: bool
    sha256: str

    def sentences(self) -> list[str]:
        """Return the result as sentences for the console."""
        unlabelled = self.after.basis == "site_unlabelled"
        images = "unlabelled images" if unlabelled else "normal images"
        codes = Counter(code for _, code, _ in self.rejected)
        left_out = f"; {len(self.rejected)} rejected ({', '.join(f'{n} {c}' for c, n in sorted(codes.items()))})"
        shift = {
            None: "",
            True: f"; they are unlike the normals of the training (shift {self.drift.shift:.2f})",
            False: "; they are like the normals of the training",
        }[self.drift.named]
        return [
            f"{self.images} {images}{left_out if self.rejected else ''}{shift}",
            f"without the adaptation {percent(self.flagged_before)} of them are flagged",
            f"threshold {self.before.threshold:.4f} -> {self.after.threshold:.4f}: {self.after.rate_text}",
            "features aligned with the site" if self.aligned else "features as they were",
        ]


def adapt(
    model: TrainedModel,
    files: Sequence[str | Path],
    output: str | Path,
    extractor: PatchExtractor,
    unlabelled: bool = False,
    align: bool = True,
    accept_flagged: bool = False,
) -> Adaptation:
    """Adapt a model to a site and write the adapted model.

    Args:
        model: the trained model.
        files: normal images of the site, 20 or more; or with `unlabelled` any images, 50 or more.
        output: folder for `model.pt` and `artefact.json`; created where it is missing.
        extractor: patch features of the model's network, see `extractor_for`.
        unlabelled: estimate from images without labels, of which at most half are abnormal.
        align: align features with the site; has no effect without labels, or where features are not whitened.
        accept_flagged: adapt even if the images seem to be abnormal ones of the training's own site.

    Raises:
        InputError: when the model is an adapted one, or the images are too few, took part in the training, cannot be used, or
            seem to be abnormal.
    """
    if model.site is not None:
        raise InputError(
            f"{model.folder} is adapted to a site already; adapt the model that it came from (a training's --output_dir)"
        )
    used, rows, rejected = _usable(model, [str(file) for file in files], extractor)
    fewest, kind = (FEWEST_UNLABELLED, "unlabelled images") if unlabelled else (FEWEST_NORMALS, "normal images")
    if len(used) < fewest:
        raise InputError(
            f"{len(used)} usable {kind} are too few to adapt to a site, {fewest} or more are needed"
            + (f" ({len(rejected)} could not be used)" if rejected else "")
        )
    network, grid = model.network, extractor.grid
    maps = patch_scores_of(network, rows, grid)
    scores = anomaly_score(maps, model.score_share)[:, 0].tolist()
    flagged = sum(map(model.calibration.abnormal, scores)) / len(scores)
    means = rows.mean(1)
    drift = measure_drift(model.drift, [] if model.drift is None else model.drift.coordinates(means))
    if not unlabelled and drift.named is False and flagged > _MANY_FLAGGED and not accept_flagged:
        raise InputError(
            f"the model flags {percent(flagged)} of these images although they come from where it was trained: they seem to be "
            "abnormal. Give normal images, or --unlabelled for a mixture; with --accept_flagged they count as normal"
        )
    aligned = align and not unlabelled and network.whitening.active
    if unlabelled:
        places = None if model.local_map is None else LocalMap.estimate(maps)
        calibration = estimate_null(model.calibration, scores)
    else:
        if aligned:
            network, maps = aligned_with(network, rows), cross_fitted(network, rows, grid)
        places = None if model.local_map is None else LocalMap.measure(maps)
        site_scores = anomaly_score(maps, model.score_share)[:, 0].tolist()
        calibration = recalibrate(model.calibration, site_scores, _cross_fitted_peaks(model, maps))
    reference = None if model.drift is None else model.drift.moved(model.drift.coordinates(means))
    record: dict[str, Any] = {
        "basis": calibration.basis,
        "images": len(used),
        "rejected": len(rejected),
        "aligned": aligned,
        "model_sha256": model.sha256,
        "threshold": model.calibration.threshold,
        "flagged_before": flagged,
        "digests": sorted({extractor.digest(file) for file in used}),
    }
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    sha256 = save_model(
        folder,
        network,
        model.preprocessing,
        calibration,
        model.map_sigma,
        model.settings,
        model.training,
        model.score_share,
        model.chest_check,
        places,
        reference,
        record,
    )
    return Adaptation(len(used), tuple(rejected), model.calibration, calibration, flagged, drift, aligned, sha256)


def extractor_for(model: TrainedModel, **options: Any) -> PatchExtractor:
    """Return an extractor of the model's patch features.

    Args:
        model: the model; the extractor has its device and precision.
        options: further options of `PatchExtractor`.
    """
    device = next(model.network.parameters()).device
    precision = model.settings.get("precision", "float32")
    return PatchExtractor(model.network.features, model.preprocessing, device, precision=precision, **options)


def _usable(
    model: TrainedModel, files: list[str], extractor: PatchExtractor
) -> tuple[list[str], Tensor, list[Rejected]]:
    """Return the files that can be used, their features [n, h*w, C], and the rejected files."""
    used, rows, unreadable = extractor.usable(files, "images of the site")
    rejected = list(unreadable)
    known = model.known_digests
    if trained_on := [file for file in used if extractor.digest(file) in known]:
        raise InputError(
            f"{len(trained_on)} of {len(files)} images took part in training the model (first: {trained_on[0]}); the site's "
            "p-values would be wrong. Give other images"
        )
    keep, seen = [], set()
    refusals = check_images(model, rows.mean(1), extractor.allow) if used else []
    for number, (file, refusal) in enumerate(zip(used, refusals, strict=True)):
        if refusal is not None:
            rejected.append((file, refusal.code, refusal.message))
        elif extractor.digest(file) not in seen:  # a copy of an image is no second image
            seen.add(extractor.digest(file))
            keep.append(number)
    if len(rejected) > extractor.max_bad_share * len(files):
        file, code, message = rejected[-1]
        raise InputError(
            f"{len(rejected)} of {len(files)} images cannot be used, {percent(extractor.max_bad_share)} are tolerated "
            f"(--max_bad_share); for example {file}: {code}: {message}"
        )
    return [used[n] for n in keep], rows[keep], rejected


def aligned_with(network: WSCXRNet, rows: Tensor) -> WSCXRNet:
    """Return a network aligned with images with features [n, h*w, C]; backbone and discriminator are those of the given one."""
    return _aligned(network, Moments.of(rows.flatten(0, 1)), network.whitening.colouring())


def _aligned(network: WSCXRNet, moments: Moments, colouring: Tensor) -> WSCXRNet:
    whitening = copy.deepcopy(network.whitening)
    whitening.align(moments, colouring)
    return WSCXRNet(network.features, network.discriminator, whitening).eval()


def _folds(count: int) -> list[Tensor]:
    """Return the numbers of the images of each fold."""
    return list(torch.arange(count).tensor_split(min(_FOLDS, count)))


def cross_fitted(network: WSCXRNet, rows: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return patch scores [n, 1, h, w], each fold's from a network that was aligned with the other folds."""
    colouring, everything = network.whitening.colouring(), Moments.of(rows.flatten(0, 1))

    def scores(fold: Tensor, rest: Tensor) -> Tensor:
        others = everything.without(Moments.of(rows[fold].flatten(0, 1)))
        return patch_scores_of(_aligned(network, others, colouring), rows[fold], grid)

    return _by_fold(len(rows), scores)


def _cross_fitted_peaks(model: TrainedModel, maps: Tensor) -> list[float]:
    """Return the peak of each image's map, relative to the places of the other folds where maps are local."""
    size, sigma = model.preprocessing.image_size, model.map_sigma

    def peaks(fold: Tensor, rest: Tensor) -> Tensor:
        places = None if model.local_map is None else LocalMap.measure(maps[rest])
        return torch.tensor(map_peaks(maps[fold], size, sigma, places))

    found: list[float] = _by_fold(len(maps), peaks).tolist()
    return found


def _by_fold(count: int, values: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return values of all images, computed fold by fold from the numbers of the fold and of the other images."""
    everything = torch.arange(count)
    parts = []
    for fold in _folds(count):
        rest = everything[~torch.isin(everything, fold)]
        parts.append(values(fold, rest))
    return torch.cat(parts)


def patch_scores_of(network: WSCXRNet, rows: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the patch scores [n, 1, h, w] of features [n, h*w, C]."""
    device = next(network.parameters()).device
    with torch.inference_mode():
        parts = [
            network.patch_scores(part.to(device).unflatten(1, grid).permute(0, 3, 1, 2)).cpu()
            for part in rows.split(32)
        ]
    return torch.cat(parts)
