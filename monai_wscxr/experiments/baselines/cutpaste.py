"""CutPaste: a network learns to tell pasted images, then a Gaussian density of its features (Li et al., CVPR 2021).

As published: ResNet-18 from scratch, the 3-way task (untouched, CutPaste, scar), SGD with a cosine schedule, and as score the
Mahalanobis distance of the trunk's pooled, normalised features to those of the normal training images. `PasteClassifier` is
shared with AnatPaste.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from sklearn.covariance import ledoit_wolf
from torch import Tensor, nn
from torchvision.models import resnet18

from monai_wscxr.errors import InputError
from monai_wscxr.experiments.baselines.common import Learned
from monai_wscxr.experiments.baselines.image_training import ImageBatches, ImageTraining, Stateful, batch_loader
from monai_wscxr.experiments.baselines.images import GreyImages, Place
from monai_wscxr.experiments.baselines.pasting import cutpaste, jitter, scar
from monai_wscxr.system.progress import progress_bar

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as published
_SAVED_STEPS = 64  # between two moments at which the state may be saved
_AT_A_TIME = 32


class PasteNet(nn.Module):
    """ResNet-18 with random weights and a head on its pooled features.

    Args:
        classes: number of classes.
        hidden: number n of hidden layers with 512 channels in the head, before the last one with 128; the publication does
            not say.
        precision: "float32", or "bfloat16" for convolutions and products of matrices in training.
    """

    def __init__(self, classes: int, hidden: int = 1, precision: str = "float32") -> None:
        super().__init__()
        self.precision = precision
        self.trunk = resnet18(weights=None)
        channels = self.trunk.fc.in_features
        self.trunk.fc = nn.Identity()
        layers: list[nn.Module] = []
        for width in (*[channels] * hidden, 128):
            layers += [nn.Linear(channels, width), nn.BatchNorm1d(width), nn.ReLU()]
            channels = width
        self.head = nn.Sequential(*layers, nn.Linear(channels, classes))

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits [B, classes] of grey images [B, 1, S, S] in [0, 1]."""
        with torch.autocast(image.device.type, torch.bfloat16, self.training and self.precision == "bfloat16"):
            logits: Tensor = self.head(self.features(image))
        return logits.float()

    def features(self, image: Tensor) -> Tensor:
        """Return the pooled features [B, 512] of grey images [B, 1, S, S] in [0, 1]."""
        mean, std = (image.new_tensor(values)[:, None, None] for values in (MEAN, STD))
        prepared = ((image - mean) / std).contiguous(memory_format=torch.channels_last)
        pooled: Tensor = self.trunk(prepared)
        return pooled


class GaussianDensity:
    """Gaussian density of L2-normalised features, its covariance shrunken by Ledoit's and Wolf's formula.

    Args:
        features: [n, C] of normal images.
    """

    def __init__(self, features: Tensor) -> None:
        rows = F.normalize(features.double(), dim=1).numpy()
        self.mean = rows.mean(axis=0)
        self.precision = np.linalg.inv(ledoit_wolf(rows)[0])

    def distance(self, features: Tensor) -> Tensor:
        """Return the Mahalanobis distances [n] float32 of features [n, C]; they rise as the density falls."""
        difference = F.normalize(features.double(), dim=1).numpy() - self.mean
        squared = np.einsum("nc,cd,nd->n", difference, self.precision, difference)
        return torch.from_numpy(np.sqrt(np.maximum(squared, 0))).float()


