"""Plain rows of a comparison: what simple methods reach on the same features, as the mean over the patches of an image.

They have no options: nothing about them is tuned. Channels are standardised by the normal training images.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from monai_wscxr.bank.feature_bank import FeatureBank
from monai_wscxr.experiments.baselines.common import Learned
from monai_wscxr.features.extraction import PatchExtractor

Means = NDArray[np.float64]


class _ImageMeans:
    """Means over the patches of each image, standardised by those of the normal images."""

    def __init__(self) -> None:
        self._centre: Means = np.empty(0)
        self._spread: Means = np.empty(0)

    def measure(self, normal: FeatureBank) -> Means:
        """Measure mean and standard deviation of each channel; return the standardised means [n, C] of the images."""
        means = _means(normal)
        self._centre, spread = means.mean(0), means.std(0)
        self._spread = np.where(spread > 0, spread, 1.0)
        return self.of(normal)

    def of(self, images: FeatureBank) -> Means:
        """Return the standardised means [n, C] of images."""
        return (_means(images) - self._centre) / self._spread


class _Classifier(ABC):
    """A classifier of scikit-learn, trained on normal against abnormal image means; its decision value is the score.

    Attributes:
        name: what is trained, for tables.
    """

    name = ""

    def __init__(self) -> None:
        self.means = _ImageMeans()
        self.model: Any = self.create()
        self.learned = Learned(self.name)

    @abstractmethod
    def create(self) -> ClassifierMixin:
        """Create the classifier."""

    def fit_labelled(self, normal: FeatureBank, abnormal: FeatureBank) -> None:
        """Learn from the normal and the few-shot abnormal images."""
        healthy = self.means.measure(normal)
        ill = self.means.of(abnormal)
        self.model.fit(np.concatenate([healthy, ill]), np.repeat([0, 1], [len(healthy), len(ill)]))

    def scores(self, images: FeatureBank) -> list[Tensor]:
        """Compute the anomaly scores [n] of n whole images; one entry, because there are no epochs."""
        return [torch.from_numpy(self.model.decision_function(self.means.of(images))).float()]


class DiscriminantAnalysis(_Classifier):
    """Linear discriminant analysis with the covariance shrunken by Ledoit's and Wolf's formula."""

    name = "linear discriminant"

    def create(self) -> ClassifierMixin:
        """Create the classifier."""
        return LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")


class LogisticClassifier(_Classifier):
    """Logistic regression with scikit-learn's own regularisation (C = 1) and classes of equal weight."""

    name = "logistic regression"

    def create(self) -> ClassifierMixin:
        """Create the classifier."""
        return LogisticRegression(class_weight="balanced", max_iter=5000)


class NearestNormal:
    """Euclidean distance of an image's mean to that of the nearest normal training image."""

    def __init__(self) -> None:
        self.means = _ImageMeans()
        self.normal: Means = np.empty((0, 0))
        self.learned = Learned()

    def fit(self, normal: FeatureBank, extractor: PatchExtractor | None = None) -> None:
        """Keep the means of the normal images."""
        self.normal = self.means.measure(normal)

    def scores(self, images: FeatureBank) -> list[Tensor]:
        """Compute the anomaly scores [n] of n whole images; one entry, because there are no epochs."""
        distances = torch.cdist(torch.from_numpy(self.means.of(images)), torch.from_numpy(self.normal))
        return [distances.min(1).values.float()]


def _means(bank: FeatureBank) -> Means:
    found: Means = bank.images.double().mean((2, 3)).numpy()
    return found
