"""DDAD: discrepancy of two ensembles of autoencoders, one of which has seen unlabelled images (Cai et al., MICCAI 2022).

As published: autoencoders, training, both discrepancies, and the refinement by synthetic defects (Cai et al., MedIA 2023) as an
option. Different: there are no unlabelled images in a few-shot setting, so module A learns from the normal images and the
few-shot abnormal ones.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.engines import SupervisedTrainer
from numpy.typing import NDArray
from torch import Tensor, nn

from monai_wscxr.errors import InputError
from monai_wscxr.experiments.baselines.common import Cost, Learned
from monai_wscxr.experiments.baselines.image_training import (
    ImageBatches,
    ImageTraining,
    PrecisionInferer,
    Stateful,
    batch_loader,
    check_precision,
    counted_seed,
    train_side_by_side,
)
from monai_wscxr.experiments.baselines.images import GreyImages, Place
from monai_wscxr.system.progress import progress_bar

SCORES = ("inter", "intra", "reconstruction", "refined")
"""What the score is made of: difference of the modules, spread of module B, error of module B, or the refinement's opinion."""

UNLABELLED = ("once", "paper")
"""How often module A sees the normal images: once, or twice because they are in the unlabelled images as well."""

_BATCH = 64
_REFINEMENT_BATCH = 8
_NORMATIVE, _UNKNOWN, _REFINEMENT = 1, 2, 3  # numbers of the modules, for seeds


def autoencoder(size: int = 64, latent: int = 16) -> nn.Sequential:
    """Build an autoencoder of images [B, 1, S, S] with values from -1 to 1.

    Args:
        size: side of the images in pixels, a multiple of 16.
        latent: values in the code.

    Raises:
        InputError: when the side is no multiple of 16.
    """
    if size < 16 or size % 16:
        raise InputError(f"DDAD: the side of its images must be a multiple of 16 pixels, got {size}")
    channels, side = (1, 16, 32, 64, 64), size // 16
    flat = channels[-1] * side * side
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(channels):
        layers += [nn.Conv2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
    layers += [nn.Flatten(), nn.Linear(flat, 2048), nn.BatchNorm1d(2048), nn.ReLU(), nn.Linear(2048, latent)]
    layers += [nn.Linear(latent, 2048), nn.BatchNorm1d(2048), nn.ReLU(), nn.Linear(2048, flat)]
    layers += [nn.Unflatten(1, (channels[-1], side, side))]
    back = channels[::-1]
    for a, b in itertools.pairwise(back):
        layers.append(nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False))
        if b > 1:
            layers += [nn.BatchNorm2d(b), nn.ReLU()]
    return nn.Sequential(*layers)


