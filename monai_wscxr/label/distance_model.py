"""The model for the time before the first abnormal label: the score of a patch is its distance to the normal images."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_wscxr.data.datalist import Item
from monai_wscxr.data.selection import check_overlap, hold_out
from monai_wscxr.features.extraction import PatchExtractor
from monai_wscxr.model.artefact import save_model
from monai_wscxr.model.calibration import calibrate
from monai_wscxr.model.chest_check import image_features, measure_chest_check
from monai_wscxr.model.drift import DriftReference
from monai_wscxr.model.local_map import LocalMap
from monai_wscxr.model.networks import Discriminator, WSCXRNet, anomaly_score, patch_maps
from monai_wscxr.model.predictor import map_peaks
from monai_wscxr.model.whitening import NormalWhitening

OPTIONS = ("settings", "holdout", "shrinkage", "false_positive_rate", "map_sigma", "local_map")

_SCORE_SHARE = 0.25  # a distance has no sign, so the mean over all patches would drown a lesion


def train_distance_model(
    folder: Path, normal: Sequence[Item], extractor: PatchExtractor, options: Mapping[str, Any], seed: int
) -> None:
    """Fit, calibrate and write a model that needs normal images only.

    A patch's score is the squared length of its feature after whitening with the statistics of the normal images, divided by
    the number of channels. The whitening is always on here. In all else it is a model as any other, with held-out normals.

    Args:
        folder: receives the model; must not exist yet.
        normal: datalist items of normal images.
        extractor: patch features of files.
        options: evaluated options of `train.yaml`, by the names in `OPTIONS`.
        seed: seed of the choice of held-out images.

    Raises:
        InputError: when there are fewer than two usable normal images of different patients.
    """
    began = time.perf_counter()
    rest, held_out = hold_out(normal, options["holdout"], seed)
    check_overlap(rest + held_out, [], digests=extractor.digests)
    network = _distance_network(extractor)
    bank = extractor.bank(rest, "normal images")
    network.whitening.fit(bank.rows.to(extractor.device), options["shrinkage"])
    apart = extractor.bank(held_out, "held-out normal images").to(extractor.device)
    means, means_apart = image_features(bank), image_features(apart)
    check = measure_chest_check(extractor, bank.files, means, means_apart)
    drift = DriftReference.fit(means, means_apart)
    apart.rows.copy_(network.whitening(apart.rows))
    share = _SCORE_SHARE
    scores = patch_maps(network.discriminator, apart)
    places = LocalMap.measure(scores) if options["local_map"] else None
    calibration = calibrate(
        anomaly_score(scores, share)[:, 0].tolist(),
        (),
        options["false_positive_rate"],
        normal_peaks=map_peaks(scores, extractor.preprocessing.image_size, options["map_sigma"], places),
    )
    record = {
        "normal_images": len(bank.files),
        "held_out_images": len(apart.files),
        "abnormal_images": {},
        "digests": sorted(extractor.digests[file] for file in (*bank.files, *apart.files)),
        "seconds": {"training": time.perf_counter() - began},
    }
    folder.mkdir()
    save_model(
        folder,
        network,
        extractor.preprocessing,
        calibration,
        options["map_sigma"],
        options["settings"],
        record,
        share,
        check,
        places,
        drift,
    )


def _distance_network(extractor: PatchExtractor) -> WSCXRNet:
    """Build a network whose discriminator adds nothing to the distance."""
    features = extractor.features
    discriminator = Discriminator(features.channels, bias=False, zero_start=True)
    discriminator.distance_weight.fill_(1.0)
    network = WSCXRNet(features, discriminator, NormalWhitening(features.channels))
    return network.to(extractor.device).eval()
