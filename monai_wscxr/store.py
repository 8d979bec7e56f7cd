"""The disk cache of patch features, so that no image passes the network twice.

Features lie under `<cache>/features/<fingerprint>/` in shards of whole images; the fingerprint covers everything that
makes them (reading chain, size, normalisation, backbone, its weights, layers, alignment, neighbourhood), the key of an
image is the digest of its bytes. Shards are written to a temporary name and renamed, and every shard lists its own
images, so a killed run loses at most one shard and two runs can share the folder. Nothing of a patient is stored:
no path, no header.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import platformdirs
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from monai_wscxr.errors import InputError

logger = logging.getLogger(__name__)

_FORMAT = "1"
_HEADROOM = 64 << 20  # bytes left free on the disk


def cache_root() -> Path:
    """`$MONAI_WSCXR_CACHE`, or the platform's user cache folder."""
    chosen = os.environ.get("MONAI_WSCXR_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("monai_wscxr"))


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Hex fingerprint of JSON-like settings, the same whatever the order of the keys."""
    text = json.dumps({"format": _FORMAT, **settings}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


class FeatureStore:
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
        except OSError as error:
            raise InputError(
                f"the feature cache {self.folder} cannot be written ({error}); "
                "point MONAI_WSCXR_CACHE at a folder that can"
            ) from error
        self._where: dict[str, tuple[Path, int]] = {}
        self._known_shards: set[Path] = set()
        self._mapped: dict[Path, Tensor] = {}
        self.refresh()

    def refresh(self) -> None:
        """Take in shards that were written since, by this process or another."""
        for path in sorted(self.folder.glob("*.safetensors")):
            if path in self._known_shards:
                continue
            try:
                with safe_open(path, framework="pt") as shard:
                    digests = json.loads(shard.metadata()["digests"])
            except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
                logger.warning("the cached shard %s is damaged (%s); its images will be extracted again", path, error)
                with contextlib.suppress(FileNotFoundError):  # another run was faster
                    path.rename(path.with_suffix(".damaged"))
                continue
            self._known_shards.add(path)
            for position, digest in enumerate(digests):
                self._where.setdefault(digest, (path, position))

    def __contains__(self, digest: str) -> bool:
        return digest in self._where

    def __len__(self) -> int:
        return len(self._where)

    def read(self, digests: Sequence[str]) -> Tensor:
        """Features [n, h*w, C] float32 of the images with these digests, in this order.

        Raises:
            KeyError: when one is not in the store.
        """
        by_shard: dict[Path, list[tuple[int, int]]] = {}
        for row, digest in enumerate(digests):
            path, position = self._where[digest]
            by_shard.setdefault(path, []).append((row, position))
        out: Tensor | None = None
        for path, places in by_shard.items():
            features = self._features(path)
            if out is None:
                out = features.new_empty((len(digests), *features.shape[1:]))
            rows, positions = (torch.tensor(column) for column in zip(*places, strict=True))
            out[rows] = features[positions]
        if out is None:
            raise KeyError("no digest was asked for")
        return out

    def _features(self, path: Path) -> Tensor:
        """Features of a shard, mapped from its file: read when touched, and again and again without opening it anew."""
        if path not in self._mapped:
            with safe_open(path, framework="pt") as shard:
                self._mapped[path] = shard.get_tensor("features")
        return self._mapped[path]

    def write(self, digests: Sequence[str], features: Tensor) -> None:
        """Add one shard of images; `features` [n, h*w, C] in the order of `digests`."""
        path = self.folder / f"{uuid.uuid4().hex}.safetensors"
        temporary = path.with_suffix(".partial")
        try:
            save_file({"features": features.contiguous()}, temporary, {"digests": json.dumps(list(digests))})
            _sync(temporary)
            os.replace(temporary, path)
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"a shard of {features.numel() * 4 / 1e6:.0f} MB could not be written to {self.folder} ({error}); what was "
                "written before is kept. Make room, or point MONAI_WSCXR_CACHE at another disk, and run again"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)
        self._known_shards.add(path)
        for position, digest in enumerate(digests):
            self._where.setdefault(digest, (path, position))

    def check_space(self, images: int, bytes_per_image: int) -> None:
        """Refuse before long work starts when the disk cannot hold the features.

        Raises:
            InputError: with the bytes needed and free.
        """
        needed, free = images * bytes_per_image, shutil.disk_usage(self.folder).free
        if needed + _HEADROOM > free:
            raise InputError(
                f"the features of {images} images need {needed / 1e9:.2f} GB in {self.folder}, but only {free / 1e9:.2f} GB "
                "are free; make room, or point MONAI_WSCXR_CACHE at another disk"
            )


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` to write to; it takes that name when all went well and vanishes otherwise."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomic(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old one or the new one, never a part."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_torch_atomic(path: Path, value: Any) -> None:
    """`torch.save` with the same promise."""
    with replacing(path) as temporary:
        torch.save(value, temporary)


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
