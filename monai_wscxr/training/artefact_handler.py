"""What happens when training completes: calibration on the held-out normals, and the trained model on disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from torch import Tensor

from monai_wscxr.data.split import count_classes
from monai_wscxr.errors import InputError
from monai_wscxr.model.artefact import save_model
from monai_wscxr.model.calibration import Calibration, calibrate
from monai_wscxr.model.local_map import LocalMap
from monai_wscxr.model.networks import WSCXRNet, patch_maps
from monai_wscxr.model.predictions import map_peaks
from monai_wscxr.model.scores import anomaly_score, check_score_share
from monai_wscxr.system.processes import first_process
from monai_wscxr.training.banks import TrainingBanks
from monai_wscxr.training.mining_handler import banks_of
from monai_wscxr.training.run_folder import RunFolder

logger = logging.getLogger("monai_wscxr")


class ArtefactHandler:
    """When training completes, calibrate on the held-out normals and write the trained model (`write_model`).

    Attach it after `MiningHandler`.

    Args:
        folder: output folder of the run.
        network: image to patch scores, with the trained discriminator inside.
        false_positive_rate: wanted share of normal images flagged, in (0, 1).
        map_sigma: Gaussian of anomaly maps in pixels, >= 0.
        score_share: see `anomaly_score`.
        local_map: whether anomaly maps are relative to held-out normals at the same place (`LocalMap`) instead of patch scores,
            as published.

    Raises:
        InputError: on a value outside its range.
    """

    def __init__(
        self,
        folder: RunFolder,
        network: WSCXRNet,
        false_positive_rate: float = 0.05,
        map_sigma: float = 4.0,
        score_share: float = 0.0,
        local_map: bool = False,
    ) -> None:
        check_calibration_options(false_positive_rate, map_sigma)
        self.folder, self.network = folder, network
        self.false_positive_rate, self.map_sigma = false_positive_rate, map_sigma
        self.score_share, self.local_map = check_score_share(score_share), bool(local_map)
        self._began = 0.0

    def attach(self, engine: Engine) -> None:
        """Time the training, write the model at its end."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.COMPLETED, self)

    def _start(self, engine: Engine) -> None:
        self._began = time.perf_counter()

    def __call__(self, engine: Engine) -> None:
        """Calibrate and write; the first of several processes does."""
        if not first_process():
            return
        seconds = time.perf_counter() - self._began
        calibration, sha256 = write_model(
            self.folder.path,
            self.network.eval(),
            banks_of(engine),
            self.folder.settings,
            self.false_positive_rate,
            self.map_sigma,
            self.score_share,
            {"training": seconds},
            self.local_map,
        )
        self.folder.finish()
        logger.info("training: %d epochs, %.1f s", engine.state.epoch, seconds)
        logger.info(
            "threshold %.4f (%s); model %s in %s",
            *(calibration.threshold, calibration.rate_text, sha256[:12], self.folder.path),
        )


def check_calibration_options(false_positive_rate: float, map_sigma: float) -> None:
    """Check the options of calibration and anomaly maps.

    Raises:
        InputError: when the rate lies outside (0, 1) or `map_sigma` is negative.
    """
    if not 0 < false_positive_rate < 1:
        raise InputError(f"false_positive_rate must lie in (0, 1), got {false_positive_rate}")
    if not map_sigma >= 0:
        raise InputError(f"map_sigma must be 0 (no smoothing) or more, got {map_sigma}")


def write_model(
    folder: Path,
    network: WSCXRNet,
    banks: TrainingBanks,
    settings: Mapping[str, Any],
    false_positive_rate: float,
    map_sigma: float,
    score_share: float,
    seconds: Mapping[str, float],
    local_map: bool = False,
) -> tuple[Calibration, str]:
    """Calibrate a trained network on the held-out normals and write it with the record of its training.

    Args:
        folder: where `model.pt` and `artefact.json` go.
        network: trained, in evaluation mode.
        banks: of the training.
        settings: options of the run, JSON-like.
        false_positive_rate, map_sigma, score_share, local_map: see `ArtefactHandler`.
        seconds: time of further stages, by name, for the record.

    Returns:
        calibration and hash of the weights.
    """

    def peaks(patch_scores: Tensor) -> list[float]:
        return map_peaks(patch_scores, banks.preprocessing.image_size, map_sigma, places)

    apart = patch_maps(network.discriminator, banks.held_out)
    few = None if banks.split.normals_only else patch_maps(network.discriminator, banks.abnormal)
    places = LocalMap.measure(apart) if local_map else None
    calibration = calibrate(
        anomaly_score(apart, score_share)[:, 0].tolist(),
        [] if few is None else peaks(few),
        false_positive_rate,
        normal_peaks=peaks(apart),
    )
    split = banks.split
    used = [str(item["image"]) for item in [*split.normal, *split.held_out, *split.abnormal]]
    record = {
        "normal_images": len(split.normal),
        "held_out_images": len(banks.held_out.files),
        "abnormal_images": count_classes(split.abnormal),
        "mined_patches": len(banks.mined.bank),
        "rejected": [[code, message] for _, code, message in banks.rejected],
        "digests": sorted(banks.digests[file] for file in used if file in banks.digests),
        "overlap": split.findings,
        "runtime": dict(banks.runtime),
        "seconds": {**banks.seconds, **seconds},
    }
    sha256 = save_model(
        folder,
        network,
        banks.preprocessing,
        calibration,
        map_sigma,
        settings,
        record,
        score_share,
        banks.chest_check,
        places,
        banks.drift,
    )
    return calibration, sha256
