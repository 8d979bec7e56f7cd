"""SQUID: in-painting of patches from a memory, judged by a discriminator (Xiang et al., CVPR 2023).

As published: networks, memories, losses, optimisers, augmentation and score. Different: the last epoch counts, where the
publication takes one by a validation set with abnormal images; one pass of the generator serves both steps of a batch, where
the publication takes one for each; images are resized in one step; and the number of epochs is an option.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from monai_wscxr.errors import InputError
from monai_wscxr.experiments.baselines.common import Learned
from monai_wscxr.experiments.baselines.image_training import (
    ImageBatches,
    ImageTraining,
    autocast,
    batch_loader,
    check_precision,
    counted_seed,
)
from monai_wscxr.experiments.baselines.images import GreyImages, Place
from monai_wscxr.system.progress import progress_bar

PUBLISHED_CHANNELS = (32, 64, 128, 256, 512)
"""Channels of the encoder's five levels."""

SLOTS = 200
"""Vectors in a memory."""

_KEPT = 0.95  # share of cells that the masked shortcut takes from memory, in training
_TOP = 5  # weights at or below this rank of the recall are dropped, so that one fewer is kept


class Reconstruction(NamedTuple):
    """Output of the generator.

    Attributes:
        image: reconstruction [B, 1, S, S] in [0, 1].
        levels: outputs of the decoder's four levels, after their memories.
        teacher: reconstruction of the teacher; None without it.
        teacher_levels: outputs of the teacher's four levels; none without it.
        queries: [B, 4, d], what the queues take after a step.
    """

    image: Tensor
    levels: list[Tensor]
    teacher: Tensor | None
    teacher_levels: list[Tensor]
    queries: Tensor


