"""Patch features of altered copies of images, through the cache: what training and CutPaste make of whole radiographs."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from monai_wscxr.bank.cache import FeatureCache
from monai_wscxr.data.perturbation import altered
from monai_wscxr.data.stream import RadiographStream
from monai_wscxr.data.transforms import radiograph_transforms
from monai_wscxr.errors import InputError
from monai_wscxr.features.extraction import PatchExtractor
from monai_wscxr.system.progress import progress_bar


@dataclass(frozen=True)
class Alteration:
    """A random change of radiographs.

    Attributes:
        name: part of the cache's fingerprint and of every seed.
        version: to be raised when `change` changes; part of the cache's fingerprint.
        change: radiograph [1, S, S] in [0, 1] and a seed to the same shape and range.
    """

    name: str
    version: int
    change: Callable[[Tensor, int], Tensor]


ALTERED = Alteration("altered", 2, lambda image, seed: altered(image, random.Random(seed)))


def copy_features(
    extractor: PatchExtractor, files: Sequence[str], alteration: Alteration, copies: int, pooled: bool = False
) -> Tensor:
    """Features of altered copies [len(files) * copies, h*w, C], the copies of a file one after another.

    Copy c of an image depends on the image's bytes, the alteration and c alone, so every run and seed shares it.

    Args:
        extractor: has seen the files; its network, preprocessing and cache are used.
        files: images.
        alteration: of the resized radiograph, before its intensity is standardised.
        copies: per image, >= 1.
        pooled: keep the mean over the patches only, [len(files) * copies, 1, C].

    Raises:
        InputError: when a file that could be read before cannot be read now, or the network gives NaN.
    """
    cache = None
    if extractor.cache is not None:
        settings = {**extractor.settings(), "alteration": [alteration.name, alteration.version], "pooled": pooled}
        cache = FeatureCache(settings, extractor.cache.folder.parents[1])
    wanted = [(file, f"{extractor.digests[file]}:{copy}") for file in files for copy in range(copies)]
    missing = [(file, key) for file, key in wanted if cache is None or key not in cache]
    if missing and cache is not None:
        patches = 1 if pooled else extractor.grid[0] * extractor.grid[1]
        cache.check_space(len(missing), 4 * patches * extractor.features.channels)
    found: dict[str, Tensor] = {}
    with progress_bar(len(missing), f"{alteration.name} copies", extractor.progress and bool(missing)) as bar:
        size = extractor.shard_images
        for start in range(0, len(missing), size):
            part = missing[start : start + size]
            features = _extract(part, alteration, extractor, pooled, bar.update)
            keys = [key for _, key in part]
            if cache is None:
                found.update(zip(keys, features, strict=True))
            else:
                cache.write(keys, features)
    keys = [key for _, key in wanted]
    return torch.stack([found[key] for key in keys]) if cache is None else cache.read(keys)


def copied_images(extractor: PatchExtractor, files: Sequence[str], count: int) -> list[int]:
    """Which of the files are copied: those with the smallest digests, so that runs with other splits share most."""
    return sorted(range(len(files)), key=lambda n: extractor.digests[files[n]])[:count]


def _extract(
    wanted: Sequence[tuple[str, str]],
    alteration: Alteration,
    extractor: PatchExtractor,
    pooled: bool,
    advance: Callable[[], Any],
) -> Tensor:
    def alter(item: dict[str, Any]) -> dict[str, Any]:
        return {**item, "image": alteration.change(item["image"], _seed(f"{alteration.name}:{item['key']}"))}

    load = radiograph_transforms(extractor.preprocessing, allow=extractor.allow, after_resize=[alter])
    items = [{"image": file, "key": key} for file, key in wanted]
    stream = RadiographStream(items, load, extractor.read_threads, extractor.read_ahead)
    features: list[Tensor] = []
    for _, rows in extractor.run(stream):
        features.append(rows.mean(dim=0, keepdim=True) if pooled else rows)
        advance()
    if stream.rejected:
        raise InputError(f"{stream.rejected[0][0]} could be read before and cannot be read now; check the disk")
    return torch.stack(features)


def _seed(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")
