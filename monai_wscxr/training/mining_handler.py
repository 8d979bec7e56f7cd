"""The step of the training workflow that comes before the first epoch: banks are prepared and handed to the trainer's parts."""

from __future__ import annotations

import logging

import torch
from ignite.engine import Engine, EventEnum, Events

from monai_wscxr.data.split import TrainingSplit
from monai_wscxr.features.extraction import PatchExtractor
from monai_wscxr.model.mixing import MixingInferer, PatchBatches
from monai_wscxr.model.whitening import NormalWhitening
from monai_wscxr.training.banks import BankOptions, TrainingBanks, prepare_banks
from monai_wscxr.training.validation import ImageFeatures

logger = logging.getLogger("monai_wscxr")


class TrainingStages(EventEnum):
    """Stages of a training that an engine does not know."""

    MINING_STARTED = "mining_started"


class MiningHandler:
    """When training starts, prepare the banks and hand them to data set, inferer and validation.

    The banks become `engine.state.banks`, where the handlers attached after this one find them. `TrainingStages.MINING_STARTED`
    is fired when all features are known.

    Args:
        extractor, split, whitening, options, device: see `prepare_banks`.
        dataset: receives the normal bank.
        inferer: receives the mined bank.
        validation: receives held-out normal and few-shot abnormal images as whole images.
    """

    def __init__(
        self,
        extractor: PatchExtractor,
        split: TrainingSplit,
        dataset: PatchBatches,
        inferer: MixingInferer,
        validation: ImageFeatures,
        whitening: NormalWhitening | None = None,
        options: BankOptions | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.extractor, self.split, self.whitening = extractor, split, whitening
        self.options, self.device = options, device
        self.dataset, self.inferer, self.validation = dataset, inferer, validation

    def attach(self, engine: Engine) -> None:
        """Run when training starts."""
        engine.register_events(*TrainingStages)
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Prepare the banks and hand them over."""
        logger.info("%s", self.split.summary())
        for finding in self.split.findings:
            logger.warning("allowed overlap between training and test: %s", finding)
        banks = prepare_banks(
            self.extractor,
            self.split,
            self.whitening,
            self.options,
            self.device,
            on_mining=lambda: engine.fire_event(TrainingStages.MINING_STARTED),
        )
        engine.state.banks = banks  # type: ignore[attr-defined]
        self.dataset.fill(banks.normal.rows)
        if not self.split.normals_only:
            self.inferer.fill(banks.mined_rows)
            self.validation.fill(banks.held_out, banks.abnormal)
        engine.state.epoch_length = self.dataset.batches_per_epoch
        done = self.extractor.done
        logger.info(
            "features: %d images extracted, %d from the cache, %d rejected, %.1f s",
            *(done.extracted, done.reused, len(banks.rejected), banks.seconds["extraction"]),
        )
        logger.info("network: %s", self.extractor.network.text)
        for file, code, message in banks.rejected:
            logger.warning("rejected (%s): %s: %s", code, file, message)
        if self.split.normals_only:
            return
        logger.info(
            "mining: %d of %d abnormal patches against %d normal ones, %.2f s",
            *(len(banks.mined.bank), len(banks.abnormal), len(banks.normal), banks.seconds["mining"]),
        )


def banks_of(engine: Engine) -> TrainingBanks:
    """Return the banks that `MiningHandler` has prepared for this training.

    Raises:
        RuntimeError: when it has not run; attach it before the handlers that need banks.
    """
    banks: TrainingBanks | None = getattr(engine.state, "banks", None)
    if banks is None:
        raise RuntimeError("the training has no banks yet: attach MiningHandler before the handlers that need them")
    return banks


def release_banks(trainer: Engine) -> None:
    """Drop the normal bank, the largest object in memory, from a trainer and its data set; training is over."""
    banks_of(trainer).release()
    trainer.data_loader.dataset.release()  # type: ignore[attr-defined]
