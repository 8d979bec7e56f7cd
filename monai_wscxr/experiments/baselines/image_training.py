"""Training of networks on grey images by MONAI's trainer: batches, random numbers, states, and several networks side by side.

All randomness is counted: the order of the images depends on (seed, pass), what is done to an image on (seed, pass, index),
and torch's random stream within a step on (seed, step). A training that was killed and continued therefore ends at the same
weights, bit for bit, on a CPU with the same number of threads.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from monai.inferers import SimpleInferer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from monai_wscxr.errors import InputError
from monai_wscxr.experiments.baselines.common import Cost
from monai_wscxr.experiments.baselines.images import GreyImages
from monai_wscxr.system.atomic import DamagedError
from monai_wscxr.system.progress import progress_bar
from monai_wscxr.system.sealed import load_sealed, save_sealed
from monai_wscxr.system.workers import process_context

logger = logging.getLogger("monai_wscxr")

Augment = Callable[[Tensor, torch.Generator], Mapping[str, Tensor]]
"""Makes an item of a batch from an image [1, S, S] in [0, 1]; all its random choices come from the generator."""

SAVE_SECONDS = 30.0
"""Shortest time between two saved states, but for the last one: small networks have epochs of a second or two."""

T = TypeVar("T")
R = TypeVar("R")


class Stateful(Protocol):
    """A part of a training whose state is saved: network, optimiser, schedule, memory."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state_dict: Any) -> Any:
        """Take over a state."""


def counted_seed(*numbers: int) -> int:
    """Return a seed of 64 bits that depends on whole numbers >= 0, such as (seed, epoch, index)."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def counted_generator(*numbers: int) -> torch.Generator:
    """Return a generator for these numbers, see `counted_seed`."""
    return torch.Generator().manual_seed(counted_seed(*numbers))


class ImageBatches(IterableDataset[dict[str, Tensor]]):
    """Shuffled batches of grey images.

    Args:
        images: at least 2.
        batch_size: images per batch, >= 2; all images where there are fewer.
        seed: seed of order and augmentation.
        augment: makes an item from each image; None takes {"image": the image}.
        drop_last: leave out the last batch of a pass when it is smaller. A last batch of one image is left out in any case:
            batch normalisation could not use it.
        batches: batches per epoch, >= 1, from as many passes as are needed; None takes those of one pass.

    Attributes:
        epoch: number of epochs that are done.

    Raises:
        InputError: when a number is out of its range, or there are fewer than 2 images.
    """

    def __init__(
        self,
        images: GreyImages,
        batch_size: int,
        seed: int = 0,
        augment: Augment | None = None,
        drop_last: bool = False,
        batches: int | None = None,
    ) -> None:
        if len(images) < 2:
            raise InputError(f"training on images needs at least 2 of them, got {len(images)}")
        if batch_size < 2 or (batches is not None and batches < 1):
            raise InputError(f"batch_size must be >= 2 and batches >= 1, got {batch_size} and {batches}")
        self.images, self.seed, self.augment = images, seed, augment
        self.batch_size = min(batch_size, len(images))
        full, rest = divmod(len(images), self.batch_size)
        self.batches_per_pass = full + (rest >= 2 and not drop_last)
        self.batches = self.batches_per_pass if batches is None else batches
        self.epoch = 0

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return self.batches

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield the batches of the next epoch: those of `augment`, stacked, and "index" [B], the places of the images."""
        first = self.epoch * self.batches
        order, current = torch.empty(0, dtype=torch.int64), -1
        for number in range(first, first + self.batches):
            turn, place = divmod(number, self.batches_per_pass)
            if turn != current:
                order, current = torch.randperm(len(self.images), generator=counted_generator(self.seed, turn)), turn
            yield self._batch(order[place * self.batch_size : (place + 1) * self.batch_size], turn)
        self.epoch += 1

    def _batch(self, index: Tensor, turn: int) -> dict[str, Tensor]:
        images = self.images.floats(index)
        if self.augment is None:
            return {"image": images, "index": index}
        made = [
            self.augment(image, counted_generator(self.seed, turn, number))
            for image, number in zip(images, index.tolist(), strict=True)
        ]
        return {**{name: torch.stack([item[name] for item in made]) for name in made[0]}, "index": index}


