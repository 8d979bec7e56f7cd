"""Validation during training: held-out normal and few-shot abnormal images, on features that are known already."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from monai_wscxr.bank.feature_bank import FeatureBank
from monai_wscxr.model.scores import anomaly_score, check_score_share


class ImageFeatures(IterableDataset):
    """Batches of patch features of whole images with labels, filled by `MiningHandler`, for the evaluator.

    Args:
        batch_size: images per batch; few, so that intermediate results stay in the processor's cache.
    """

    def __init__(self, batch_size: int = 32) -> None:
        self.batch_size = batch_size
        self.parts: list[tuple[Tensor, int]] = []

    def fill(self, normal: FeatureBank, abnormal: FeatureBank) -> None:
        """Set the images: two banks of whole images, whitened."""
        self.parts = [(normal.images, 0), (abnormal.images, 1)]

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for images, label in self.parts:
            for features in images.split(self.batch_size):
                yield {"image": features, "label": torch.full((len(features), 1), float(label))}


class ScoresAndLabels:
    """Turn the output of one step of the evaluator into anomaly scores [B, 1] and labels [B, 1], for MONAI's metrics.

    Args:
        score_share: see `anomaly_score`.
    """

    def __init__(self, score_share: float = 0.0) -> None:
        self.score_share = check_score_share(score_share)

    def __call__(self, output: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return scores and labels."""
        return torch.from_numpy(anomaly_score(output["pred"].cpu(), self.score_share)), output["label"]
