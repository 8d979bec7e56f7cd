"""MONAI/ignite handlers of the training workflow."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Iterator

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from monai_wscxr.artefact import save_model
from monai_wscxr.bank import FeatureBank
from monai_wscxr.calibration import calibrate
from monai_wscxr.copies import nuisance_of
from monai_wscxr.data.split import TrainingSplit, count_classes
from monai_wscxr.errors import InputError
from monai_wscxr.extraction import PatchExtractor
from monai_wscxr.mining import Mined, check_scope, mine
from monai_wscxr.mixing import MixingInferer, PatchBatches
from monai_wscxr.networks import Discriminator, WSCXRNet, anomaly_score, check_score_share, image_scores
from monai_wscxr.run_folder import RunFolder
from monai_wscxr.whitening import NormalWhitening

logger = logging.getLogger("monai_wscxr")


class ImageFeatures(IterableDataset):
    """Batches of patch features of whole images with labels, filled by `MiningHandler`; what validation runs on.

    Args:
        batch_size: images per batch.
    """

    def __init__(self, batch_size: int = 256) -> None:
        self.batch_size = batch_size
        self.features = torch.empty(0)
        self.labels = torch.empty(0)

    def fill(self, normal: FeatureBank, abnormal: FeatureBank) -> None:
        """Hold the images of two banks."""
        self.features = torch.cat([normal.images, abnormal.images])
        self.labels = torch.cat([torch.zeros(len(normal.files)), torch.ones(len(abnormal.files))])

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        parts = zip(self.features.split(self.batch_size), self.labels.split(self.batch_size), strict=True)
        for features, labels in parts:
            yield {"image": features, "label": labels[:, None]}


class MiningHandler:
    """When training starts: fill the normal bank, mine the abnormal bank, hand both to the trainer's parts.

    With several processes the first one extracts and the others read its features from the store.

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

    Attributes:
        mined: result of mining (on features as published), after training has started; its rows are not whitened.
        normal, held_out, abnormal: banks of whole images, whitened.
        seconds: {"extraction", "mining"}.
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
        self.whitening, self.shrinkage = whitening, shrinkage
        self.copies, self.copied_normals, self.nuisance = copies, copied_normals, nuisance
        self.scope = check_scope(scope)
        self.seconds: dict[str, float] = {}
        self.mined: Mined
        self.normal: FeatureBank
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
        began = time.perf_counter()
        self.mined = mine(normal.to(self.device), self.abnormal.to(self.device), self.retention, self.scope)
        self.seconds["mining"] = time.perf_counter() - began
        if self.whitening is not None:
            self.whitening.fit(normal.rows.to(self.device), self.shrinkage, nuisance)
        self.normal, self.held_out, self.abnormal = map(self._whitened, (normal, self.held_out, self.abnormal))
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

    def _whitened(self, bank: FeatureBank) -> FeatureBank:
        bank = bank.to(self.device)
        return bank if self.whitening is None else dataclasses.replace(bank, rows=self.whitening(bank.rows))

    def _extract(self) -> tuple[FeatureBank, Tensor | None]:
        """Normal bank and nuisance covariance."""
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if several and self.extractor.store is None:
            raise InputError("training with several processes needs the feature cache; leave --cache on")
        if several and dist.get_rank() > 0:
            dist.barrier()
            assert self.extractor.store is not None
            self.extractor.store.refresh()
        began = time.perf_counter()
        normal = self.extractor.bank(self.split.normal, "normal images")
        self.held_out = self.extractor.bank(self.split.held_out, "held-out normal images")
        self.abnormal = self.extractor.bank(self.split.abnormal, "abnormal images")
        nuisance = None
        if self.copies and self.nuisance and self.whitening is not None and self.whitening.active:
            nuisance = self.nuisance * nuisance_of(self.extractor, normal, self.copied_normals, self.copies)
        self.seconds["extraction"] = time.perf_counter() - began
        if several and dist.get_rank() == 0:
            dist.barrier()
        return normal, nuisance


