"""SimpleNet: normal features against the same features with Gaussian noise (Liu et al., CVPR 2023)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from monai_wscxr.bank.feature_bank import FeatureBank
from monai_wscxr.errors import InputError
from monai_wscxr.features.extraction import PatchExtractor
from monai_wscxr.model.networks import Discriminator
from monai_wscxr.system.progress import progress_bar


class SimpleNet:
    """Linear adaptor and two-layer discriminator, trained on normal patches and noisy copies of them.

    Defaults are the published values with three exceptions. The hidden layer has two thirds of the features' channels
    (published: 1,024 of 1,536). `noise` and `epochs` were chosen by cross-validation on training images, because the
    published noise is far too small for the features of another backbone (docs/results.md).

    Args:
        epochs: passes over the normal images, >= 1 (published: 160).
        noise: standard deviation of the Gaussian noise on adapted features, > 0 (published: 0.015).
        margin: th+ = -th- of the truncated L1 loss.
        images_per_batch: images per step, >= 1.
        adaptor_rate, discriminator_rate: learning rates of the two Adam optimisers, > 0.
        weight_decay: weight decay of both optimisers.
        checkpoints: number of states that the published protocol may choose from; evenly spaced, the last one is the trained
            model.
        seed: seed of initialisation, order and noise.
    """

    def __init__(
        self,
        epochs: int = 12,
        noise: float = 0.3,
        margin: float = 0.5,
        images_per_batch: int = 8,
        adaptor_rate: float = 1e-4,
        discriminator_rate: float = 2e-4,
        weight_decay: float = 1e-5,
        checkpoints: int = 4,
        seed: int = 0,
    ) -> None:
        if min(epochs, images_per_batch, checkpoints) < 1 or noise <= 0 or min(adaptor_rate, discriminator_rate) <= 0:
            raise InputError(
                "SimpleNet: epochs, images_per_batch and checkpoints must be >= 1, noise and rates > 0; got "
                f"{epochs}, {images_per_batch}, {checkpoints}, {noise}, {adaptor_rate}, {discriminator_rate}"
            )
        self.epochs, self.noise, self.margin, self.images_per_batch = epochs, noise, margin, images_per_batch
        self.adaptor_rate, self.discriminator_rate = adaptor_rate, discriminator_rate
        self.weight_decay, self.checkpoints, self.seed = weight_decay, min(checkpoints, epochs), seed
        self.states: list[dict[str, Tensor]] = []
        self.network: nn.Sequential

    def fit(self, normal: FeatureBank, extractor: PatchExtractor | None = None) -> None:
        """Train on the whole images of the normal bank; progress is shown if the extractor shows it."""
        images = normal.rows.reshape(len(normal.files), -1, normal.rows.shape[1])
        generator = torch.Generator().manual_seed(self.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.network = build(images.shape[2])
        adaptor, discriminator = self.network
        optimizers = [
            torch.optim.Adam(adaptor.parameters(), self.adaptor_rate, weight_decay=self.weight_decay),
            torch.optim.Adam(discriminator.parameters(), self.discriminator_rate, weight_decay=self.weight_decay),
        ]
        kept = {round(self.epochs * (i + 1) / self.checkpoints) for i in range(self.checkpoints)}
        self.states = []
        bar = progress_bar(
            self.epochs, "training SimpleNet", extractor is not None and extractor.progress, unit="epoch"
        )
        for epoch in range(1, self.epochs + 1):
            self.network.train()
            order = torch.randperm(len(images), generator=generator)
            for chosen in order.split(self.images_per_batch):
                adapted = adaptor(images[chosen].flatten(0, 1))
                noisy = adapted + self.noise * torch.randn(adapted.shape, generator=generator)
                value = discriminator(torch.cat([adapted, noisy]))
                for optimizer in optimizers:
                    optimizer.zero_grad(set_to_none=True)
                truncated_l1(value[: len(adapted)], value[len(adapted) :], self.margin).backward()
                for optimizer in optimizers:
                    optimizer.step()
            if epoch in kept:
                self.states.append({key: tensor.clone() for key, tensor in self.network.state_dict().items()})
            bar.update()
        bar.close()

    def scores(self, images: FeatureBank) -> list[Tensor]:
        """Compute the anomaly scores [n] (maximum over patches) for every checkpoint; the last one is the trained model."""
        found = []
        for state in self.states:
            self.network.load_state_dict(state)
            self.network.eval()
            with torch.inference_mode():
                value = torch.cat([self.network(rows) for rows in images.rows.split(16384)])
            found.append(value.reshape(len(images.files), -1).amax(dim=1))
        return found


def build(channels: int) -> nn.Sequential:
    """Build adaptor (one linear layer without bias) and discriminator.

    Higher scores are more abnormal, as everywhere in this package; the publication uses the opposite sign.
    """
    adaptor = nn.Linear(channels, channels, bias=False)
    discriminator = Discriminator(channels, depth=2, width=max(1, 2 * channels // 3), bias=False)
    for module in (adaptor, *discriminator.modules()):
        if isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight)
    return nn.Sequential(adaptor, discriminator)


def truncated_l1(normal: Tensor, noisy: Tensor, margin: float) -> Tensor:
    """Compute the publication's Eq. 5 with the opposite sign: normal scores belong below -margin, noisy ones above margin.

    Args:
        normal, noisy: scores [N]; higher is more abnormal.
        margin: th+ = -th-.
    """
    return (margin + normal).clamp_min(0).mean() + (margin - noisy).clamp_min(0).mean()
