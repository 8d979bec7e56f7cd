"""Measure what a lower precision does to a backbone: its features, image scores and time, compared with float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from monai_wscxr.bank.feature_bank import FeatureBank
from monai_wscxr.data.datalist import load_datalist
from monai_wscxr.errors import InputError
from monai_wscxr.features.extraction import PatchExtractor
from monai_wscxr.model.mining import mine
from monai_wscxr.model.scores import anomaly_score
from monai_wscxr.model.whitening import NormalWhitening
from monai_wscxr.planning.timing import timed

_SHARE = 1.0  # of the patches that make an image score, as in train.yaml
_RETENTION = 0.5
_MOST_IMAGES = 400
SCORE_TOLERANCE = 0.2  # another draw of abnormal images and held-out normals makes 0.45 and 0.66 (docs/scale.md)


@dataclass(frozen=True)
class PrecisionCheck:
    """Result of `check_precision`.

    Attributes:
        precision: what was compared with float32.
        runtime: what executed the network in that precision, and in float32.
        feature_error: root mean square of the difference of patch features, relative to that of the centred features.
        whitened_error: the same after whitening, which is where a discriminator works.
        score_change: root mean square of the change of image scores, in standard deviations of the normal images' scores.
            Scores of each precision are standardised by its own normals, as its own threshold is calibrated.
        largest_change: the largest such change.
        auroc, auroc_lower: with features of float32 and of the lower precision, for training and for scoring.
        speed: network time in float32 divided by that in the lower precision.
        tolerance, auroc_tolerance: allowed `score_change` and loss of AUROC.
        images: number of images.
    """

    precision: str
    runtime: str
    feature_error: float
    whitened_error: float
    score_change: float
    largest_change: float
    auroc: float
    auroc_lower: float
    speed: float
    tolerance: float
    auroc_tolerance: float
    images: int

    @property
    def reasons(self) -> list[str]:
        """Reasons against the lower precision; empty when it is accepted."""
        found = []
        if not self.score_change <= self.tolerance:
            found.append(
                f"image scores change by {self.score_change:.3f} standard deviations of the normals' scores, allowed are "
                f"{self.tolerance:g}"
            )
        if not self.auroc_lower >= self.auroc - self.auroc_tolerance:
            found.append(
                f"the AUROC falls by {self.auroc - self.auroc_lower:.4f}, allowed are {self.auroc_tolerance:g}"
            )
        if not self.speed > 1:
            found.append(f"it is not faster here ({self.speed:.2f} times)")
        return found

    @property
    def accepted(self) -> bool:
        """True when the lower precision is within the tolerances and faster."""
        return not self.reasons

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "accepted": self.accepted, "reasons": self.reasons}

    def text(self) -> str:
        """Return sentences for the terminal."""
        verdict = f"yes: --precision {self.precision}" if self.accepted else "no: " + "; ".join(self.reasons)
        return "\n".join(
            [
                f"{self.precision} beside float32 on {self.images} images, executed by {self.runtime}",
                f"features differ by {self.feature_error:.2%}, whitened features by {self.whitened_error:.2%} (relative)",
                f"image scores change by {self.score_change:.3f} standard deviations of the normals' scores (root mean "
                f"square), at most by {self.largest_change:.3f}",
                f"AUROC {self.auroc:.4f} in float32, {self.auroc_lower:.4f} in {self.precision}",
                f"the network is {self.speed:.2f} times as fast",
                verdict,
            ]
        )


def check_precision(
    make: Callable[[str], PatchExtractor],
    source: str | Path,
    precision: str = "bfloat16",
    tolerance: float = SCORE_TOLERANCE,
    auroc_tolerance: float = 0.005,
) -> PrecisionCheck:
    """Compare a precision with float32 on the training part of a data set; test images are never opened.

    A third of the normal and half of the abnormal images are scored, by the linear discriminant that training approaches
    (whitened mean of the mined patches) made of the others. Each precision makes its own discriminant and scores with it, as a
    model predicts in the precision in which it was trained and calibrated.

    Args:
        make: precision to extractor.
        source: folder or datalist with at least 9 normal and 2 abnormal training images.
        precision: to compare.
        tolerance: of the scores, see `PrecisionCheck.score_change`.
        auroc_tolerance: of the AUROC.

    Raises:
        InputError: when there are too few images.
    """
    training = load_datalist(source)["training"]
    normal = [item for item in training if item["label"] == 0][:_MOST_IMAGES]
    abnormal = [item for item in training if item["label"] == 1][:_MOST_IMAGES]
    if len(normal) < 9 or len(abnormal) < 2:
        raise InputError(
            f"{source} has {len(normal)} normal and {len(abnormal)} abnormal training images; 9 and 2 are needed at least"
        )
    plain, lower = make("float32"), make(precision)
    banks = [(e.bank(normal, "normal images"), e.bank(abnormal, "abnormal images")) for e in (plain, lower)]
    discriminants = [_discriminant(*both) for both in banks]
    whitening = discriminants[0][0]
    difference = banks[1][0].rows - banks[0][0].rows
    centred = banks[0][0].rows - whitening.mean
    standardised, aurocs = [], []
    for both, discriminant in zip(banks, discriminants, strict=True):
        maps = _scored(*both)
        scores = torch.cat([_scores(part, *discriminant) for part in maps])
        of_normals = scores[: len(maps[0])]
        standardised.append((scores - of_normals.mean()) / of_normals.std().clamp(min=1e-12))
        aurocs.append(float(roc_auc_score([0] * len(maps[0]) + [1] * len(maps[1]), scores)))
    change = standardised[1] - standardised[0]
    return PrecisionCheck(
        precision=precision,
        runtime=" and ".join(
            dict.fromkeys(f"{e.network.runtime.name} {e.network.runtime.version}" for e in (lower, plain))
        ),
        feature_error=float(difference.norm() / centred.norm()),
        whitened_error=float((difference @ whitening.matrix).norm() / (centred @ whitening.matrix).norm()),
        score_change=float(change.square().mean().sqrt()),
        largest_change=float(change.abs().max()),
        auroc=aurocs[0],
        auroc_lower=aurocs[1],
        speed=_network_seconds(plain, normal) / _network_seconds(lower, normal),
        tolerance=tolerance,
        auroc_tolerance=auroc_tolerance,
        images=len(normal) + len(abnormal),
    )


def _split(bank: FeatureBank, share: int) -> tuple[FeatureBank, FeatureBank]:
    """Split into images to learn from and every `share`-th image to be scored."""
    h, w = bank.grid
    images = bank.rows.reshape(len(bank.files), h * w, -1)
    scored = torch.arange(len(bank.files)) % share == share - 1
    parts = []
    for keep in (~scored, scored):
        files = [file for file, wanted in zip(bank.files, keep.tolist(), strict=True) if wanted]
        parts.append(FeatureBank.from_images(images[keep], files, bank.grid))
    return parts[0], parts[1]


def _scored(normal: FeatureBank, abnormal: FeatureBank) -> tuple[Tensor, Tensor]:
    """Return the maps of the images to be scored."""
    return _split(normal, 3)[1].images, _split(abnormal, 2)[1].images


def _discriminant(normal: FeatureBank, abnormal: FeatureBank) -> tuple[NormalWhitening, Tensor]:
    """Fit the whitening and the discriminant's direction [C] in its coordinates."""
    bank, few = _split(normal, 3)[0], _split(abnormal, 2)[0]
    whitening = NormalWhitening(bank.rows.shape[1])
    whitening.fit(bank.rows, 1.0)
    return whitening, whitening(mine(bank, few, _RETENTION).bank.rows).mean(0)


def _scores(maps: Tensor, whitening: NormalWhitening, direction: Tensor) -> Tensor:
    patch_scores = torch.einsum("bchw,c->bhw", whitening(maps), direction)[:, None]
    return torch.from_numpy(anomaly_score(patch_scores, _SHARE)[:, 0])


def _network_seconds(extractor: PatchExtractor, items: list[dict[str, Any]]) -> float:
    """Time the network on some images: processor seconds on a CPU, wall seconds on other devices."""
    loaded = [extractor.transform({"image": str(item["image"]), "file": str(item["image"])}) for item in items[:8]]
    cost = timed(lambda: list(extractor.run(loaded)), 2.0)
    return cost.cpu if extractor.device.type == "cpu" else cost.seconds