def to_patches(image: Tensor) -> Tensor:
    """Cut maps [B, C, H, W] into 2 x 2 patches, row by row: [4B, C, H/2, W/2], the patches of an image together."""
    b, c, h, w = image.shape
    return image.reshape(b, c, 2, h // 2, 2, w // 2).permute(0, 2, 4, 1, 3, 5).reshape(4 * b, c, h // 2, w // 2)


def to_whole(patches: Tensor) -> Tensor:
    """Put patches [4B, C, h, w] together to maps [B, C, 2h, 2w]; the inverse of `to_patches`."""
    n, c, h, w = patches.shape
    return patches.reshape(n // 4, 2, 2, c, h, w).permute(0, 3, 1, 4, 2, 5).reshape(n // 4, c, 2 * h, 2 * w)


def recall(query: Tensor, memory: Tensor) -> Tensor:
    """Recall vectors from a memory: the weighted mean of the four slots most similar to each query.

    Weights are the softmax over all slots; those that are not above the fifth largest are dropped and the rest is divided by
    their sum. The gradient is that of the softmax.

    Args:
        query: [..., N, d].
        memory: [..., M, d] with M >= 5.

    Returns:
        [..., N, d] float32.
    """
    soft = torch.softmax(query.float() @ memory.float().transpose(-1, -2), dim=-1)
    with torch.no_grad():
        least = soft.topk(_TOP, dim=-1).values[..., -1:]
        kept = torch.where(soft > least, soft, torch.zeros_like(soft))
        kept = kept / kept.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(kept.dtype).tiny)
    return (kept + (soft - soft.detach())) @ memory.float()


def masked_shortcut(recalled: Tensor, original: Tensor, training: bool) -> Tensor:
    """In training, replace some cells of recalled maps [B, C, h, w] by the original ones; the draw is one per cell."""
    if not training:
        return recalled
    shape = (recalled.shape[0], 1, *recalled.shape[2:])
    mask = torch.rand(shape, device=recalled.device) < _KEPT
    return torch.where(mask, recalled, original.to(recalled.dtype))


class Block(nn.Module):
    """Convolution, and a residual branch of two further ones.

    Args:
        inputs, outputs: channels.
        stride: of the first convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU())
        self.branch = nn.Sequential(
            nn.Conv2d(outputs, outputs, 3, 1, 1),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Compute [B, outputs, h/stride, w/stride] from [B, inputs, h, w]."""
        start = self.first(x)
        return F.relu(start + self.branch(start))


class SpaceMemory(nn.Module):
    """Learned memory of a decoder level: four matrices, one per quadrant of a patch.

    Args:
        size: values in a quadrant of a map, channels times pixels.
        slots: vectors per matrix, >= 5.
    """

    def __init__(self, size: int, slots: int = SLOTS) -> None:
        super().__init__()
        bound = size**-0.5
        self.matrices = nn.Parameter(torch.empty(4, slots, size).uniform_(-bound, bound))

    def forward(self, maps: Tensor) -> Tensor:
        """Recall maps [4B, C, h, w] by quadrant."""
        quadrants = to_patches(maps)
        n = maps.shape[0]
        query = quadrants.reshape(n, 4, -1).transpose(0, 1)
        found = recall(query, self.matrices).transpose(0, 1).reshape(quadrants.shape)
        return masked_shortcut(to_whole(found), maps, self.training)


class Inpainting(nn.Module):
    """In-painting block: the code of a patch is put together from what memory says of it and of its neighbours.

    Args:
        channels: channels of the code.
        side: its side in cells.
        slots: vectors per queue, >= 5.
    """

    queues: Tensor
    pointer: Tensor

    def __init__(self, channels: int, side: int, slots: int = SLOTS) -> None:
        super().__init__()
        reduced = channels // 4
        size = reduced * side * side
        if channels % 4 or size % 8:
            raise InputError(f"SQUID: the code of {channels} channels must divide by 4, and its {size} values by 8")
        self.reduced, self.side, self.slots = reduced, side, slots
        self.reduce = nn.Sequential(nn.Conv2d(channels, reduced, 1, bias=False), nn.BatchNorm2d(reduced), nn.ReLU())
        self.attention = nn.MultiheadAttention(size, 8, batch_first=True)
        self.norms = nn.ModuleList([nn.LayerNorm(size), nn.LayerNorm(size)])
        self.mix = nn.Sequential(nn.Linear(size, size // 4), nn.ReLU(), nn.Linear(size // 4, size))
        self.expand = nn.Sequential(
            nn.Conv2d(reduced + 3, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
        )
        bound = size**-0.5
        self.register_buffer("queues", torch.empty(4, slots, size).uniform_(-bound, bound))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    def forward(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the in-painted code [4B, C, h, w], and the queries [B, 4, d], from the code of all patches."""
        n = code.shape[0]
        query = self.reduce(code).reshape(n // 4, 4, -1)
        own = recall(query.transpose(0, 1), self.queues).transpose(0, 1)  # [B, 4, d]
        around = neighbours(own).flatten(0, 1)  # [4B, 8, d]
        attended, _ = self.attention(query.reshape(n, 1, -1), around, around, need_weights=False)
        hidden = F.relu(self.norms[0](attended[:, 0]) + own.reshape(n, -1))
        hidden = F.relu(self.norms[1](self.mix(hidden)) + hidden)
        cells = hidden.reshape(n, self.reduced, self.side, self.side)
        painted = self.expand(torch.cat([cells, self._position(n, cells)], dim=1))
        return masked_shortcut(painted, code, self.training), query

    def _position(self, n: int, cells: Tensor) -> Tensor:
        """Return three constant channels [n, 3, h, w] with the number of the patch in bits, the highest first."""
        number = torch.arange(4, device=cells.device).repeat(n // 4)
        bits = torch.stack([(number >> shift) & 1 for shift in (2, 1, 0)], dim=1).to(cells.dtype)
        return bits[:, :, None, None].expand(-1, -1, self.side, self.side)

    @torch.no_grad()
    def remember(self, queries: Tensor) -> None:
        """Put queries [B, 4, d] into the queues in place of the oldest vectors; of more than the slots, the last stay."""
        new = queries.detach().float().transpose(0, 1)[:, -self.slots :]
        place = (int(self.pointer) + torch.arange(new.shape[1], device=new.device)) % self.slots
        self.queues[:, place] = new
        self.pointer.copy_((self.pointer + new.shape[1]) % self.slots)


def neighbours(vectors: Tensor) -> Tensor:
    """Collect the 3 x 3 neighbourhood without its centre of each cell of a 2 x 2 grid, zero outside.

    Args:
        vectors: [B, 4, d], row by row.

    Returns:
        [B, 4, 8, d], row by row.
    """
    b, _, d = vectors.shape
    padded = F.pad(vectors.reshape(b, 2, 2, d), (0, 0, 1, 1, 1, 1))
    places = [(y, x) for y in range(3) for x in range(3) if (y, x) != (1, 1)]
    found = torch.stack([padded[:, y : y + 2, x : x + 2] for y, x in places], dim=3)  # [B, 2, 2, 8, d]
    return found.reshape(b, 4, 8, d)


class Decoder(nn.Module):
    """Decoder of four levels; the first two work on patches and have a skip and, in the student, a memory.

    Args:
        channels: of the encoder's levels.
        side: of the code, in cells.
        memory: whether the first two levels have one.
    """

    def __init__(self, channels: Sequence[int], side: int, memory: bool) -> None:
        super().__init__()
        c0, c1, c2, c3, c4 = channels
        self.blocks = nn.ModuleList([Block(c3 + c4, c3), Block(c2 + c3, c2), Block(c2, c1), Block(c1, c0)])
        sizes = (c3 * side * side, c2 * (2 * side) ** 2)
        self.memories = nn.ModuleList([SpaceMemory(size) for size in sizes] if memory else [])
        self.last = nn.Conv2d(c0, 1, 1)

    def forward(self, code: Tensor, skips: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Compute the image [B, 1, S, S] in [0, 1] and the four levels.

        Args:
            code: [4B, C, h, w].
            skips: patches [4B, ., 2h, 2w] and [4B, ., 4h, 4w] of the encoder.
        """
        levels, x = [], code
        for number, block in enumerate(self.blocks):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            if number < 2:
                x = torch.cat([skips[number].to(x.dtype), x], dim=1)
            x = block(x)
            if number < len(self.memories):
                x = self.memories[number](x)
            levels.append(x)
            if number == 1:
                x = to_whole(x)
        return torch.sigmoid(self.last(x).float()), levels


class Generator(nn.Module):
    """Encoder of patches, in-painting block, decoder with memories, and a teacher decoder without.

    Args:
        size: side of the images in pixels, a multiple of 32 from 64 on.
        channels: of the encoder's five levels.
    """

    def __init__(self, size: int = 128, channels: Sequence[int] = PUBLISHED_CHANNELS) -> None:
        super().__init__()
        if size < 64 or size % 32:  # batch normalisation of a single image needs more than one cell at the end
            raise InputError(f"SQUID: the side of its images must be a multiple of 32 pixels from 64 on, got {size}")
        side = size // 32
        self.encoder = nn.ModuleList(
            [Block(1, channels[0]), *(Block(a, b, 2) for a, b in itertools.pairwise(channels))]
        )
        self.inpainting = Inpainting(channels[-1], side)
        self.decoder = Decoder(channels, side, memory=True)
        self.teacher = Decoder(channels, side, memory=False)

    def forward(self, image: Tensor, teach: bool = False) -> Reconstruction:
        """Reconstruct images.

        Args:
            image: [B, 1, S, S] in [0, 1].
            teach: also run the teacher, which only training needs.
        """
        x = to_patches(image)
        maps = []
        for block in self.encoder:
            x = block(x)
            maps.append(x)
        code, skips = maps[-1], [maps[-2], maps[-3]]
        painted, queries = self.inpainting(code)
        found, levels = self.decoder(painted, skips)
        if not teach:
            return Reconstruction(found, levels, None, [], queries)
        teacher, teacher_levels = self.teacher(code.detach(), [skip.detach() for skip in skips])
        return Reconstruction(found, levels, teacher, teacher_levels, queries)


class Critic(nn.Module):
    """Discriminator of SQUID: five strided convolutions and a linear layer; high for images that look real.

    Args:
        size: side of the images in pixels, a multiple of 32 from 64 on.
        channels: of the convolutions.
    """

    def __init__(self, size: int = 128, channels: Sequence[int] = (16, 32, 64, 128, 128)) -> None:
        super().__init__()
        sizes = [1, *channels]
        self.convolutions = nn.ModuleList([nn.Conv2d(a, b, 5, 2, 2) for a, b in zip(sizes, channels, strict=False)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(c) for c in channels[1:]])
        self.last = nn.Linear(channels[-1] * (size // 32) ** 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Compute logits [B] of images [B, 1, S, S]; batch normalisation has the statistics of the batch, in any mode."""
        return self._logits(image, [self._of_batch(norm) for norm in self.norms])

    def of_each(self, image: Tensor) -> Tensor:
        """Compute logits [B], with the statistics of each image alone.

        The publication's code leaves its discriminator in training mode and scores images one by one; this gives the same
        values for a batch.
        """
        return self._logits(image, [self._of_image(norm) for norm in self.norms])

    def _logits(self, image: Tensor, norms: list[Any]) -> Tensor:
        x = image
        for number, convolution in enumerate(self.convolutions):
            x = convolution(x)
            x = F.leaky_relu(norms[number - 1](x) if number else x, 0.2)
        return self.last(x.flatten(1))[:, 0].float()

    @staticmethod
    def _of_batch(norm: Any) -> Any:
        return lambda x: F.batch_norm(x, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)

    @staticmethod
    def _of_image(norm: Any) -> Any:
        return lambda x: F.instance_norm(x, weight=norm.weight, bias=norm.bias, eps=norm.eps)


def critic_loss(real: Tensor, reconstructed: Tensor) -> Tensor:
    """Compute the discriminator's loss from the logits [B] of images and of reconstructions."""
    wanted = F.binary_cross_entropy_with_logits(real, torch.ones_like(real))
    return 0.005 * (wanted + F.binary_cross_entropy_with_logits(reconstructed, torch.zeros_like(reconstructed)))


def generator_loss(image: Tensor, found: Reconstruction, logits: Tensor) -> Tensor:
    """Compute the generator's loss.

    Args:
        image: [B, 1, S, S].
        found: its reconstruction with the teacher's.
        logits: of the discriminator on the reconstruction, [B].
    """
    assert found.teacher is not None
    distance = sum(
        (F.mse_loss(a.float(), b.float()) for a, b in zip(found.levels, found.teacher_levels, strict=True)),
        image.new_zeros(()),
    )
    return (
        10 * F.mse_loss(found.image, image)
        + 0.005 * F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))
        + 0.01 * F.mse_loss(found.teacher, image)
        + 0.001 * distance
    )


def shifted_and_scaled(image: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Shift an image [1, S, S] by up to 5 % each way and scale it by 0.95 to 1.05; zero outside, nearest pixels."""
    across, down, scale = (2 * torch.rand(3, generator=generator) - 1).mul(0.05).tolist()
    size = image.shape[-1]
    moved = TF.affine(
        image,
        angle=0.0,
        translate=[round(across * size), round(down * size)],
        scale=1 + scale,
        shear=[0.0, 0.0],
        interpolation=InterpolationMode.NEAREST,
        fill=[0.0],
    )
    return {"image": moved}


class Squid:
    """In-painting of normal anatomy; the score is how little the discriminator believes the reconstruction.

    Defaults are the published values.

    Args:
        epochs: passes over the normal images, >= 1 (published: 200).
        width: share of the published channels, > 0 and at most 1; below 1 only for tests.
        batch_size: images per step, >= 2.
        batches: largest number of batches per epoch, >= 1; None takes all (published for CheXpert: 85).
        least_rate: learning rate of the generator at the end of the cosine schedule of 300 epochs (for CheXpert: 5e-5).
        precision: of training, see `check_precision`.
        device: "cpu" or "cuda".
        seed: seed of initialisation, order, augmentation and masks.

    Raises:
        InputError: when a number is out of its range.
    """

    def __init__(
        self,
        epochs: int = 200,
        width: float = 1.0,
        batch_size: int = 16,
        batches: int | None = None,
        least_rate: float = 1e-5,
        precision: str = "float32",
        device: str | torch.device = "cpu",
        seed: int = 0,
    ) -> None:
        if epochs < 1 or batch_size < 2 or not 0 < width <= 1 or not 0 <= least_rate <= 1e-4:
            raise InputError(
                "SQUID: epochs must be >= 1, batch_size >= 2, width lie in (0, 1] and least_rate in [0, 1e-4]; got "
                f"{epochs}, {batch_size}, {width}, {least_rate}"
            )
        self.epochs, self.batch_size, self.batches, self.least_rate = epochs, batch_size, batches, least_rate
        self.channels = tuple(max(4, round(width * c)) for c in PUBLISHED_CHANNELS)
        self.precision, self.device, self.seed = check_precision(precision), torch.device(device), seed
        self.generator: Generator
        self.critic: Critic
        self.learned = Learned()

    def fit_images(self, normal: GreyImages, abnormal: GreyImages | None = None, place: Place | None = None) -> None:
        """Train on normal images; continue from the state in `place`."""
        place = place or Place()
        training = self.training(normal, place)
        steps = self.epochs * len(training.batches)
        with progress_bar(steps, "training SQUID", place.progress, unit="step") as bar:
            cost = training.run(bar.update)
        size = sum(p.numel() for network in (self.generator, self.critic) for p in network.parameters()) / 1e6
        self.learned = Learned(f"generator and discriminator, {size:.1f} M", cost)

    def training(self, normal: GreyImages, place: Place) -> ImageTraining:
        """Build the networks and their training."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(counted_seed(self.seed, 0))
            self.generator = Generator(normal.size, self.channels).to(self.device)
            self.critic = Critic(normal.size).to(self.device)
        self.generator.to(memory_format=torch.channels_last)
        self.critic.to(memory_format=torch.channels_last)
        batches = ImageBatches(normal, self.batch_size, self.seed, shifted_and_scaled)
        if self.batches is not None and self.batches < len(batches):
            batches = ImageBatches(normal, self.batch_size, self.seed, shifted_and_scaled, batches=self.batches)
        betas = (0.5, 0.999)
        optimizers = {
            "generator_optimizer": torch.optim.Adam(
                self.generator.parameters(), 1e-4, betas, 1e-7, weight_decay=1e-5, fused=True
            ),
            "critic_optimizer": torch.optim.Adam(self.critic.parameters(), 1e-4, betas, fused=True),
        }
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizers["generator_optimizer"], 300, self.least_rate)
        parts = {"generator": self.generator, "critic": self.critic, **optimizers, "schedule": schedule}
        trainer = SupervisedTrainer(
            self.device,
            self.epochs,
            batch_loader(batches),
            self.generator,
            optimizers["generator_optimizer"],
            generator_loss,
            iteration_update=lambda engine, batch: self._step(engine, batch["image"], optimizers, len(batches)),
            decollate=False,
        )
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: schedule.step())
        identity = {
            "channels": self.channels,
            "size": normal.size,
            "batch_size": self.batch_size,
            "batches": self.batches,
            "least_rate": self.least_rate,
            "precision": self.precision,
        }
        return ImageTraining(trainer, batches, parts, self.seed, identity, place.file("squid"), log=True)

    def _step(
        self, engine: Engine, images: Tensor, optimizers: dict[str, torch.optim.Optimizer], batches: int
    ) -> dict[str, float]:
        """Train the discriminator on a batch, and the generator on every second one of an epoch, the first included."""
        both = (engine.state.iteration - 1) % batches % 2 == 0
        images = images.to(self.device)
        self.generator.train()
        with torch.set_grad_enabled(both), autocast(self.device, self.precision):
            found = self.generator(images, teach=both)
        with autocast(self.device, self.precision):
            loss_critic = critic_loss(self.critic(images), self.critic(found.image.detach()))
        _update(optimizers["critic_optimizer"], loss_critic)
        if not both:
            return {"critic_loss": loss_critic.item()}
        with autocast(self.device, self.precision):
            logits = self.critic(found.image)
        loss = generator_loss(images, found, logits)
        _update(optimizers["generator_optimizer"], loss)
        self.generator.inpainting.remember(found.queries)
        return {"critic_loss": loss_critic.item(), "loss": loss.item()}

    def image_scores(self, images: GreyImages) -> list[Tensor]:
        """Compute the anomaly scores [n]: the discriminator's logits of the reconstructions, with the opposite sign."""
        return [torch.cat([-self.critic.of_each(found) for _, found in self._reconstructed(images)]).cpu()]

    def image_maps(self, images: GreyImages) -> Tensor:
        """Compute the absolute difference [n, S, S] of images and reconstructions, which the publication does not evaluate."""
        return torch.cat([(image - found).abs()[:, 0] for image, found in self._reconstructed(images)]).cpu()

    @torch.no_grad()
    def _reconstructed(self, images: GreyImages) -> list[tuple[Tensor, Tensor]]:
        """Return batches of images [B, 1, S, S] and their reconstructions."""
        self.generator.eval()
        found = []
        for pixels in images.pixels.split(32):
            image = pixels.to(self.device).float() / 255
            found.append((image, self.generator(image).image))
        return found


def _update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
