"""What happens when training completes: calibration on the held-out normals, and the trained model on disk."""

from __future__ import annotations

import logging
import time

from ignite.engine import Engine, Events

from monai_wscxr.bank.feature_bank import FeatureBank
from monai_wscxr.data.split import count_classes
from monai_wscxr.errors import InputError
from monai_wscxr.model.artefact import save_model
from monai_wscxr.model.calibration import calibrate
from monai_wscxr.model.networks import WSCXRNet, check_score_share, image_scores
from monai_wscxr.system.processes import first_process
from monai_wscxr.training.mining_handler import MiningHandler
from monai_wscxr.training.run_folder import RunFolder

logger = logging.getLogger("monai_wscxr")


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
        if not first_process():
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
        self.folder.finish()
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
