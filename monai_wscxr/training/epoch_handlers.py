"""Handlers around the epochs: threads, weights of distance and regions, states to continue from, one line of log.

A training on normal images alone has no epoch: `NormalsOnlyHandler` ends it before the first.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from ignite.engine import CallableEventWithFilter, Engine, Events
from torch import nn

from monai_wscxr.data.split import count_classes
from monai_wscxr.errors import InputError
from monai_wscxr.model.mixing import PatchBatches
from monai_wscxr.model.networks import Discriminator
from monai_wscxr.model.scores import check_score_share
from monai_wscxr.system.atomic import require_space
from monai_wscxr.system.processes import first_process, wait_for_all
from monai_wscxr.system.sealed import torch_bytes
from monai_wscxr.training.banks import TrainingBanks
from monai_wscxr.training.distance import (
    check_distance_share,
    check_opacity_options,
    distance_spread,
    distance_weight,
    opacity_share,
    region_weight,
    weigh_opacity,
    weigh_opacity_map,
)
from monai_wscxr.training.mining_handler import banks_of
from monai_wscxr.training.normals_only import score_distance_alone
from monai_wscxr.training.region_head import check_region_options, fit_regions
from monai_wscxr.training.run_folder import RunFolder

logger = logging.getLogger("monai_wscxr")


def kept_epochs(interval: int) -> CallableEventWithFilter:
    """Return the event of an epoch that has ended and is kept: every `interval`-th one and the last one.

    Only then are the terms of image scores weighed, scores validated and a state saved; learning needs none of it.

    Raises:
        InputError: when the interval is no whole number of at least 1.
    """
    if not isinstance(interval, int) or interval < 1:
        raise InputError(f"val_interval must be a whole number of at least 1, got {interval!r}")
    return Events.EPOCH_COMPLETED(event_filter=lambda engine, n: n % interval == 0 or n == engine.state.max_epochs)


class EpochStateHandler:
    """Save the training state after every kept epoch and continue from the last undamaged one.

    Batches and mixing depend on (seed, epoch) alone, so a continued run ends at the weights of an uninterrupted one. A state
    belongs to the images that it was trained on: when they have changed, training starts again. Attach it after
    `MiningHandler`.

    Args:
        folder: output folder of the run.
        discriminator, optimizer: objects in training.
        dataset: its epoch is set when the run continues.
        interval: see `kept_epochs`.
    """

    def __init__(
        self,
        folder: RunFolder,
        discriminator: nn.Module,
        optimizer: torch.optim.Optimizer,
        dataset: PatchBatches,
        interval: int = 1,
    ) -> None:
        self.folder, self.kept = folder, kept_epochs(interval)
        self.discriminator, self.optimizer, self.dataset = discriminator, optimizer, dataset

    def attach(self, engine: Engine) -> None:
        """Continue when training starts, save after every kept epoch."""
        engine.add_event_handler(Events.STARTED, self.resume)
        engine.add_event_handler(self.kept, self.save)

    def resume(self, engine: Engine) -> None:
        """Load the last state if it belongs to the images of this run."""
        state = self.folder.latest_state()
        if state is not None and state["images"] != banks_of(engine).identity:
            logger.warning("the images have changed since the interrupted run; training starts again")
            wait_for_all()  # every process has read the state
            if first_process():
                self.folder.forget_states()
            state = None
        if first_process():
            size = len(torch_bytes(self._state(engine)))
            epochs = (engine.state.max_epochs or 0) - (state["epoch"] if state else 0)
            require_space(self.folder.path, epochs * size, f"keeping {epochs} epochs")
        if state is None:
            return
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])
        engine.state.epoch = self.dataset.epoch = state["epoch"]
        engine.state.iteration = state["epoch"] * engine.state.epoch_length
        logger.info("continuing after epoch %d of an interrupted run", state["epoch"])

    def save(self, engine: Engine) -> None:
        """Write the state of this epoch; the first of several processes does."""
        if first_process():
            self.folder.save_state(engine.state.epoch, self._state(engine))

    def _state(self, engine: Engine) -> dict[str, Any]:
        return {
            "epoch": engine.state.epoch,
            "images": banks_of(engine).identity,
            "discriminator": self.discriminator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }


class DistanceHandler:
    """After every kept epoch, weigh the distance to the normals against what the discriminator has learned (`distance_weight`).

    Attach it after `MiningHandler` and before the handlers that keep a state or validate.

    Args:
        discriminator: its `distance_weight` is set.
        share: share of the distance, >= 0; 0 switches it off, as in the paper.
        score_share: see `anomaly_score`.
        interval: see `kept_epochs`.
    """

    def __init__(
        self, discriminator: Discriminator, share: float = 0.0, score_share: float = 0.0, interval: int = 1
    ) -> None:
        self.kept = kept_epochs(interval)
        self.discriminator, self.share = discriminator, check_distance_share(share)
        self.score_share = check_score_share(score_share)
        self._spread: float | None = None  # of the distance term; the same after every epoch

    def attach(self, engine: Engine) -> None:
        """Run after every kept epoch."""
        engine.add_event_handler(Events.STARTED, self._forget)
        engine.add_event_handler(self.kept, self)

    def _forget(self, engine: Engine) -> None:
        self._spread = None

    def __call__(self, engine: Engine) -> None:
        """Set the discriminator's weight of the distance."""
        banks = banks_of(engine)
        weight = 0.0
        if self.share > 0:
            if self._spread is None:
                device = self.discriminator.distance_weight.device
                self._spread = distance_spread(banks.normal, self.score_share, device)
            images = len(banks.abnormal.files)
            weight = distance_weight(
                self.discriminator, banks.normal, images, self.share, self.score_share, self._spread
            )
        self.discriminator.distance_weight.fill_(weight)


