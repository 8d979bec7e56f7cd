"""The disk cache of patch features, so that no image passes the network twice.

Features lie under `<cache>/features/<fingerprint>/` in shards of whole images; the fingerprint covers everything that
makes them (reading chain, size, normalisation, backbone, its weights, layers, alignment, neighbourhood), the key of an
image is the digest of its bytes. Shards are written to a temporary name and renamed, and every shard lists its own
images, so a killed run loses at most one shard and two runs can share the folder. What is read for the first time is
checked against its checksum (`shard.py`). Nothing of a patient is stored: no path, no header.
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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import platformdirs
import torch
from torch import Tensor

from monai_wscxr.bank.rows import FileRows
from monai_wscxr.bank.shard import Shard, shard_rows, write_shard
from monai_wscxr.errors import InputError
from monai_wscxr.system.atomic import DamagedError, write_text_atomic

logger = logging.getLogger(__name__)

_FORMAT = "2"
_HEADROOM = 64 << 20  # bytes left free on the disk


def cache_root() -> Path:
    """`$MONAI_WSCXR_CACHE`, or the platform's user cache folder."""
    chosen = os.environ.get("MONAI_WSCXR_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("monai_wscxr"))


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Hex fingerprint of JSON-like settings, the same whatever the order of the keys."""
    text = json.dumps({"format": _FORMAT, **settings}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


class FeatureCache:
    """Patch features [h*w, C] float32 of images, by the digest of the image file.

    Args:
        settings: everything the features depend on; its fingerprint names the folder.
        root: cache folder; None takes `cache_root()`.
    """

    def __init__(self, settings: Mapping[str, Any], root: str | Path | None = None) -> None:
        self.fingerprint = fingerprint(settings)
        self.folder = Path(root if root is not None else cache_root()) / "features" / self.fingerprint
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text_atomic(self.folder / "settings.json", json.dumps(dict(settings), indent=1, sort_keys=True))
            _remove_leftovers(self.folder)
        except OSError as error:
            raise InputError(
                f"the feature cache {self.folder} cannot be written ({error}); "
                "point MONAI_WSCXR_CACHE at a folder that can"
            ) from error
        self._where: dict[str, tuple[Shard, int]] = {}
        self._shards: dict[Path, Shard] = {}
        self.refresh()

    def refresh(self) -> None:
        """Take in shards that were written since, by this process or another."""
        for path in sorted(self.folder.glob("*.safetensors")):
            if path not in self._shards:
                try:
                    self._add(Shard.open(path))
                except DamagedError as error:
                    self.put_aside(path, error)

    def _add(self, shard: Shard) -> None:
        self._shards[shard.path] = shard
        for position, digest in enumerate(shard.digests):
            self._where.setdefault(digest, (shard, position))

    def put_aside(self, path: Path, why: Exception) -> None:
        """Forget a damaged shard and rename it, so that its images, and no others, are extracted again."""
        logger.warning("the shard %s is damaged (%s); its images will be extracted again, others are kept", path, why)
        with contextlib.suppress(FileNotFoundError):  # another run was faster
            path.rename(path.with_suffix(".damaged"))
        self._shards.pop(path, None)
        self._where = {}
        for shard in self._shards.values():
            self._add(shard)

    def __contains__(self, digest: str) -> bool:
        return digest in self._where

    def __len__(self) -> int:
        return len(self._where)

    def read(self, digests: Sequence[str]) -> Tensor:
        """Features [n, h*w, C] float32 of the images with these digests, in this order.

        Raises:
            KeyError: when one is not in the store, or was in a shard that turned out to be damaged and is put aside now.
        """
        places = [self._where[digest] for digest in digests]
        if not places:
            raise KeyError("no digest was asked for")
        out = torch.empty(len(places), *places[0][0].shape[1:], dtype=places[0][0].dtype)
        damaged: dict[Path, DamagedError] = {}
        for row in sorted(range(len(places)), key=lambda i: (places[i][0].path, places[i][1])):
            shard, position = places[row]
            try:
                shard.read(position, out[row])
            except DamagedError as error:
                damaged[shard.path] = error
        self._check(damaged)
        return out

    def rows(self, digests: Sequence[str]) -> FileRows:
        """The same as rows [n * h*w, C] that stay in their files; every image is verified first.

        Raises:
            KeyError: as `read`.
        """
        places = [self._where[digest] for digest in digests]
        if not places:
            raise KeyError("no digest was asked for")
        damaged: dict[Path, DamagedError] = {}
        for shard, position in sorted(places, key=lambda place: (place[0].path, place[1])):
            if shard.path not in damaged:
                try:
                    shard.verify(position)
                except DamagedError as error:
                    damaged[shard.path] = error
        self._check(damaged)
        return shard_rows(places)

    def _check(self, damaged: Mapping[Path, DamagedError]) -> None:
        for path, error in damaged.items():
            self.put_aside(path, error)
        if damaged:
            raise KeyError(f"{len(damaged)} shards are damaged")

    def write(self, digests: Sequence[str], features: Tensor) -> None:
        """Add one shard of images; `features` [n, h*w, C] in the order of `digests`.

        Raises:
            InputError: when it cannot be written; says how many bytes are missing on a full disk.
        """
        path = self.folder / f"{uuid.uuid4().hex}.safetensors"
        try:
            self._add(write_shard(path, digests, features))
        except OSError as error:
            raise InputError(
                f"a shard of {features.nbytes / 1e6:.0f} MB could not be written to {self.folder} ({error}); what was "
                "written before is kept. Make room, or point MONAI_WSCXR_CACHE at another disk, and run again"
            ) from error

    def check_space(self, images: int, bytes_per_image: int) -> None:
        """Refuse before long work starts when the disk cannot hold the features.

        Raises:
            InputError: with the bytes needed and free.
        """
        needed, free = images * bytes_per_image, shutil.disk_usage(self.folder).free
        if needed + _HEADROOM > free:
            raise InputError(
                f"the features of {images} images need {needed / 1e9:.2f} GB in {self.folder}, but only {free / 1e9:.2f} GB "
                f"are free ({needed + _HEADROOM - free:,} bytes are missing); make room, or point MONAI_WSCXR_CACHE at "
                "another disk"
            )


def _remove_leftovers(folder: Path) -> None:
    """Partial files of runs that were killed more than a day ago."""
    for path in folder.glob(".*.partial"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > 86400:
                path.unlink()
