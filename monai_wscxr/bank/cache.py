"""The feature cache: patch features on disk, so that no image passes the network twice.

Features lie under `<cache>/features/<fingerprint>/` in shards of whole images. The fingerprint covers everything the features
depend on besides the image: reader, size, normalisation, backbone with its weights and layers, alignment, neighbourhood. An
image is known by the digest of its bytes. Every shard lists its own images and is written under a temporary name first, so a
killed run loses at most one shard and several runs can share the folder. Every image is checked against its checksum when it
is read for the first time (`shard.py`). The cache holds no path and no header of an image, hence nothing about a patient.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monai_wscxr.bank.rows import FileRows
from monai_wscxr.bank.shard import Shard, shard_rows, write_shard
from monai_wscxr.errors import InputError
from monai_wscxr.system.atomic import (
    DamagedError,
    DiskFullError,
    bytes_text,
    full_disk,
    is_disk_full,
    on_disk,
    write_text_atomic,
)
from monai_wscxr.system.cache_folder import cache_root as cache_root

logger = logging.getLogger(__name__)

_FORMAT = "2"
_HEADROOM = 64 << 20  # bytes left free on the disk
_HEADER_BYTES = 200  # of an image in the header of a shard
_ELSEWHERE = "what was written before is kept; make room, or set MONAI_WSCXR_CACHE, and give the same command again"
_ABANDONED_AFTER = 86400  # seconds after which a partial file belongs to a killed run


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Return a hexadecimal fingerprint of JSON-like settings; the order of the keys does not matter."""
    text = json.dumps({"format": _FORMAT, **settings}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


class FeatureCache:
    """Patch features [h*w, C] float32 of images on disk, by the digest of the image file.

    Args:
        settings: everything the features depend on besides the image; their fingerprint names the folder.
        root: cache folder; None takes `cache_root()`.

    Attributes:
        folder: folder of the shards.
        fingerprint: fingerprint of the settings.

    Raises:
        InputError: when the folder cannot be written.
    """

    def __init__(self, settings: Mapping[str, Any], root: str | Path | None = None) -> None:
        self.fingerprint = fingerprint(settings)
        self.folder = Path(root if root is not None else cache_root()) / "features" / self.fingerprint
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text_atomic(self.folder / "settings.json", json.dumps(dict(settings), indent=1, sort_keys=True))
            _remove_abandoned(self.folder)
        except OSError as error:
            if is_disk_full(error):
                raise full_disk(self.folder, 4096, f"the feature cache {self.folder}", _ELSEWHERE) from error
            raise InputError(
                f"the feature cache {self.folder} cannot be written ({error}); "
                "point MONAI_WSCXR_CACHE at a folder that can"
            ) from error
        self._where: dict[str, tuple[Shard, int]] = {}
        self._shards: dict[Path, Shard] = {}
        self._refused: set[Path] = set()  # damaged shards that could not be renamed
        self.refresh()

    def refresh(self) -> None:
        """Open the shards that this process or another one has written in the meantime; put damaged ones aside."""
        for path in sorted(self.folder.glob("*.safetensors")):
            if path not in self._shards and path not in self._refused:
                try:
                    self._add(Shard.open(path))
                except DamagedError as error:
                    self.put_aside(path, error)

    def _add(self, shard: Shard) -> None:
        self._shards[shard.path] = shard
        for position, digest in enumerate(shard.digests):
            self._where.setdefault(digest, (shard, position))

    def put_aside(self, path: Path, why: Exception) -> None:
        """Rename a damaged shard and forget it, so that its images, and no others, are extracted again."""
        logger.warning(
            "the shard %s is damaged (%s); its images will be extracted again, all others are kept", path, why
        )
        aside = path.with_suffix(".damaged")
        if os.path.lexists(aside):
            aside = path.with_name(f"{path.stem}.{uuid.uuid4().hex[:8]}.damaged")
        try:
            path.rename(aside)
        except FileNotFoundError:  # another run has renamed it first
            pass
        except OSError as error:
            logger.warning("the shard %s cannot be renamed (%s); it is left where it is", path, error.strerror)
            self._refused.add(path)
        self._shards.pop(path, None)
        self._where = {}
        for shard in self._shards.values():
            self._add(shard)

    def __contains__(self, digest: str) -> bool:
        return digest in self._where

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._where)

    def read(self, digests: Sequence[str]) -> Tensor:
        """Read the features [n, h*w, C] float32 of the images with these digests, in this order.

        Raises:
            KeyError: when `digests` is empty, an image is not in the cache, or its shard is damaged; the shard is then put
                aside.
        """
        places = self._places(digests)
        out = torch.empty(len(places), *places[0][0].shape[1:], dtype=places[0][0].dtype)
        damaged: dict[Path, DamagedError] = {}
        for row in sorted(range(len(places)), key=lambda i: (places[i][0].path, places[i][1])):
            shard, position = places[row]
            try:
                shard.read(position, out[row])
            except DamagedError as error:
                damaged[shard.path] = error
        self._put_aside_all(damaged)
        return out

    def rows(self, digests: Sequence[str]) -> FileRows:
        """Return the same features as rows [n * h*w, C] that stay in their files; every image is verified first.

        Raises:
            KeyError: as `read`.
        """
        places = self._places(digests)
        damaged: dict[Path, DamagedError] = {}
        for shard, position in sorted(places, key=lambda place: (place[0].path, place[1])):
            if shard.path not in damaged:
                try:
                    shard.verify(position)
                except DamagedError as error:
                    damaged[shard.path] = error
        self._put_aside_all(damaged)
        return shard_rows(places)

    def _places(self, digests: Sequence[str]) -> list[tuple[Shard, int]]:
        """Return shard and position of each image, all with features of one shape and type."""
        if not digests:
            raise KeyError("no digest was given")
        places = [self._where[digest] for digest in digests]
        if len({(shard.shape[1:], shard.dtype) for shard, _ in places}) > 1:
            images: Counter[tuple[tuple[int, ...], torch.dtype]] = Counter()
            for shard in self._shards.values():
                images[shard.shape[1:], shard.dtype] += shard.shape[0]
            ((kind, _),) = images.most_common(1)
            self._put_aside_all(
                {
                    shard.path: DamagedError(
                        f"its features have another shape than most: {shard.shape[1:]} {shard.dtype}"
                    )
                    for shard, _ in places
                    if (shard.shape[1:], shard.dtype) != kind
                }
            )
        return places

    def _put_aside_all(self, damaged: Mapping[Path, DamagedError]) -> None:
        for path, error in damaged.items():
            self.put_aside(path, error)
        if damaged:
            raise KeyError(f"{len(damaged)} shards are damaged")

    def write(self, digests: Sequence[str], features: Tensor) -> None:
        """Add one shard of images.

        Args:
            digests: digests of n images.
            features: [n, h*w, C], in the same order.

        Raises:
            InputError: when it cannot be written; on a full disk the message names the missing bytes.
        """
        path = self.folder / f"{uuid.uuid4().hex}.safetensors"
        try:
            self._add(write_shard(path, digests, features))
        except DiskFullError as error:
            raise self._full(len(digests), features.nbytes // len(digests)) from error
        except OSError as error:
            raise InputError(
                f"a shard of {bytes_text(features.nbytes)} could not be written to {self.folder} ({error}); what was "
                "written before is kept. Make room, or point MONAI_WSCXR_CACHE at another disk, and run again"
            ) from error

    def _full(self, images: int, bytes_per_image: int) -> DiskFullError:
        """Return the error that names the room that is missing for the features of so many images."""
        needed = on_disk(images * (bytes_per_image + _HEADER_BYTES))
        return full_disk(self.folder, needed, f"the features of {images:,} images", _ELSEWHERE)

    def write_all(self, features: Iterable[tuple[str, Tensor]], images: int, shard_images: int) -> None:
        """Add images in shards as they arrive; a full shard is written in a thread while the next one fills.

        When `features` raises, the full shards are kept and the last, incomplete one is lost.

        Args:
            features: digest and features [h*w, C] of each image.
            images: number of images to expect, at most.
            shard_images: number of images per shard, at least 1.

        Raises:
            InputError: as `write`.
        """
        writing: deque[Future[None]] = deque()
        digests: list[str] = []
        buffer = torch.empty(0)
        left = images

        def finish() -> None:
            nonlocal left
            try:
                writing.popleft().result()
            except DiskFullError as error:
                raise self._full(left, buffer[0].nbytes) from error
            left -= shard_images

        with ThreadPoolExecutor(1) as writer:
            for digest, image in features:
                if not digests:
                    buffer = torch.empty(min(shard_images, images), *image.shape)
                buffer[len(digests)] = image
                digests.append(digest)
                if len(digests) == shard_images:
                    writing.append(writer.submit(self.write, digests, buffer))
                    digests = []
                    if len(writing) > 1:
                        finish()
            if digests:
                writing.append(writer.submit(self.write, digests, buffer[: len(digests)]))
            while writing:
                finish()

    def check_space(self, images: int, bytes_per_image: int) -> None:
        """Check before long work that the disk can hold its features.

        Raises:
            InputError: when it cannot; the message names the needed, free and missing bytes.
        """
        needed, free = images * bytes_per_image, shutil.disk_usage(self.folder).free
        if needed + _HEADROOM > free:
            raise InputError(
                f"the features of {images} images need {needed / 1e9:.2f} GB in {self.folder}, but only {free / 1e9:.2f} GB "
                f"are free ({needed + _HEADROOM - free:,} bytes are missing); make room, or point MONAI_WSCXR_CACHE at "
                "another disk"
            )


def _remove_abandoned(folder: Path) -> None:
    """Remove the partial files of runs that were killed more than a day ago."""
    for path in folder.glob(".*.partial"):
        with contextlib.suppress(OSError):  # removed by another process, or a folder
            if time.time() - path.stat().st_mtime > _ABANDONED_AFTER:
                path.unlink()