class EpochStateHandler:
    """Keep the training state after every epoch and continue from the last one that is there.

    Batches and mixing depend on (seed, epoch) alone, so a continued run ends at the weights of an uninterrupted one.

    Args:
        folder: of the run.
        discriminator, optimizer: what is being trained.
        dataset: its epoch is set when continuing.
    """

    def __init__(
        self, folder: RunFolder, discriminator: nn.Module, optimizer: torch.optim.Optimizer, dataset: PatchBatches
    ) -> None:
        self.folder, self.discriminator, self.optimizer, self.dataset = folder, discriminator, optimizer, dataset

    def attach(self, engine: Engine) -> None:
        """Continue at the start, keep after every epoch."""
        engine.add_event_handler(Events.STARTED, self.resume)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def resume(self, engine: Engine) -> None:
        """Load the last state, if there is one."""
        state = self.folder.latest_state()
        if state is None:
            return
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])
        engine.state.epoch = self.dataset.epoch = state["epoch"]
        engine.state.iteration = state["epoch"] * engine.state.epoch_length
        logger.info("continuing after epoch %d of an interrupted run", state["epoch"])

    def save(self, engine: Engine) -> None:
        """Write the state of this epoch (the first process does)."""
        if not _first_process():
            return
        self.folder.save_state(
            engine.state.epoch,
            {
                "epoch": engine.state.epoch,
                "discriminator": self.discriminator.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            },
        )


class DistanceHandler:
    """After every epoch: weigh the distance to the normals against what the discriminator has learned.

    With one or two abnormal images the learned direction is uncertain and the distance helps; with many it does not. So
    over the training normals the distance term of the image scores has `share` / n times the standard deviation of the
    learned term, n being the number of abnormal images. Attach it before the handlers that keep or validate.

    Args:
        mining: holds the whitened normal bank and the few-shot abnormals.
        discriminator: its `distance_weight` is set.
        share: >= 0; 0 switches the distance off, as in the paper.
        score_share: see `anomaly_score`.
    """

    def __init__(
        self, mining: MiningHandler, discriminator: Discriminator, share: float = 0.0, score_share: float = 0.0
    ) -> None:
        if not (math.isfinite(share) and share >= 0):
            raise InputError(f"distance_share must be 0 (off) or more, got {share}")
        self.mining, self.discriminator, self.share = mining, discriminator, share
        self.score_share = check_score_share(score_share)

    def attach(self, engine: Engine) -> None:
        """Run after every epoch."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Set the weight."""
        mode = self.discriminator.training
        self.discriminator.eval()
        self.discriminator.distance_weight.zero_()
        if self.share > 0:
            self.discriminator.distance_weight.fill_(self.weight())
        self.discriminator.train(mode)

    def weight(self) -> float:
        """The weight that gives the distance its share; the discriminator's own must be 0 meanwhile."""
        images = self.mining.normal.images
        learned = image_scores(self.discriminator, images, self.score_share)
        distance = image_scores(lambda part: part.square().mean(1, keepdim=True), images, self.score_share)
        spread = float(distance.double().std(correction=0))
        if not spread > 0:
            return 0.0
        return self.share / len(self.mining.abnormal.files) * float(learned.double().std(correction=0)) / spread


class ThreadsHandler:
    """Train a small discriminator on one CPU thread: its steps take a fraction of a millisecond each.

    Waiting for other threads at every operation gains nothing on an idle machine and costs up to fifty times on a busy
    one. The number of threads is restored when training ends.

    Args:
        discriminator: what is being trained.
        batch_size: normal patches per step.
        limit: multiply-adds per step up to which one thread is used.
    """

    def __init__(self, discriminator: nn.Module, batch_size: int, limit: float = 5e7) -> None:
        weights = sum(p.numel() for p in discriminator.parameters())
        self.one = 2 * batch_size * weights <= limit and next(discriminator.parameters()).device.type == "cpu"
        self.threads = torch.get_num_threads()

    def attach(self, engine: Engine) -> None:
        """Set at the start (attach it after mining), restore at the end."""
        engine.add_event_handler(Events.STARTED, self.set_threads)
        for event in (Events.COMPLETED, Events.EXCEPTION_RAISED):
            engine.add_event_handler(event, self.restore)

    def set_threads(self, engine: Engine) -> None:
        """One thread where that is enough."""
        self.threads = torch.get_num_threads()
        if self.one:
            torch.set_num_threads(1)

    def restore(self, engine: Engine, error: BaseException | None = None) -> None:
        """Back to what it was; an error goes on."""
        torch.set_num_threads(self.threads)
        if error is not None:
            raise error