class _OpacityWeights:
    """Weights of the synthetic opacities, for two handlers.

    Args:
        discriminator: its weights are set.
        share: share of the opacities in scores, >= 0; 0 switches them off, as in the paper.
        map_weight: weight of the opacities in maps, >= 0, see `weigh_opacity_map`. It leaves scores alone only if these are the
            mean over all patches, so with another `score_share` it is not applied.
        score_share: see `anomaly_score`.

    Raises:
        InputError: on a value outside its range.
    """

    def __init__(
        self, discriminator: Discriminator, share: float = 0.0, map_weight: float = 0.0, score_share: float = 0.0
    ) -> None:
        check_opacity_options(share, map_weight)
        self.discriminator, self.share = discriminator, share
        self.score_share = check_score_share(score_share)
        self.map_weight = map_weight if self.score_share == 1 else 0.0

    def weigh(self, banks: TrainingBanks, share: float) -> None:
        """Set both directions of the opacities, that of scores with this share."""
        self.discriminator.opacity_map.zero_()
        weigh_opacity(self.discriminator, banks.normal, banks.opacity, share, self.score_share)
        weigh_opacity_map(self.discriminator, banks.normal, banks.opacity_map, self.map_weight)


class NormalsOnlyHandler(_OpacityWeights):
    """Without abnormal images, score the distance to the normals alone and end the training before its first epoch.

    The handlers of its completion then write the model. Attach it after `MiningHandler`.
    Its weights are those of `score_distance_alone` and, beside the distance, of the opacities.
    """

    def attach(self, engine: Engine) -> None:
        """Run when training starts."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Do nothing where there is an abnormal image."""
        banks = banks_of(engine)
        if banks.split.normals_only:
            score_distance_alone(self.discriminator)
            self.weigh(banks, self.share)
            logger.info(
                "no abnormal image: the score of a patch is its distance to the normals, and nothing is trained"
            )
            engine.terminate()


class RegionHandler:
    """Fit the opinion of the regions when training starts, and weigh it after every kept epoch (`RegionHead`, `region_weight`).

    Attach it after `MiningHandler` and `DistanceHandler`, and before the handlers that keep a state or validate.

    Args:
        discriminator: its `regions` are fitted.
        share: share of the opinion, >= 0; 0 switches it off, as in the paper.
        shrinkage: shrinkage of the covariance of region means, in (0, 1].
        nuisance: weight, in that covariance, of what alterations do to region means; >= 0.
        score_share: see `anomaly_score`.
        interval: see `kept_epochs`.

    Raises:
        InputError: on a value outside its range.
    """

    def __init__(
        self,
        discriminator: Discriminator,
        share: float = 0.0,
        shrinkage: float = 0.7,
        nuisance: float = 6.0,
        score_share: float = 0.0,
        interval: int = 1,
    ) -> None:
        self.kept = kept_epochs(interval)
        check_region_options(share, shrinkage, nuisance)
        self.discriminator, self.share = discriminator, share
        self.shrinkage, self.nuisance = shrinkage, nuisance
        self.score_share = check_score_share(score_share)

    def attach(self, engine: Engine) -> None:
        """Fit when training starts, weigh after every kept epoch."""
        engine.add_event_handler(Events.STARTED, self.fit)
        engine.add_event_handler(self.kept, self)

    def fit(self, engine: Engine) -> None:
        """Fit the opinion to the banks, if it has a share and an abnormal image; the first of several processes does."""
        banks = banks_of(engine)
        if self.share > 0 and banks.abnormal.files:
            fit_regions(self.discriminator, banks, self.shrinkage, self.nuisance)

    def __call__(self, engine: Engine) -> None:
        """Set the weight of the opinion."""
        weight = region_weight(self.discriminator, banks_of(engine).normal, self.share, self.score_share)
        self.discriminator.regions.weight.fill_(weight)