def refinement_network(width: int = 128) -> nn.Sequential:
    """Build the network that turns the maps of both discrepancies [B, 2, S, S] into logits [B, 2, S, S]."""
    return nn.Sequential(
        *(nn.Conv2d(2, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
        nn.Conv2d(width, 2, 3, padding=1),
    )


def focal_loss(logits: Tensor, target: Tensor, gamma: float = 2.0, smooth: float = 1e-5) -> Tensor:
    """Compute the focal loss on the probabilities of two classes, with labels clipped to [smooth, 1 - smooth].

    Args:
        logits: [B, 2, H, W].
        target: [B, 1, H, W], 0 or 1.
        gamma: exponent.
        smooth: see above.
    """
    probability = torch.softmax(logits, dim=1)
    labels = torch.cat([1 - target, target], dim=1).clamp(smooth, 1 - smooth)
    right = (labels * probability).sum(dim=1)
    return ((1 - right) ** gamma * -right.log()).mean()


def discrepancies(unknown: Tensor | None, normative: Tensor) -> dict[str, Tensor]:
    """Compute the maps of both discrepancies.

    Args:
        unknown: reconstructions [K, B, 1, S, S] of module A; None leaves out "inter".
        normative: reconstructions [K, B, 1, S, S] of module B.

    Returns:
        "intra": standard deviation over the networks of B, with K - 1; "inter": difference of the means of A and B; each
        [B, 1, S, S].
    """
    found = {"intra": normative.std(dim=0)}
    if unknown is not None:
        found["inter"] = (unknown.mean(dim=0) - normative.mean(dim=0)).abs()
    return found


class Defects:
    """Blend a square of another training image into half of the images.

    Its centre lies in the central 80 %, half its width is a whole number of pixels from 3 to 12 in images of 64, and one factor
    from 0 to 1 blends it.

    Args:
        images: training images.
    """

    def __init__(self, images: GreyImages) -> None:
        self.images = images
        self.scale = images.size / 64

    def __call__(self, image: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the "image" [1, S, S] and its "target" [1, S, S], 1 inside of the square."""
        size, target = image.shape[-1], torch.zeros_like(image)
        blend, y, x, alpha = torch.rand(4, generator=generator).tolist()
        half = round(int(torch.randint(3, 13, (), generator=generator)) * self.scale)
        order = torch.randint(len(self.images), (8,), generator=generator)
        if blend < 0.5:
            return {"image": image, "target": target}
        others = (self.images.floats(index) for index in order)
        other = next((found for found in others if not torch.equal(found, image)), image)
        row, column = (int((0.1 + 0.8 * place) * size) for place in (y, x))
        area = slice(max(0, row - half), row + half), slice(max(0, column - half), column + half)
        mixed = image.clone()
        mixed[:, area[0], area[1]] = (1 - alpha) * image[:, area[0], area[1]] + alpha * other[:, area[0], area[1]]
        target[:, area[0], area[1]] = 1
        return {"image": mixed, "target": target}


@dataclass(frozen=True)
class Member:
    """One autoencoder to be trained.

    Attributes:
        pixels: [n, 1, S, S] uint8.
        epochs: passes over them.
        seed: of initialisation and order.
        precision: of training, see `check_precision`.
        device: "cpu" or "cuda".
        file: of its state; None keeps none.
    """

    pixels: NDArray[np.uint8]
    epochs: int
    seed: int
    precision: str
    device: str
    file: Path | None

    @property
    def steps(self) -> int:
        """Number of steps of its training."""
        return self.epochs * max(1, len(self.pixels) // _BATCH)


def train_member(member: Member, on_step: Callable[[], object]) -> tuple[dict[str, NDArray[Any]], Cost]:
    """Train an autoencoder; return its weights as arrays, and the cost."""
    images = GreyImages([""] * len(member.pixels), torch.from_numpy(member.pixels))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(counted_seed(member.seed, 0))
        network = autoencoder(images.size).to(member.device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), 5e-4, betas=(0.5, 0.999), fused=True)
    batches = ImageBatches(images, _BATCH, member.seed, drop_last=True)

    def prepare(batch: dict[str, Tensor], device: Any, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        image = _centred(batch["image"]).to(device)
        return image, image

    trainer = SupervisedTrainer(
        torch.device(member.device),
        member.epochs,
        batch_loader(batches),
        network,
        optimizer,
        nn.MSELoss(),
        prepare_batch=prepare,
        inferer=PrecisionInferer(torch.device(member.device), member.precision),
        decollate=False,
    )
    identity = {"network": "autoencoder", "batch_size": _BATCH, "rate": 5e-4, "precision": member.precision}
    parts: dict[str, Stateful] = {"network": network, "optimizer": optimizer}
    cost = ImageTraining(trainer, batches, parts, member.seed, identity, member.file).run(on_step)
    return {name: tensor.cpu().numpy() for name, tensor in network.state_dict().items()}, cost


class Ddad:
    """Dual-distribution discrepancy of autoencoders.

    Module B learns from the normal images, module A from the normal and the few-shot abnormal ones. Networks that
    trainings with the same normal images and seed have in common, those of B, are kept in `Place.shared`.

    Defaults are the published values.

    Args:
        score: one of `SCORES`; "inter" and "refined" need abnormal images, the others do not use any.
        epochs: passes over the images of each module, >= 1.
        members: networks per module, >= 2.
        unlabelled: one of `UNLABELLED`.
        refinement_epochs: passes over the normal images of the refinement, >= 1.
        processes: networks trained side by side, one thread each; None takes one per core on a CPU. Does not change the result.
        precision: of training, see `check_precision`; scores are always computed in float32.
        device: "cpu" or "cuda".
        seed: seed of everything.

    Raises:
        InputError: when an option is out of its range.
    """

    def __init__(
        self,
        score: str = "inter",
        epochs: int = 250,
        members: int = 3,
        unlabelled: str = "once",
        refinement_epochs: int = 100,
        processes: int | None = None,
        precision: str = "float32",
        device: str | torch.device = "cpu",
        seed: int = 0,
    ) -> None:
        if score not in SCORES or unlabelled not in UNLABELLED:
            raise InputError(
                f"DDAD: score must be one of {', '.join(SCORES)} and unlabelled one of {', '.join(UNLABELLED)}; got "
                f"{score!r} and {unlabelled!r}"
            )
        if min(epochs, refinement_epochs) < 1 or members < 2 or (processes is not None and processes < 1):
            raise InputError(
                "DDAD: epochs, refinement_epochs and processes must be >= 1 and members >= 2; got "
                f"{epochs}, {refinement_epochs}, {processes}, {members}"
            )
        self.score, self.epochs, self.members, self.unlabelled = score, epochs, members, unlabelled
        self.refinement_epochs, self.precision = refinement_epochs, check_precision(precision)
        self.device, self.seed = torch.device(device), seed
        self.processes = processes or (1 if self.device.type == "cuda" else os.cpu_count() or 1)
        self.normative: list[nn.Sequential] = []
        self.unknown: list[nn.Sequential] = []
        self.refinement: nn.Sequential | None = None
        self.learned = Learned()

    def fit_images(self, normal: GreyImages, abnormal: GreyImages | None = None, place: Place | None = None) -> None:
        """Train all networks that the score needs; those that a killed run has finished are taken over.

        Raises:
            InputError: when the score needs abnormal images and there are none.
        """
        place = place or Place()
        tasks = [self._member(normal, _NORMATIVE, n, place) for n in range(self.members)]
        if self.score in ("inter", "refined"):
            if abnormal is None:
                raise InputError(f"DDAD: the score {self.score} needs abnormal training images; intra needs none")
            seen = normal if self.unlabelled == "once" else normal.with_images(normal)
            tasks += [self._member(seen.with_images(abnormal), _UNKNOWN, n, place) for n in range(self.members)]
        what = "training DDAD"
        found = train_side_by_side(
            train_member, tasks, self.processes, sum(task.steps for task in tasks), what, place.progress
        )
        networks, cost = [], Cost()
        for weights, spent in found:
            networks.append(self._ready(autoencoder(normal.size), weights))
            cost.add(spent)
        self.normative, self.unknown = networks[: self.members], networks[self.members :]
        size = sum(p.numel() for p in networks[0].parameters()) / 1e6
        text = f"{len(networks)} autoencoders, {size:.2f} M each"
        if self.score == "refined":
            cost.add(self._refine(normal, place))
            text += ", and a refinement of 0.15 M"
        self.learned = Learned(text, cost)

    def image_scores(self, images: GreyImages) -> list[Tensor]:
        """Compute the anomaly scores [n]: the mean of the map."""
        return [self.image_maps(images).mean(dim=(1, 2))]

    def image_maps(self, images: GreyImages) -> Tensor:
        """Compute the anomaly maps [n, S, S] of the chosen score."""
        return torch.cat([self._map(image)[:, 0].cpu() for image in self._centred_batches(images)])

    @torch.no_grad()
    def _map(self, image: Tensor) -> Tensor:
        """Compute the map [B, 1, S, S] of centred images."""
        if self.score == "reconstruction":
            return (image - _reconstructed(self.normative, image).mean(dim=0)).square()
        maps = self._discrepancies(image)
        if self.score != "refined":
            return maps[self.score]
        assert self.refinement is not None
        return torch.softmax(self.refinement(_both(maps)), dim=1)[:, 1:]

    def _discrepancies(self, image: Tensor) -> dict[str, Tensor]:
        unknown = _reconstructed(self.unknown, image) if self.unknown else None
        return discrepancies(unknown, _reconstructed(self.normative, image))

    def _centred_batches(self, images: GreyImages) -> Iterator[Tensor]:
        for pixels in images.pixels.split(_BATCH):
            yield _centred(pixels.float() / 255).to(self.device)

    def _member(self, images: GreyImages, module: int, number: int, place: Place) -> Member:
        shared = module == _NORMATIVE
        file = place.file(f"{'normative' if shared else 'unknown'}_{number}", shared)
        seed = counted_seed(self.seed, module, number)
        return Member(images.pixels.numpy(), self.epochs, seed, self.precision, str(self.device), file)

    def _ready(self, network: nn.Sequential, weights: dict[str, NDArray[Any]]) -> nn.Sequential:
        network.load_state_dict({name: torch.from_numpy(np.asarray(value)) for name, value in weights.items()})
        return network.to(self.device).eval().requires_grad_(False)

    def _refine(self, normal: GreyImages, place: Place) -> Cost:
        """Train the refinement on normal images with synthetic defects, with all autoencoders frozen."""
        seed = counted_seed(self.seed, _REFINEMENT)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = refinement_network().to(self.device).to(memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(network.parameters(), 1e-4, betas=(0.5, 0.999), weight_decay=1e-4, fused=True)
        batches = ImageBatches(normal, _REFINEMENT_BATCH, seed, Defects(normal))

        def prepare(batch: dict[str, Tensor], device: Any, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                maps = self._discrepancies(_centred(batch["image"]).to(device))
            return _both(maps), batch["target"].to(device)

        trainer = SupervisedTrainer(
            self.device,
            self.refinement_epochs,
            batch_loader(batches),
            network,
            optimizer,
            focal_loss,
            prepare_batch=prepare,
            inferer=PrecisionInferer(self.device, self.precision),
            decollate=False,
        )
        weights = [network.state_dict().values() for network in (*self.normative, *self.unknown)]
        frozen = hashlib.blake2b(digest_size=16)
        for tensor in itertools.chain(*weights):
            frozen.update(tensor.cpu().contiguous().numpy())
        identity = {"network": "refinement", "frozen": frozen.hexdigest(), "precision": self.precision}
        parts: dict[str, Stateful] = {"network": network, "optimizer": optimizer}
        training = ImageTraining(trainer, batches, parts, seed, identity, place.file("refinement"))
        steps = self.refinement_epochs * len(batches)
        with progress_bar(steps, "training DDAD's refinement", place.progress, unit="step") as bar:
            cost = training.run(bar.update)
        self.refinement = network.eval()
        return cost


def _centred(image: Tensor) -> Tensor:
    """Bring values from [0, 1] to [-1, 1]."""
    return (image - 0.5) / 0.5


def _reconstructed(networks: list[nn.Sequential], image: Tensor) -> Tensor:
    """Return the reconstructions [K, B, 1, S, S] of K networks."""
    return torch.stack([network(image) for network in networks])


def _both(maps: dict[str, Tensor]) -> Tensor:
    """Return both maps as channels [B, 2, S, S]."""
    return torch.cat([maps["inter"], maps["intra"]], dim=1)