class PasteClassifier(ABC):
    """Training of a `PasteNet` to tell kinds of one image apart, and scores by the density of its features.

    Args:
        steps: training steps, >= 1 (published: 65,536, as 256 epochs of 256).
        batch_size: images per step, >= 2 (published: 32); each enters the step once of every kind.
        rate: learning rate of SGD at the start of the cosine schedule, > 0.
        momentum, weight_decay: of SGD.
        hidden: see `PasteNet`.
        precision: "float32", or "bfloat16" for convolutions and products of matrices in training.
        seed: seed of weights, order and defects.

    Attributes:
        kinds: number of kinds of one image.
        name: in progress bars and messages.
        network: after `fit_images`.
        density: after `fit_images`.
        learned: see `ImageMethod`.
    """

    kinds = 2
    name = ""

    def __init__(
        self,
        steps: int = 65536,
        batch_size: int = 32,
        rate: float = 0.03,
        momentum: float = 0.9,
        weight_decay: float = 3e-5,
        hidden: int = 1,
        precision: str = "float32",
        seed: int = 0,
    ) -> None:
        if precision not in ("float32", "bfloat16"):
            raise InputError(f"{self.name}: precision must be float32 or bfloat16, got {precision!r}")
        if steps < 1 or batch_size < 2 or rate <= 0 or hidden < 0:
            raise InputError(
                f"{self.name}: steps must be >= 1, batch_size >= 2, rate > 0 and hidden >= 0; got "
                f"{steps}, {batch_size}, {rate}, {hidden}"
            )
        self.steps, self.batch_size, self.rate = steps, batch_size, rate
        self.momentum, self.weight_decay, self.hidden = momentum, weight_decay, hidden
        self.precision, self.seed = precision, seed
        self.network: PasteNet
        self.density: GaussianDensity
        self.learned = Learned()

    def prepare(self, images: GreyImages) -> GreyImages:
        """Return the training images with what `variants` needs besides them, as further channels."""
        return images

    @abstractmethod
    def variants(self, image: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Return an image of `prepare` [C, S, S] in every kind [1, S, S], the untouched one first."""

    def fit_images(self, normal: GreyImages, abnormal: GreyImages | None, place: Place) -> None:
        """Train on normal images, from the state in `place` if there is one, and fit the density; see `ImageMethod`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.network = PasteNet(self.kinds, self.hidden, self.precision).to(memory_format=torch.channels_last)
        training = self.training(self.prepare(normal), place)
        with progress_bar(self.steps, f"training {self.name}", place.progress, unit="step") as bar:
            cost = training.run(bar.update)
        cost.epochs = 0  # an epoch is a number of steps here, and no pass over the images
        size = f"{normal.size} x {normal.size}"
        self.learned = Learned(f"ResNet-18 from scratch, {size}", cost)
        self.density = GaussianDensity(self._features(normal))

    def image_scores(self, images: GreyImages) -> list[Tensor]:
        """Compute the anomaly scores [n]; one entry, that of the last step. See `ImageMethod`."""
        return [self.density.distance(self._features(images))]

    def training(self, images: GreyImages, place: Place) -> ImageTraining:
        """Create the training of the network by MONAI's trainer."""
        optimizer = torch.optim.SGD(
            self.network.parameters(), self.rate, momentum=self.momentum, weight_decay=self.weight_decay
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        length = math.gcd(self.steps, _SAVED_STEPS)
        batches = ImageBatches(images, self.batch_size, self.seed, self._augment, drop_last=True, batches=length)

        trainer = SupervisedTrainer(
            device=torch.device("cpu"),
            max_epochs=self.steps // length,
            train_data_loader=batch_loader(batches),
            network=self.network,
            optimizer=optimizer,
            loss_function=nn.CrossEntropyLoss(),
            prepare_batch=prepare_kinds,
            decollate=False,
        )
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda _: schedule.step())
        identity = {
            "method": self.name,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "sgd": [self.rate, self.momentum, self.weight_decay],
            "hidden": self.hidden,
            "precision": self.precision,
        }
        parts: dict[str, Stateful] = {"network": self.network, "optimizer": optimizer, "schedule": schedule}
        return ImageTraining(trainer, batches, parts, self.seed, identity, place.file("network"))

    def _augment(self, image: Tensor, generator: torch.Generator) -> Mapping[str, Tensor]:
        return {"image": torch.stack(self.variants(image, generator))}

    def _features(self, images: GreyImages) -> Tensor:
        """Return the pooled features [n, 512] of the trained network."""
        self.network.eval()
        parts = torch.arange(len(images)).split(_AT_A_TIME)
        with torch.inference_mode():
            return torch.cat([self.network.features(images.floats(part)) for part in parts])


class CutPaste(PasteClassifier):
    """The 3-way task: an untouched image, one with a pasted rectangle and one with a pasted scar.

    Brightness and contrast of the whole image are jittered first; grey images have no hue or saturation. Arguments as of
    `PasteClassifier`.
    """

    kinds = 3
    name = "CutPaste"

    def variants(self, image: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Return the image untouched, with CutPaste and with a scar."""
        image = jitter(image, generator)
        return [image, cutpaste(image, generator), scar(image, generator)]


def prepare_kinds(batch: Mapping[str, Tensor], *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    """Return images [B * K, 1, S, S] and their kinds [B * K] from a batch with K kinds of every image [B, K, 1, S, S]."""
    images = batch["image"]
    count, kinds = images.shape[:2]
    return images.flatten(0, 1), torch.arange(kinds).repeat(count)
