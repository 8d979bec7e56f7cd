"""SimpleNet: normal features against the same features with Gaussian noise (Liu et al., CVPR 2023)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from monai_wscxr.bank.feature_bank import FeatureBank
from monai_wscxr.errors import InputError
from monai_wscxr.experiments.baselines.common import Cost, Learned
from monai_wscxr.features.extraction import PatchExtractor
from monai_wscxr.model.networks import Discriminator
from monai_wscxr.system.progress import progress_bar


class SimpleNet:
    """Linear adaptor and two-layer discriminator, trained on normal patches and noisy copies of them.

    As published but for two things. The hidden layer has two thirds of the features' channels (published: 1,024 of 1,536).
    And the noise is given in units of the features: the published 0.015 is absolute, so it means nothing for the features of
    another network. The adaptor's initialisation keeps the mean variance of the channels, so its root is the unit.

    Args:
        epochs: passes over the normal images, >= 1 (published: 160, as 40 times 4).
        noise: standard deviation of the Gaussian noise on adapted features, > 0, as a multiple of the channels' standard
            deviation on the normal images (root of the mean variance). docs/results.md says how it was chosen.
        margin: th+ = -th- of the truncated L1 loss.
        images_per_batch: images per step, >= 1.
        adaptor_rate: learning rate of AdamW for the adaptor, > 0; weight decay 0.01.
        discriminator_rate: learning rate of Adam for the discriminator, > 0.
        weight_decay: weight decay of the discriminator.
        state_every: passes between two states that the published protocol may choose from, >= 1 (published: 4); the last one
            is the trained model.
        seed: seed of initialisation, order and noise.

    Attributes:
        sigma: standard deviation of the noise in the features' own units, after `fit`.
        learned: see `Method`.
    """

    def __init__(
        self,
        epochs: int = 160,
        noise: float = 1.0,
        margin: float = 0.5,
        images_per_batch: int = 8,
        adaptor_rate: float = 1e-4,
        discriminator_rate: float = 2e-4,
        weight_decay: float = 1e-5,
        state_every: int = 4,
        seed: int = 0,
    ) -> None:
        if min(epochs, images_per_batch, state_every) < 1 or noise <= 0 or min(adaptor_rate, discriminator_rate) <= 0:
            raise InputError(
                "SimpleNet: epochs, images_per_batch and state_every must be >= 1, noise and rates > 0; got "
                f"{epochs}, {images_per_batch}, {state_every}, {noise}, {adaptor_rate}, {discriminator_rate}"
            )
        self.epochs, self.noise, self.margin, self.images_per_batch = epochs, noise, margin, images_per_batch
        self.adaptor_rate, self.discriminator_rate = adaptor_rate, discriminator_rate
        self.weight_decay, self.state_every, self.seed = weight_decay, state_every, seed
        self.states: list[dict[str, Tensor]] = []
        self.sigma, self.learned = 0.0, Learned("linear adaptor and discriminator of two layers")
        self.network: nn.Sequential

    def fit(self, normal: FeatureBank, extractor: PatchExtractor | None = None) -> None:
        """Train on the whole images of the normal bank; progress is shown if the extractor shows it."""
        images = normal.rows.reshape(len(normal.files), -1, normal.rows.shape[1])
        self.sigma = self.noise * feature_scale(normal.rows)
        generator = torch.Generator().manual_seed(self.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.network = build(images.shape[2])
        adaptor, discriminator = self.network
        optimizers = [
            torch.optim.AdamW(adaptor.parameters(), self.adaptor_rate, fused=True),
            torch.optim.Adam(
                discriminator.parameters(), self.discriminator_rate, weight_decay=self.weight_decay, fused=True
            ),
        ]
        self.states = []
        steps = -(-len(images) // self.images_per_batch)
        self.learned.cost = Cost(self.epochs, self.epochs * steps, self.epochs * len(images))
        shown = extractor is not None and extractor.progress
        with progress_bar(self.epochs, "training SimpleNet", shown, unit="epoch") as bar:
            for epoch in range(1, self.epochs + 1):
                self.network.train()
                order = torch.randperm(len(images), generator=generator)
                for chosen in order.split(self.images_per_batch):
                    adapted = adaptor(images[chosen].flatten(0, 1))
                    noise = torch.randn(adapted.shape, generator=generator).mul_(self.sigma)
                    value = discriminator(torch.cat([adapted, adapted + noise]))
                    for optimizer in optimizers:
                        optimizer.zero_grad(set_to_none=True)
                    truncated_l1(value[: len(adapted)], value[len(adapted) :], self.margin).backward()
                    for optimizer in optimizers:
                        optimizer.step()
                if epoch % self.state_every == 0 or epoch == self.epochs:
                    self.states.append({key: tensor.clone() for key, tensor in self.network.state_dict().items()})
                bar.update()

    def scores(self, images: FeatureBank) -> list[Tensor]:
        """Compute the anomaly scores [n] (maximum over patches) for every state; the last one is the trained model."""
        return [self._patch_scores(state, images).amax(dim=1) for state in self.states]

    def maps(self, images: FeatureBank) -> Tensor:
        """Return the patch scores [n, 1, h, w] of the trained model."""
        return self._patch_scores(self.states[-1], images).reshape(len(images.files), 1, *images.grid)

    def _patch_scores(self, state: dict[str, Tensor], images: FeatureBank) -> Tensor:
        """Return the scores [n, h*w] of the patches of whole images in a state of the training."""
        self.network.load_state_dict(state)
        self.network.eval()
        with torch.inference_mode():
            value = torch.cat([self.network(rows) for rows in images.rows.split(16384)])
        return value.reshape(len(images.files), -1)


def feature_scale(rows: Tensor) -> float:
    """Return the root of the mean variance of the channels of rows [N, C], over all rows."""
    return float(rows.var(dim=0, correction=0).double().mean().sqrt())


def build(channels: int) -> nn.Sequential:
    """Build adaptor (one linear layer) and discriminator.

    Higher scores are more abnormal, as everywhere in this package; the publication uses the opposite sign.
    """
    adaptor = nn.Linear(channels, channels)
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