class ArtefactHandler:
    """When training completes: calibrate on the held-out normals and write the trained model.

    Args:
        folder: of the run.
        mining: holds the banks of held-out normals and few-shot abnormals.
        network: image to patch scores, with the trained discriminator inside.
        false_positive_rate: wanted share of normal images flagged.
        map_sigma: Gaussian of anomaly maps in pixels.
        score_share: see `anomaly_score`.
    """

    def __init__(
        self,
        folder: RunFolder,
        mining: MiningHandler,
        network: WSCXRNet,
        false_positive_rate: float = 0.05,
        map_sigma: float = 4.0,
        score_share: float = 0.0,
    ) -> None:
        if not 0 < false_positive_rate < 1:
            raise InputError(f"false_positive_rate must lie in (0, 1), got {false_positive_rate}")
        if not map_sigma >= 0:
            raise InputError(f"map_sigma must be 0 (no smoothing) or more, got {map_sigma}")
        self.folder, self.mining, self.network = folder, mining, network
        self.false_positive_rate, self.map_sigma = false_positive_rate, map_sigma
        self.score_share = check_score_share(score_share)
        self._began = 0.0

    def attach(self, engine: Engine) -> None:
        """Time the training, write at its end."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.COMPLETED, self)

    def _start(self, engine: Engine) -> None:
        self._began = time.perf_counter()

    def __call__(self, engine: Engine) -> None:
        """Calibrate and write (the first process does)."""
        if not _first_process():
            return
        seconds = {**self.mining.seconds, "training": time.perf_counter() - self._began}
        network = self.network.eval()
        held_out = self._scores(self.mining.held_out, self.score_share)
        calibration = calibrate(
            held_out,
            self._scores(self.mining.abnormal, 0),
            self.false_positive_rate,
            normal_peaks=self._scores(self.mining.held_out, 0),
        )
        done = self.mining.extractor.done
        training = {
            "normal_images": len(self.mining.split.normal),
            "held_out_images": len(self.mining.held_out.files),
            "abnormal_images": count_classes(self.mining.split.abnormal),
            "mined_patches": len(self.mining.mined.bank),
            "rejected": [[code, message] for _, code, message in done.rejected],
            "digests": sorted(self.mining.extractor.digests[f] for f in self._files()),
            "overlap": self.mining.split.findings,
            "seconds": seconds,
        }
        preprocessing = self.mining.extractor.preprocessing
        sha256 = save_model(
            self.folder.path,
            network,
            preprocessing,
            calibration,
            self.map_sigma,
            self.folder.settings,
            training,
            self.score_share,
        )
        logger.info("training: %d epochs, %.1f s", engine.state.epoch, seconds["training"])
        logger.info(
            "threshold %.4f (at most %.1f %% of normal images flagged, from %d held-out normals); model %s in %s",
            *(calibration.threshold, 100 * self.false_positive_rate, len(held_out), sha256[:12], self.folder.path),
        )

    def _scores(self, bank: FeatureBank, share: float) -> list[float]:
        return image_scores(self.network.discriminator, bank.images, share)[:, 0].tolist()  # banks are whitened

    def _files(self) -> list[str]:
        split = self.mining.split
        items = [*split.normal, *split.held_out, *split.abnormal]
        return [str(i["image"]) for i in items if str(i["image"]) in self.mining.extractor.digests]


def _first_process() -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


class ScoresAndLabels:
    """For MONAI's metrics: anomaly scores [B, 1] and labels [B, 1] of one step of the evaluator.

    Args:
        score_share: see `anomaly_score`.
    """

    def __init__(self, score_share: float = 0.0) -> None:
        self.score_share = check_score_share(score_share)

    def __call__(self, output: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Scores and labels."""
        return anomaly_score(output["pred"], self.score_share), output["label"]


class EpochLogHandler:
    """One line per epoch: mean training loss, and how well held-out normals are told from the training abnormals.

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
        """Log this epoch."""
        state = engine.state
        logger.info(
            "epoch %d/%d: loss %.4f%s", state.epoch, state.max_epochs, state.metrics["loss"], self._separation(engine)
        )

    def _separation(self, engine: Engine) -> str:
        if self.validator.state.epoch != engine.state.epoch:  # not validated after this epoch
            return ""
        figure = self.validator.state.metrics["separation_auroc"]
        return f", separation of held-out normals from the training abnormals: AUROC {figure:.4f}"