@dataclass
class ImageTraining:
    """One training: what is trained, on what, and how it is known again.

    Attributes:
        trainer: MONAI's trainer over `loader(batches)`; `max_epochs` of it decides how long.
        batches: its batches.
        parts: everything with a state, by name.
        seed: of the random stream within steps.
        identity: JSON-like values; a saved state of a training with others is not continued. All that the trained network
            depends on besides images, seed and versions; the number of epochs only if a schedule depends on it.
        file: of the saved state; None keeps none.
        log: log the loss of every epoch.
        cost: what has been done so far.
        losses: mean over the steps of each epoch of the "loss" that the trainer puts out, if it does.
    """

    trainer: SupervisedTrainer
    batches: ImageBatches
    parts: Mapping[str, Stateful]
    seed: int
    identity: Mapping[str, Any]
    file: Path | None = None
    log: bool = False
    cost: Cost = field(default_factory=Cost)
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        values = {**self.identity, "seed": self.seed, "images": self.batches.images.digest}
        text = json.dumps(values, sort_keys=True)
        self.digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def run(self, on_step: Callable[[], object] = lambda: None) -> Cost:
        """Train, from the saved state if there is one; return what all of the training took.

        Args:
            on_step: called after every step, and at once for every step of a state that is continued.
        """
        ImageStateHandler(self, on_step).attach(self.trainer)
        with torch.random.fork_rng(devices=[]):
            self.trainer.run()
        return self.cost


class ImageStateHandler:
    """Count random numbers, steps and processor time of an `ImageTraining`; save its state after epochs, continue from it.

    Args:
        training: the training.
        on_step: see `ImageTraining.run`.
    """

    def __init__(self, training: ImageTraining, on_step: Callable[[], object]) -> None:
        self.training, self.on_step = training, on_step
        self._saved = self._counted = 0.0
        self._losses: list[float] = []  # of this epoch

    def attach(self, engine: Engine) -> None:
        """Continue when training starts, save after epochs."""
        engine.add_event_handler(Events.STARTED, self.resume)
        engine.add_event_handler(Events.ITERATION_STARTED, self.seed_step)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.count)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def resume(self, engine: Engine) -> None:
        """Load the state, if it belongs to this training."""
        self._saved, self._counted = time.monotonic(), time.process_time()
        state = self._state(engine.state.max_epochs or 0)
        if state is None:
            return
        for name, part in self.training.parts.items():
            part.load_state_dict(state["parts"][name])
        self.training.cost.add(Cost(**state["cost"]))
        self.training.losses += state["losses"]
        engine.state.epoch = self.training.batches.epoch = state["epoch"]
        engine.state.iteration = state["epoch"] * len(self.training.batches)
        for _ in range(engine.state.iteration):
            self.on_step()
        logger.info("continuing %s after epoch %d", self.training.file, state["epoch"])

    def seed_step(self, engine: Engine) -> None:
        """Seed torch's random stream for this step."""
        torch.manual_seed(counted_seed(self.training.seed, 1, engine.state.iteration))

    def count(self, engine: Engine) -> None:
        """Count the step and its images, and note its loss."""
        output: Any = engine.state.output
        if "loss" in output:
            self._losses.append(float(torch.as_tensor(output["loss"]).detach()))
        batch: Any = engine.state.batch
        self.training.cost.steps += 1
        self.training.cost.images += len(batch["index"])
        self.on_step()

    def save(self, engine: Engine) -> None:
        """Save the state of this epoch, unless another was saved less than `SAVE_SECONDS` ago; the last one always."""
        cost, now = self.training.cost, time.process_time()
        cost.epochs = engine.state.epoch
        cost.processor_seconds += now - self._counted
        self._counted = now
        if self._losses:
            self.training.losses.append(sum(self._losses) / len(self._losses))
            self._losses.clear()
            if self.training.log:
                logger.info("epoch %d: loss %.5f", engine.state.epoch, self.training.losses[-1])
        due = time.monotonic() - self._saved >= SAVE_SECONDS or engine.state.epoch == engine.state.max_epochs
        if self.training.file is None or not due:
            return
        parts = {name: part.state_dict() for name, part in self.training.parts.items()}
        state = {
            "digest": self.training.digest,
            "epoch": engine.state.epoch,
            "cost": asdict(cost),
            "losses": self.training.losses,
            "parts": parts,
        }
        save_sealed(self.training.file, state)
        self._saved = time.monotonic()

    def _state(self, epochs: int) -> dict[str, Any] | None:
        file = self.training.file
        if file is None or not file.exists():
            return None
        try:
            state: dict[str, Any] = load_sealed(file)
        except DamagedError as error:
            logger.warning("%s; this training starts again", error)
            return None
        if state["digest"] != self.training.digest or state["epoch"] > epochs:
            logger.warning("%s belongs to other images or settings; this training starts again", file)
            return None
        return state


