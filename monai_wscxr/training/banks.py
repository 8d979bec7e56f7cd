"""The banks of a training: features extracted, abnormal patches mined, statistics fitted, everything whitened.

`prepare_banks` runs without an engine, so the workflow, the label server and cross-validation see the same banks.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from monai_wscxr.bank.cache import fingerprint
from monai_wscxr.bank.feature_bank import BankOnDisk, FeatureBank
from monai_wscxr.data.datalist import Item
from monai_wscxr.data.preprocessing import Preprocessing
from monai_wscxr.data.split import TrainingSplit
from monai_wscxr.data.stream import Rejected
from monai_wscxr.errors import InputError
from monai_wscxr.features.copies import ALTERED, OPACITIES, Alteration, copied_images, copy_features
from monai_wscxr.features.extraction import PatchExtractor
from monai_wscxr.model.chest_check import ChestCheck
from monai_wscxr.model.chest_fit import image_features, measure_chest_check
from monai_wscxr.model.drift import DriftReference
from monai_wscxr.model.mining import Mined, check_scope, mine
from monai_wscxr.model.nuisance import Nuisance, nuisance_of
from monai_wscxr.model.opacity import opacity_changes, opacity_directions
from monai_wscxr.model.regions import REGIONS
from monai_wscxr.model.whitening import NormalWhitening
from monai_wscxr.system.memory import available_memory
from monai_wscxr.system.processes import first_process, from_first, process_count, share, wait_for_all

logger = logging.getLogger("monai_wscxr")

Bank = TypeVar("Bank", bound=FeatureBank | BankOnDisk)


@dataclass(frozen=True)
class BankOptions:
    """How the banks of a training are made.

    Attributes:
        retention: retention rate r in (0, 1]; 1 keeps every abnormal patch. Published: 0.2.
        scope: scope of mining, "all" or "image", see `mine`.
        shrinkage: shrinkage of the covariance of the whitening, > 0.
        copies: altered copies of some normal images; 0 makes none, as published.
        copied_normals: number of images of the normal bank with copies, at least 1; always the same ones, so that runs share
            their features.
        nuisance: weight, in the covariance, of what alterations do to features; >= 0.
        opacities: copies of each of these images with a synthetic opacity in the lungs; 0 makes none, as published.
        bank_memory: bytes for the normal bank. A bank that needs more stays on disk, with the same result. None allows half
            of the memory that is free.

    Raises:
        InputError: on a value outside its range.
    """

    retention: float = 0.2
    scope: str = "all"
    shrinkage: float = 1.0
    copies: int = 0
    copied_normals: int = 200
    nuisance: float = 0.0
    opacities: int = 0
    bank_memory: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.retention <= 1:
            raise InputError(f"the retention rate r must lie in (0, 1] (published: 0.2), got {self.retention}")
        if self.copies < 0 or self.copied_normals < 1 or not (math.isfinite(self.nuisance) and self.nuisance >= 0):
            raise InputError(
                "copies must be 0 (none, as published) or more, copied_normals at least 1 and nuisance at least 0, got "
                f"{self.copies}, {self.copied_normals} and {self.nuisance}"
            )
        if self.opacities < 0:
            raise InputError(f"opacities must be 0 (none, as published) or more, got {self.opacities}")
        check_scope(self.scope)


@dataclass
class TrainingBanks:
    """All that a training knows of its images.

    Attributes:
        normal: normal bank, whitened where features are; in memory or on disk.
        held_out: held-out normal images, whitened likewise.
        abnormal: few-shot abnormal images, whitened likewise; no image in a training on normal images alone.
        mined: result of mining, on features as published; its rows are not whitened.
        mined_rows: [k, C] rows of the mined bank, whitened likewise.
        split: items of the run.
        digests: content digest of every usable file, by path.
        rejected: (file, reason code, message) of images that could not be used.
        preprocessing: from file to network input.
        identity: changes with everything that the features depend on, with the images, their order and their roles.
        seconds: time spent, by stage: "extraction", "mining".
        chest_check: check that an image shows a chest, in the first process; None with too few normals.
        runtime: what executed the network, see `Inference.record`.
        opacity: [C] what synthetic opacities do to whitened features; None without such copies or without whitening.
        opacity_map: [C] direction of opacities for maps, see `opacity_directions`; None likewise.
        drift: reference to notice drift by, in the first process; None with too few normals.
        moved_regions: [m, 6 C] changes of region means by alterations, whitened likewise; None without copies.
    """

    normal: FeatureBank | BankOnDisk
    held_out: FeatureBank
    abnormal: FeatureBank
    mined: Mined
    mined_rows: Tensor
    split: TrainingSplit
    digests: Mapping[str, str]
    rejected: list[Rejected]
    preprocessing: Preprocessing
    identity: str
    seconds: dict[str, float] = field(default_factory=dict)
    chest_check: ChestCheck | None = None
    drift: DriftReference | None = None
    moved_regions: Tensor | None = None
    opacity: Tensor | None = None
    opacity_map: Tensor | None = None
    runtime: Mapping[str, Any] = field(default_factory=dict)

    def release(self) -> None:
        """Drop the normal bank, the largest object in memory, when the training is over."""
        if hasattr(self, "normal"):
            del self.normal


def prepare_banks(
    extractor: PatchExtractor,
    split: TrainingSplit,
    whitening: NormalWhitening | None = None,
    options: BankOptions | None = None,
    device: str | torch.device = "cpu",
    on_mining: Callable[[], None] | None = None,
) -> TrainingBanks:
    """Extract the features of a split, mine the abnormal bank, fit the whitening and whiten all banks.

    Several processes share out the extraction and the search; afterwards each of them holds the same banks.

    Args:
        extractor: patch features of files.
        split: items that train and items that are held out.
        whitening: fitted here to the normal bank; None, or one that is not active, leaves features as they are.
        options: how the banks are made; None takes the defaults of `BankOptions`.
        device: where the banks live while training.
        on_mining: called when all features are known and mining starts.

    Raises:
        InputError: when too many images cannot be used, or memory or disk do not suffice.
    """
    options = options or BankOptions()
    device = torch.device(device)
    extractor.digests.update(split.digests)
    began = time.perf_counter()
    normal, held_out, abnormal = _extract(extractor, split, options.bank_memory)
    nuisance = _nuisance(extractor, normal, whitening, options)
    changes = _opacity_changes(extractor, normal, whitening, options)
    check = drift = None
    if first_process():
        means, means_apart = image_features(normal), image_features(held_out)
        check = measure_chest_check(extractor, normal.files, means, means_apart)
        drift = DriftReference.fit(means, means_apart, _by_class(abnormal, split.abnormal))
    apart, few = held_out.load(), abnormal.load()
    if _fits(extractor, len(split.normal), options.bank_memory):
        normal = normal.load()
    mining_began = time.perf_counter()
    if on_mining is not None:
        on_mining()
    mined = Mined(few, torch.empty(0))
    if not split.normals_only:
        mined = mine(normal.to(device), few.to(device), options.retention, options.scope)
    mined_at = time.perf_counter()
    if whitening is not None:
        covariance = None if nuisance is None else options.nuisance * nuisance.covariance
        _fit_whitening(whitening, normal.to(device), options.shrinkage, covariance)
    for_scores = for_maps = None
    if changes is not None and whitening is not None:
        for_scores, for_maps = opacity_directions(changes, whitening, options.shrinkage)
    cache = None if extractor.cache is None else extractor.cache.folder

    def whitened(bank: Bank, in_place: bool = False) -> Bank:
        """Return a bank on the device, whitened where features are."""
        moved: Bank = bank.to(device)  # type: ignore[assignment]
        if whitening is None or not whitening.active:
            return moved
        return moved.changed(whitening.into, cache, in_place)  # type: ignore[return-value]

    # in place: banks are the largest objects in memory, and nothing needs their rows unwhitened any more
    normal = whitened(normal, in_place=True)
    roles = (split.normal, split.held_out, split.abnormal)
    return TrainingBanks(
        normal=normal,
        held_out=whitened(apart, in_place=True),
        abnormal=whitened(few, in_place=True),
        mined=mined,
        mined_rows=whitened(mined.bank).rows,
        split=split,
        digests=extractor.digests,
        rejected=extractor.done.rejected,
        preprocessing=extractor.preprocessing,
        identity=_identity(extractor, roles),
        seconds={"extraction": mining_began - began, "mining": mined_at - mining_began},
        chest_check=check,
        opacity=for_scores,
        opacity_map=for_maps,
        drift=drift,
        runtime=extractor.network.record(),
        moved_regions=None if nuisance is None else _whitened_changes(nuisance.regions.to(device), whitening),
    )


def _by_class(bank: FeatureBank | BankOnDisk, items: list[Item]) -> list[Tensor]:
    """Return the image features [k, C] of the images of each class of a bank; nothing without images."""
    if not bank.files:
        return []
    classes = {str(item["image"]): str(item["class"]) for item in items}
    features = image_features(bank)
    names = [classes[file] for file in bank.files]
    return [features[[n for n, other in enumerate(names) if other == name]] for name in dict.fromkeys(names)]


def _extract(
    extractor: PatchExtractor, split: TrainingSplit, bank_memory: int | None
) -> tuple[FeatureBank | BankOnDisk, FeatureBank | BankOnDisk, FeatureBank | BankOnDisk]:
    """Extract the banks of normal, held-out and abnormal images, on disk where there is a cache.

    They stay on disk while images pass the network, which needs memory of its own.
    """
    if process_count() > 1:
        _extract_shares(extractor, split)
    _fits(extractor, len(split.normal), bank_memory)  # refuses before the work starts
    extract = extractor.bank if extractor.cache is None else extractor.bank_on_disk
    return (
        extract(split.normal, "normal images"),
        extract(split.held_out, "held-out normal images"),
        _no_images(extractor) if split.normals_only else extract(split.abnormal, "abnormal images"),
    )


def _no_images(extractor: PatchExtractor) -> FeatureBank:
    """Return a bank of no image."""
    patches = extractor.grid[0] * extractor.grid[1]
    return FeatureBank.from_images(torch.empty(0, patches, extractor.features.channels), (), extractor.grid)


def _extract_shares(extractor: PatchExtractor, split: TrainingSplit) -> None:
    """Let every process bring its share of the images into the cache, from which all of them read afterwards."""
    cache = extractor.cache
    if cache is None:
        raise InputError("training with several processes needs the feature cache; leave --cache on")
    items = [*split.normal, *split.held_out, *split.abnormal]
    # the first process decides: another one might already see images that were added in the meantime
    missing = [n for n, item in enumerate(items) if split.digests.get(str(item["image"]), "") not in cache]
    missing = from_first(missing)
    extractor.fill([items[n] for n in share(missing)], total=len(items))
    wait_for_all()
    # `bank` finds these images in the cache and counts them as reused
    extractor.done.extracted, extractor.done.reused = len(missing), -len(missing)


def _fits(extractor: PatchExtractor, images: int, bank_memory: int | None) -> bool:
    """Tell whether the normal bank can be trained on in memory; a search needs as much again, so twice its size counts."""
    allowed = available_memory() // 2 if bank_memory is None else bank_memory
    needed = 2 * extractor.image_bytes * images
    if needed > allowed and extractor.cache is None:
        raise InputError(
            f"training on {images} normal images takes {needed / 1e9:.1f} GB of memory, {allowed / 1e9:.1f} GB are "
            "allowed: leave --cache on, so that the bank can stay on disk"
        )
    return needed <= allowed


def _nuisance(
    extractor: PatchExtractor,
    normal: FeatureBank | BankOnDisk,
    whitening: NormalWhitening | None,
    options: BankOptions,
) -> Nuisance | None:
    """Measure what alterations do to features; several processes share out the copies that are not cached yet."""
    if not (options.copies and whitening is not None and whitening.active):
        return None
    _share_copies(extractor, normal, ALTERED, options.copied_normals, options.copies)
    return nuisance_of(extractor, normal, options.copied_normals, options.copies)


def _opacity_changes(
    extractor: PatchExtractor,
    normal: FeatureBank | BankOnDisk,
    whitening: NormalWhitening | None,
    options: BankOptions,
) -> Tensor | None:
    """Measure what synthetic opacities do to features; several processes share out the copies that are not cached yet."""
    if not (options.opacities and whitening is not None and whitening.active):
        return None
    _share_copies(extractor, normal, OPACITIES, options.copied_normals, options.opacities)
    return opacity_changes(extractor, normal, options.copied_normals, options.opacities)


def _share_copies(
    extractor: PatchExtractor, normal: FeatureBank | BankOnDisk, alteration: Alteration, count: int, copies: int
) -> None:
    """Let every process bring its share of the copies into the cache; nothing to do for a single one."""
    if process_count() > 1:
        chosen = copied_images(extractor, normal.files, count)
        if files := share([normal.files[n] for n in chosen]):
            copy_features(extractor, files, alteration, copies)
        wait_for_all()


def _whitened_changes(changes: Tensor, whitening: NormalWhitening | None) -> Tensor:
    """Return changes [m, 6 C] of region means in the coordinates of whitened features."""
    if whitening is None or not whitening.active:
        return changes
    return (changes.unflatten(1, (REGIONS, -1)) @ whitening.matrix).flatten(1)


def _fit_whitening(
    whitening: NormalWhitening, normal: FeatureBank | BankOnDisk, shrinkage: float, nuisance: Tensor | None
) -> None:
    """Fit the whitening in the first process and hand it to all."""
    if first_process():
        whitening.fit(normal.rows, shrinkage, nuisance)
    whitening.load_state_dict(from_first({k: v.cpu() for k, v in whitening.state_dict().items()}))


def _identity(extractor: PatchExtractor, roles: tuple[list[Item], ...]) -> str:
    """Compute a fingerprint of the features' settings and of the images by role, in order."""
    digests = [[extractor.digests.get(str(item["image"])) for item in items] for items in roles]
    return fingerprint({"features": extractor.settings(), "images": digests})
