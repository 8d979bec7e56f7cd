"""What happens when training starts: banks are filled, the abnormal bank is mined, the trainer's parts get both."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from ignite.engine import Engine, Events
from torch import Tensor

from monai_wscxr.bank.cache import fingerprint
from monai_wscxr.bank.feature_bank import BankOnDisk, FeatureBank
from monai_wscxr.data.split import TrainingSplit
from monai_wscxr.errors import InputError
from monai_wscxr.features.copies import ALTERED, copied_images, copy_features
from monai_wscxr.features.extraction import PatchExtractor
from monai_wscxr.model.mining import Mined, check_scope, mine
from monai_wscxr.model.mixing import MixingInferer, PatchBatches
from monai_wscxr.model.nuisance import nuisance_of
from monai_wscxr.model.whitening import NormalWhitening
from monai_wscxr.system.memory import available_memory
from monai_wscxr.system.processes import first_process, from_first, process_count, share, wait_for_all
from monai_wscxr.training.validation import ImageFeatures

logger = logging.getLogger("monai_wscxr")

B = TypeVar("B", bound=FeatureBank | BankOnDisk)


class MiningHandler:
    """When training starts: fill the normal bank, mine the abnormal bank, hand both to the trainer's parts.

    Several processes share out the extraction and the search for the mined patches; every one then has the same banks.

    Args:
        extractor: patch features of files.
        split: who trains and who is held out.
        dataset: receives the normal bank.
        inferer: receives the mined bank.
        validation: receives held-out normals and the few-shot abnormals as whole images.
        retention: retention rate r in (0, 1]; 1 keeps every abnormal patch.
        device: where the banks live while training.
        whitening: fitted to the normal bank; everything handed over is whitened. None leaves features as they are.
        shrinkage: of its covariance, > 0.
        copies: altered copies made of some normal images; 0 makes none, as published.
        copied_normals: how many images of the bank have copies; always the same ones, so that runs share them.
        nuisance: weight of what the alteration does to their features in the covariance, >= 0.
        scope: of mining, see `mine`.
        bank_memory: bytes for the normal bank; a bank that needs more stays on disk, with the same result. None takes
            half of the memory that is free.

    Attributes:
        mined: result of mining (on features as published), after training has started; its rows are not whitened.
        normal, held_out, abnormal: banks of whole images, whitened; `release` lets go of `normal`.
        seconds: {"extraction", "mining"}.
        on_mining: called when all features are there and mining begins, for who shows how far a training is.
    """

    def __init__(
        self,
        extractor: PatchExtractor,
        split: TrainingSplit,
        dataset: PatchBatches,
        inferer: MixingInferer,
        validation: ImageFeatures,
        retention: float = 0.2,
        device: str | torch.device = "cpu",
        whitening: NormalWhitening | None = None,
        shrinkage: float = 1.0,
        copies: int = 0,
        copied_normals: int = 200,
        nuisance: float = 0.0,
        scope: str = "all",
        bank_memory: int | None = None,
    ) -> None:
        if not 0 < retention <= 1:
            raise InputError(f"the retention rate r must lie in (0, 1] (published: 0.2), got {retention}")
        if copies < 0 or copied_normals < 1 or not (math.isfinite(nuisance) and nuisance >= 0):
            raise InputError(
                "copies must be 0 (none, as published) or more, copied_normals at least 1 and nuisance at least 0, got "
                f"{copies}, {copied_normals} and {nuisance}"
            )
        self.extractor, self.split, self.dataset = extractor, split, dataset
        self.inferer, self.validation, self.retention = inferer, validation, retention
        self.device = torch.device(device)
        self.whitening, self.shrinkage, self.bank_memory = whitening, shrinkage, bank_memory
        self.copies, self.copied_normals, self.nuisance = copies, copied_normals, nuisance
        self.scope = check_scope(scope)
        self.seconds: dict[str, float] = {}
        self.on_mining: Callable[[], None] = lambda: None
        self.mined: Mined
        self.normal: FeatureBank | BankOnDisk
        self.held_out: FeatureBank
        self.abnormal: FeatureBank

    def attach(self, engine: Engine) -> None:
        """Run when training starts."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Fill, mine, hand over."""
        logger.info("%s", self.split.summary())
        for finding in self.split.findings:
            logger.warning("allowed overlap between training and test: %s", finding)
        self.extractor.digests.update(self.split.digests)
        normal, nuisance = self._extract()
        self.on_mining()
        began = time.perf_counter()
        self.mined = mine(normal.to(self.device), self.abnormal.to(self.device), self.retention, self.scope)
        self.seconds["mining"] = time.perf_counter() - began
        if self.whitening is not None:
            self._fit_whitening(normal, nuisance)
        # the largest things in memory, and nobody needs them as they were any more
        self.normal = self._whitened(normal, in_place=True)
        self.held_out = self._whitened(self.held_out, in_place=True)
        self.abnormal = self._whitened(self.abnormal, in_place=True)
        self.dataset.fill(self.normal.rows)
        self.inferer.fill(self._whitened(self.mined.bank).rows)
        self.validation.fill(self.held_out, self.abnormal)
        engine.state.epoch_length = self.dataset.batches_per_epoch
        done = self.extractor.done
        logger.info(
            "features: %d images extracted, %d from the cache, %d rejected, %.1f s",
            *(done.extracted, done.reused, len(done.rejected), self.seconds["extraction"]),
        )
        for file, code, message in done.rejected:
            logger.warning("rejected (%s): %s", code, message or file)
        logger.info(
            "mining: %d of %d abnormal patches against %d normal ones, %.2f s",
            *(len(self.mined.bank), len(self.abnormal), len(normal), self.seconds["mining"]),
        )

    def release(self) -> None:
        """Let go of the normal bank, the largest thing in memory, when the training is over."""
        self.dataset.release()
        if hasattr(self, "normal"):  # a run that found nothing left to do has none
            del self.normal

    @property
    def identity(self) -> str:
        """Changes with whatever features are made of and with the images, their order and their parts in training."""
        parts = [self.split.normal, self.split.held_out, self.split.abnormal]
        digests = [[self.extractor.digests.get(str(item["image"])) for item in part] for part in parts]
        return fingerprint({"features": self.extractor.settings(), "images": digests})

    def _fit_whitening(self, normal: FeatureBank | BankOnDisk, nuisance: Tensor | None) -> None:
        assert self.whitening is not None
        if first_process():
            self.whitening.fit(normal.to(self.device).rows, self.shrinkage, nuisance)
        self.whitening.load_state_dict(from_first({k: v.cpu() for k, v in self.whitening.state_dict().items()}))

    def _whitened(self, bank: B, in_place: bool = False) -> B:
        """A bank on the device, whitened where features are."""
        bank = bank.to(self.device)  # type: ignore[assignment]
        if self.whitening is None or not self.whitening.active:
            return bank
        folder = None if self.extractor.cache is None else self.extractor.cache.folder
        return bank.changed(self.whitening.into, folder, in_place)  # type: ignore[return-value]

    def _extract(self) -> tuple[FeatureBank | BankOnDisk, Tensor | None]:
        """Normal bank and nuisance covariance."""
        began = time.perf_counter()
        if process_count() > 1:
            self._extract_shares()
        fits = self._fits(len(self.split.normal))
        # on disk as long as images pass the network, which needs memory of its own
        keep = self.extractor.bank if self.extractor.cache is None else self.extractor.bank_on_disk
        normal = keep(self.split.normal, "normal images")
        held_out = keep(self.split.held_out, "held-out normal images")
        abnormal = keep(self.split.abnormal, "abnormal images")
        nuisance = self._nuisance(normal)
        self.held_out, self.abnormal = held_out.load(), abnormal.load()
        if fits:
            normal = normal.load()
        self.seconds["extraction"] = time.perf_counter() - began
        return normal, nuisance

    def _fits(self, images: int) -> bool:
        """Whether the features of so many normal images can be trained on in memory: with what a search makes of them, twice
        their size is counted."""
        allowed = available_memory() // 2 if self.bank_memory is None else self.bank_memory
        needed = 2 * self.extractor.image_bytes * images
        if needed > allowed and self.extractor.cache is None:
            raise InputError(
                f"training on {images} normal images takes {needed / 1e9:.1f} GB of memory, {allowed / 1e9:.1f} GB are "
                "allowed: leave --cache on, so that the bank can stay on disk"
            )
        return needed <= allowed

    def _nuisance(self, normal: FeatureBank | BankOnDisk) -> Tensor | None:
        """Weighted covariance of what alterations do; several processes share out the copies that are not known yet."""
        if not (self.copies and self.nuisance and self.whitening is not None and self.whitening.active):
            return None
        if process_count() > 1:
            chosen = copied_images(self.extractor, normal.files, self.copied_normals)
            if files := share([normal.files[n] for n in chosen]):
                copy_features(self.extractor, files, ALTERED, self.copies)
            wait_for_all()
        return self.nuisance * nuisance_of(self.extractor, normal, self.copied_normals, self.copies)

    def _extract_shares(self) -> None:
        """Every process brings its share of the images into the cache, from which all then read."""
        cache = self.extractor.cache
        if cache is None:
            raise InputError("training with several processes needs the feature cache; leave --cache on")
        items = [*self.split.normal, *self.split.held_out, *self.split.abnormal]
        # the first process says which: another one might already see what somebody has written meanwhile
        missing = [n for n, item in enumerate(items) if self.split.digests.get(str(item["image"]), "") not in cache]
        missing = from_first(missing)
        self.extractor.fill([items[n] for n in share(missing)], total=len(items))
        wait_for_all()
        # `bank` will find them in the cache and count them there
        self.extractor.done.extracted, self.extractor.done.reused = len(missing), -len(missing)
