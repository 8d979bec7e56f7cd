"""CutPaste, reduced: a head on the features of a frozen network tells pasted images (after Li et al., CVPR 2021).

As published: both augmentations with their sizes, the 3-way task (normal, CutPaste, CutPaste-Scar), the optimiser with its
schedule, and the Gaussian density on normal training images. Different: the publication trains the whole network, as
`cutpaste.CutPaste` does. Here the backbone is frozen, as for other methods on features, and a head on its pooled features is
trained, in seconds. The density is therefore that of the head's last hidden layer, which training can change.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.covariance import LedoitWolf
from torch import Tensor, nn

from monai_wscxr.bank.feature_bank import FeatureBank
from monai_wscxr.errors import InputError
from monai_wscxr.experiments.baselines.common import Cost, Learned
from monai_wscxr.experiments.baselines.pasting import cutpaste, scar
from monai_wscxr.features.copies import Alteration, copy_features
from monai_wscxr.features.extraction import PatchExtractor


def _seeded(function: Callable[[Tensor, torch.Generator], Tensor]) -> Callable[[Tensor, int], Tensor]:
    """Turn a function of a generator into one of a seed."""
    return lambda image, seed: function(image, torch.Generator().manual_seed(seed))


KINDS = (Alteration("cutpaste", 3, _seeded(cutpaste)), Alteration("scar", 2, _seeded(scar)))


class CutPasteReduced:
    """Classifier of pasted images; the score is the Mahalanobis distance in the head's last hidden layer.

    Args:
        pasted_copies: pasted images of each kind per normal image, >= 1; their features are cached.
        steps: training steps, >= 1 (published: 65,000 for the whole network).
        batch_size: images per step of each of the three classes, >= 2 (published: 32).
        rate, momentum, weight_decay: parameters of SGD with a cosine schedule.
        widths: widths of the head's hidden layers; the Gaussian density is fitted to the last one.
        seed: seed of the head and the batches. The pasted images depend on the source image only.

    Attributes:
        learned: see `Method`.
    """

    def __init__(
        self,
        pasted_copies: int = 1,
        steps: int = 1000,
        batch_size: int = 32,
        rate: float = 0.03,
        momentum: float = 0.9,
        weight_decay: float = 3e-5,
        widths: tuple[int, ...] | list[int] = (512, 128),
        seed: int = 0,
    ) -> None:
        if min(pasted_copies, steps, *widths) < 1 or batch_size < 2 or rate <= 0:
            raise InputError(
                "CutPasteReduced: pasted_copies, steps and widths must be >= 1, batch_size >= 2 and rate > 0; got "
                f"{pasted_copies}, {steps}, {tuple(widths)}, {batch_size}, {rate}"
            )
        self.pasted_copies, self.steps, self.batch_size = pasted_copies, steps, batch_size
        self.rate, self.momentum, self.weight_decay = rate, momentum, weight_decay
        self.widths, self.seed = tuple(widths), seed
        self.head: nn.Sequential
        self.density: LedoitWolf
        self.mean = self.scale = torch.empty(0)
        self.learned = Learned("head on pooled features, Gaussian density")

    def fit(self, normal: FeatureBank, extractor: PatchExtractor) -> None:
        """Extract features of pasted copies of the normal images, train the head and fit the density."""
        untouched = pooled(normal)
        pasted = [copy_features(extractor, normal.files, kind, self.pasted_copies, pooled=True)[:, 0] for kind in KINDS]
        self.mean, self.scale = untouched.mean(dim=0), untouched.std(dim=0).clamp_min(1e-6)
        groups = [self._standard(group) for group in (untouched, *pasted)]
        self._train(groups)
        self.learned.cost = Cost(steps=self.steps, images=3 * self.batch_size * self.steps)
        with torch.inference_mode():
            self.density = LedoitWolf().fit(self.head[:-1](groups[0]).numpy())

    def scores(self, images: FeatureBank) -> list[Tensor]:
        """Compute the anomaly scores [n]: Mahalanobis distances, which fall as the Gaussian density rises."""
        with torch.inference_mode():
            hidden = self.head[:-1](self._standard(pooled(images)))
        return [torch.from_numpy(np.sqrt(self.density.mahalanobis(hidden.numpy()))).float()]

    def _standard(self, features: Tensor) -> Tensor:
        """Standardise features by mean and standard deviation of the normal images."""
        return (features - self.mean) / self.scale

    def _train(self, groups: list[Tensor]) -> None:
        """Train the head on the standardised features [n, C] of the three classes."""
        generator = torch.Generator().manual_seed(self.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.head = build_head(groups[0].shape[1], self.widths)
        optimizer = torch.optim.SGD(
            self.head.parameters(), self.rate, momentum=self.momentum, weight_decay=self.weight_decay
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        target = torch.arange(3).repeat_interleave(self.batch_size)
        self.head.train()
        for _ in range(self.steps):
            chosen = [torch.randint(len(group), (self.batch_size,), generator=generator) for group in groups]
            batch = torch.cat([group[index] for group, index in zip(groups, chosen, strict=True)])
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(self.head(batch), target).backward()
            optimizer.step()
            schedule.step()
        self.head.eval()


def build_head(channels: int, widths: tuple[int, ...]) -> nn.Sequential:
    """Build the head: hidden layers with batch normalisation and ReLU, then a linear layer for the three classes."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(channels, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.Linear(channels, 3))


def pooled(images: FeatureBank) -> Tensor:
    """Return the mean patch feature of every image, [n, C]."""
    return images.rows.reshape(len(images.files), -1, images.rows.shape[1]).mean(dim=1)
