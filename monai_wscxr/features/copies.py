"""Patch features of altered copies of whole radiographs, cached like those of the originals."""

from __future__ import annotations

import hashlib
import random
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from monai_wscxr.bank.cache import FeatureCache
from monai_wscxr.data.opacities import with_opacity
from monai_wscxr.data.perturbation import altered
from monai_wscxr.data.preprocessing import RadiographLoader
from monai_wscxr.data.stream import RadiographStream
from monai_wscxr.errors import InputError
from monai_wscxr.features.extraction import PatchExtractor
from monai_wscxr.system.progress import progress_bar


@dataclass(frozen=True)
class Alteration:
    """A random change of radiographs.

    Attributes:
        name: part of the cache's fingerprint and of every seed.
        version: part of the cache's fingerprint; to be raised when `change` changes.
        change: takes a radiograph [1, S, S] in [0, 1] and a seed, and returns a radiograph of the same shape and range.
    """

    name: str
    version: int
    change: Callable[[Tensor, int], Tensor]


ALTERED = Alteration("altered", 2, lambda image, seed: altered(image, random.Random(seed)))
OPACITIES = Alteration("opacities", 1, lambda image, seed: with_opacity(image, random.Random(seed)))


def copy_features(
    extractor: PatchExtractor, files: Sequence[str], alteration: Alteration, copies: int, pooled: bool = False
) -> Tensor:
    """Return the patch features of altered copies of images.

    Copy c of an image depends on the bytes of the image, the alteration and c alone, so all runs and seeds share it.

    Args:
        extractor: extractor that has already read the files; its network, preprocessing and cache are used.
        files: paths of n images.
        alteration: change of the resized radiograph, before its intensity is standardised.
        copies: number of copies per image, >= 1.
        pooled: keep only the mean over the patches of each copy.

    Returns:
        [n * copies, h*w, C], or [n * copies, 1, C] when pooled; the copies of an image follow each other.

    Raises:
        InputError: when a file that could be read before cannot be read now, the disk has too little space, or the network
            gives NaN.
    """
    cache = None
    if extractor.cache is not None:
        settings = {**extractor.settings(), "alteration": [alteration.name, alteration.version], "pooled": pooled}
        cache = FeatureCache(settings, extractor.cache.folder.parents[1])
    wanted = [(file, f"{extractor.digests[file]}:{copy}") for file in files for copy in range(copies)]
    missing = [(file, key) for file, key in wanted if cache is None or key not in cache]
    found: dict[str, Tensor] = {}
    if missing:
        if cache is not None:
            patches = 1 if pooled else extractor.grid[0] * extractor.grid[1]
            cache.check_space(len(missing), 4 * patches * extractor.features.channels)
        with progress_bar(len(missing), f"{alteration.name} copies", extractor.progress) as bar:
            features = _extract(missing, alteration, extractor, pooled, bar.update)
            if cache is None:
                found.update(features)
            else:
                cache.write_all(features, len(missing), extractor.shard_images)
    keys = [key for _, key in wanted]
    return torch.stack([found[key] for key in keys]) if cache is None else cache.read(keys)


T = TypeVar("T")
_kept: weakref.WeakKeyDictionary[PatchExtractor, dict[str, tuple[Any, Any]]] = weakref.WeakKeyDictionary()


def kept(extractor: PatchExtractor, what: str, key: Any, make: Callable[[], T]) -> T:
    """Return what `make` returns, or what it returned when this was last asked of the extractor with the same key.

    A label server trains again and again on nearly the same normals, whose copies then tell the same.

    Args:
        extractor: it keeps the latest result for each `what`.
        what: name of the result.
        key: everything that the result depends on besides the extractor's settings.
        make: makes the result, which must not be changed afterwards.
    """
    results = _kept.setdefault(extractor, {})
    if what not in results or results[what][0] != key:
        results.pop(what, None)  # frees its memory first
        results[what] = key, make()
    found: T = results[what][1]
    return found


def copied_images(extractor: PatchExtractor, files: Sequence[str], count: int) -> list[int]:
    """Choose the images that are copied: the numbers of those with the smallest digests.

    Runs with other splits of the same images choose mostly the same ones, and so share their copies.
    """
    return sorted(range(len(files)), key=lambda n: extractor.digests[files[n]])[:count]


def _extract(
    wanted: Sequence[tuple[str, str]],
    alteration: Alteration,
    extractor: PatchExtractor,
    pooled: bool,
    advance: Callable[[], Any],
) -> Iterator[tuple[str, Tensor]]:
    """Yield the key and features of each wanted (file, key) in order."""

    def alter(item: dict[str, Any]) -> dict[str, Any]:
        seed = _seed(f"{alteration.name}:{item['key']}")
        return {**item, "image": alteration.change(torch.from_numpy(item["image"]), seed).numpy()}

    load = RadiographLoader(extractor.preprocessing, allow=extractor.allow, after_resize=[alter])
    items = [{"image": file, "key": key} for file, key in wanted]
    stream = RadiographStream(items, load, extractor.read_threads, extractor.runner.read_ahead)
    for item, rows in extractor.run(stream):
        advance()
        yield item["key"], rows.mean(dim=0, keepdim=True) if pooled else rows
    if stream.rejected:
        raise InputError(f"{stream.rejected[0][0]} could be read before and cannot be read now; check the disk")


def _seed(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")