class PrecisionInferer(SimpleInferer):
    """Run a network in training by `precision`; its output is float32.

    Args:
        device: of the network.
        precision: see `check_precision`.
    """

    def __init__(self, device: torch.device, precision: str) -> None:
        super().__init__()
        self.device, self.precision = device, check_precision(precision)

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Return the network's output."""
        with autocast(self.device, self.precision):
            found: Tensor = super().__call__(inputs, network, *args, **kwargs)
        return found.float()


def check_precision(precision: str) -> str:
    """Return the precision of a training: "float32", or "bfloat16" for convolutions and products of matrices.

    Raises:
        InputError: when it is neither.
    """
    if precision not in ("float32", "bfloat16"):
        raise InputError(f"training_precision must be float32 or bfloat16, got {precision!r}")
    return precision


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context in which a network runs by a precision, see `check_precision`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def batch_loader(batches: ImageBatches) -> DataLoader:
    """Return a loader for MONAI's trainer that leaves torch's random stream alone."""
    return DataLoader(batches, batch_size=None, generator=torch.Generator())


def train_side_by_side(
    train: Callable[[T, Callable[[], object]], R],
    tasks: Sequence[T],
    processes: int,
    steps: int,
    what: str,
    progress: bool,
) -> list[R]:
    """Run independent trainings, each with one thread, some of them at a time.

    One thread per network: several threads would wait for each other in every layer of a small network. The result does not
    depend on the number of processes.

    Args:
        train: trains by a task and a function to call after every step; with several processes both must be picklable.
        tasks: one per network.
        processes: number of networks at a time, >= 1; 1 trains in this process.
        steps: steps of all networks together, for the progress bar.
        what: text of the progress bar.
        progress: show it.

    Returns:
        Results in the order of the tasks.
    """
    processes = min(processes, len(tasks))
    with progress_bar(steps, what, progress, unit="step") as bar:
        if processes == 1:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                return [train(task, bar.update) for task in tasks]
            finally:
                torch.set_num_threads(threads)
        context = process_context((__name__,))
        counter = context.Value("q", 0)
        with ProcessPoolExecutor(processes, context, _prepare, (counter,)) as pool:
            waiting = [pool.submit(_run, train, task) for task in tasks]
            try:
                while not all(future.done() for future in waiting):
                    if any(future.done() and future.exception() for future in waiting):
                        break
                    bar.update(counter.value - bar.n)
                    time.sleep(0.2)
                bar.update(counter.value - bar.n)
                return [future.result() for future in waiting]
            finally:
                for future in waiting:
                    future.cancel()


_counter: Any = None  # of a process of `train_side_by_side`
_parent = 0


def _prepare(counter: Any) -> None:
    global _counter, _parent
    _counter, _parent = counter, os.getppid()
    torch.set_num_threads(1)


def _run(train: Callable[[T, Callable[[], object]], R], task: T) -> R:
    return train(task, _step)


def _step() -> None:
    """Count a step; end when the process that started this one is gone, because nobody takes the result."""
    if os.getppid() != _parent:
        os._exit(1)
    with _counter.get_lock():
        _counter.value += 1