class OpacityHandler(_OpacityWeights):
    """After every kept epoch, add the direction of synthetic opacities with its weight (`weigh_opacity`).

    Attach it after `MiningHandler`, `DistanceHandler` and `RegionHandler`, before the handlers that keep a state or validate.
    The share falls with the number of abnormal images, see `opacity_share`.

    Args:
        discriminator, share, map_weight, score_share: as for `_OpacityWeights`.
        interval: see `kept_epochs`.
    """

    def __init__(
        self,
        discriminator: Discriminator,
        share: float = 0.0,
        map_weight: float = 0.0,
        score_share: float = 0.0,
        interval: int = 1,
    ) -> None:
        super().__init__(discriminator, share, map_weight, score_share)
        self.kept = kept_epochs(interval)

    def attach(self, engine: Engine) -> None:
        """Run after every kept epoch."""
        engine.add_event_handler(self.kept, self)

    def __call__(self, engine: Engine) -> None:
        """Set both directions."""
        banks = banks_of(engine)
        classes = count_classes(banks.split.abnormal)
        self.weigh(banks, opacity_share(self.share, len(banks.abnormal.files), len(classes)))


class ThreadsHandler:
    """Train a small discriminator on one CPU thread: its steps take a fraction of a millisecond each.

    Waiting for other threads at every operation gains nothing on an idle machine and costs up to fifty times on a busy
    one. The number of threads is restored when training ends.

    Args:
        discriminator: network in training.
        batch_size: normal patches per step.
        limit: multiply-adds per step up to which one thread is used.
    """

    def __init__(self, discriminator: nn.Module, batch_size: int, limit: float = 5e7) -> None:
        weights = sum(p.numel() for p in discriminator.parameters())
        self.one = 2 * batch_size * weights <= limit and next(discriminator.parameters()).device.type == "cpu"
        self.threads = torch.get_num_threads()

    def attach(self, engine: Engine) -> None:
        """Set the number of threads when training starts (attach it after `MiningHandler`), restore it at the end."""
        engine.add_event_handler(Events.STARTED, self.set_threads)
        for event in (Events.COMPLETED, Events.EXCEPTION_RAISED):
            engine.add_event_handler(event, self.restore)

    def set_threads(self, engine: Engine) -> None:
        """Use one thread if the discriminator is small."""
        self.threads = torch.get_num_threads()
        if self.one:
            torch.set_num_threads(1)

    def restore(self, engine: Engine, error: BaseException | None = None) -> None:
        """Restore the number of threads; an error is raised again."""
        torch.set_num_threads(self.threads)
        if error is not None:
            raise error


class EpochLogHandler:
    """Log one line per epoch: the mean training loss, and the AUROC of held-out normals against the training abnormals.

    Attach it after the `ValidationHandler`. The abnormals were trained on, so the second figure chooses nothing.

    Args:
        validator: engine of the validation.
    """

    def __init__(self, validator: Engine) -> None:
        self.validator = validator

    def attach(self, engine: Engine) -> None:
        """Log after every epoch."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Log the epoch that has just ended."""
        state = engine.state
        logger.info(
            "epoch %d/%d: loss %.4f%s", state.epoch, state.max_epochs, state.metrics["loss"], self._separation(engine)
        )

    def _separation(self, engine: Engine) -> str:
        if self.validator.state.epoch != engine.state.epoch:  # not validated after this epoch
            return ""
        figure = self.validator.state.metrics["separation_auroc"]
        return f", separation of held-out normals from the training abnormals: AUROC {figure:.4f}"
