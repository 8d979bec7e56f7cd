"""From files to feature banks: read, preprocess, run the frozen network once per image, remember."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from monai_wscxr.backbones import weights_hash
from monai_wscxr.bank import FeatureBank
from monai_wscxr.data.radiograph import file_digest
from monai_wscxr.data.stream import RadiographStream, Rejected, ahead
from monai_wscxr.errors import InputError
from monai_wscxr.features import PatchFeatures
from monai_wscxr.parallel import ThreadParallel
from monai_wscxr.store import FeatureStore
from monai_wscxr.transforms import Preprocessing, radiograph_transforms

logger = logging.getLogger(__name__)


@dataclass
class Extraction:
    """What became of the images that were asked for.

    Attributes:
        extracted: images that went through the network.
        reused: images whose features were in the store.
        rejected: (file, reason code, message) of images that could not be used.
        seconds: time spent.
    """

    extracted: int = 0
    reused: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    seconds: float = 0.0


class PatchExtractor:
    """Patch features of image files, from the store where they are known, through the network where not.

    Args:
        features: the patch feature network; it is moved to `device`.
        preprocessing: from file to network input.
        device: "cpu" or "cuda".
        cache: cache folder, None for the default one, or False to keep nothing on disk.
        batch_size: images per pass of the network.
        max_bad_share: largest share of unusable images with which the run goes on, in [0, 1].
        progress: show a progress bar.
        read_threads: threads that decode ahead of the network.
        shard_images: images per shard in the store.
        allow: gates of the loader that stay open (see `radiograph_gates`).
    """

    def __init__(
        self,
        features: PatchFeatures,
        preprocessing: Preprocessing,
        device: str | torch.device = "cpu",
        cache: str | Path | bool | None = None,
        batch_size: int = 16,
        max_bad_share: float = 0.05,
        progress: bool = True,
        read_threads: int = 2,
        shard_images: int = 256,
        allow: Collection[str] = (),
    ) -> None:
        if not 0 <= max_bad_share <= 1:
            raise InputError(f"max_bad_share must lie in [0, 1], got {max_bad_share}")
        if min(batch_size, read_threads, shard_images) < 1:
            raise InputError("batch_size, read_threads and shard_images must be at least 1")
        self.features = features.to(device).eval()
        self.network = ThreadParallel(self.features)
        self.device = torch.device(device)
        self.preprocessing = preprocessing
        self.transform = radiograph_transforms(preprocessing, allow=allow)
        self.allow = sorted(allow)
        self.grid = features.grid(preprocessing.image_size)
        self.batch_size, self.max_bad_share, self.progress = batch_size, max_bad_share, progress
        self.read_threads, self.shard_images = read_threads, shard_images
        self.digests: dict[str, str] = {}
        self._stamps: dict[str, tuple[int, int]] = {}
        self.done = Extraction()
        self.store = None if cache is False else FeatureStore(self.settings(), None if cache is True else cache)

    def settings(self) -> dict[str, Any]:
        """Everything the features depend on besides the image."""
        backbone = self.features.backbone
        # what a gate would have refused must not come back from the cache of a run that let it pass
        return {
            **({"allow": self.allow} if self.allow else {}),
            "preprocessing": self.preprocessing.to_dict(),
            "backbone": backbone.name,
            "backbone_sha256": weights_hash(backbone),
            "layers": backbone.layers,
            "neighbourhood": self.features.neighbourhood,
            "align_to": self.features.align_to,
            "aligned_channels": self.features.aligned_channels,
        }

    def bank(self, items: Sequence[dict[str, Any]], what: str = "images") -> FeatureBank:
        """Patch features of the items' images, in order; unusable images are left out and listed in `done.rejected`.

        Args:
            items: datalist items; `image` is the path.
            what: name for the progress bar and messages.

        Raises:
            InputError: when more than the allowed share of the images is unusable, none is left, the disk is too small,
                or the network gives NaN.
        """
        used, features, rejected = self.usable([str(item["image"]) for item in items], what)
        if not used:
            raise InputError(f"none of the {len(items)} {what} can be used; first: {_first(rejected)}")
        return FeatureBank.from_images(features, used, self.grid)

    def usable(self, files: Sequence[str], what: str = "images") -> tuple[list[str], Tensor, list[Rejected]]:
        """Of these files, those that can be used, their patch features [n, h*w, C] in that order, and the others.

        Raises:
            InputError: as `bank`, except that no usable file is no error here.
        """
        began = time.perf_counter()
        rejected: list[Rejected] = []
        found: dict[str, Tensor] = {}
        readable = self._digest(files, rejected)
        store = self.store
        if store is not None:
            store.refresh()
        known = {f for f in readable if store is not None and self.digests[f] in store}
        missing = [f for f in readable if f not in known]
        if missing and store is not None:
            store.check_space(len(missing), 4 * self.grid[0] * self.grid[1] * self.features.channels)
        pending: list[tuple[str, Tensor]] = []
        with tqdm(
            total=len(missing), desc=f"{what}: features", unit="image", disable=not (self.progress and missing)
        ) as bar:
            for batch in self._batches(missing, rejected, len(files), bar.update):
                pending += batch
                if len(pending) >= self.shard_images:
                    self._keep(pending, found)
                    pending = []
        self._keep(pending, found)
        refused = {f for f, _, _ in rejected}
        used = [f for f in files if f not in refused]
        self._check_share(rejected, len(files), what)
        features = torch.empty(0, self.grid[0] * self.grid[1], self.features.channels)
        stored = [f for f in used if f not in found]
        if stored:
            assert store is not None
            rows = store.read([self.digests[f] for f in stored])
            if not found:
                features = rows
            else:
                found.update(zip(stored, rows, strict=True))
        if found:
            features = torch.stack([found[f] for f in used])
        self.done.extracted += len(missing) - len([f for f in missing if f in refused])
        self.done.reused += len(known)
        self.done.rejected += rejected
        self.done.seconds += time.perf_counter() - began
        return used, features, rejected

    def passed(self, files: Sequence[str]) -> tuple[Tensor, list[Rejected]]:
        """Features [n, h*w, C] of the usable ones of a few files, and the others; nothing is kept or looked up."""
        rejected: list[Rejected] = []
        found = [phi for batch in self._batches(list(files), rejected, len(files), lambda n: None) for _, phi in batch]
        empty = torch.empty(0, self.grid[0] * self.grid[1], self.features.channels)
        return torch.stack(found) if found else empty, rejected

    def digest(self, file: str) -> str:
        """Content digest of a file, computed once for as long as it does not change; OSError when it cannot be read."""
        stat = os.stat(file)
        stamp = stat.st_mtime_ns, stat.st_size
        if file not in self.digests or self._stamps.get(file, stamp) != stamp:
            self.digests[file] = file_digest(file)
        self._stamps[file] = stamp
        return self.digests[file]

    def _digest(self, files: Sequence[str], rejected: list[Rejected]) -> list[str]:
        """Fill `digests`; return the files that could be read at all."""

        def digest(file: str) -> str | OSError:
            try:
                return self.digest(file)
            except OSError as error:
                return error

        readable = []
        for file, result in zip(files, ahead(digest, files, self.read_threads, 256), strict=True):
            if isinstance(result, OSError):
                code = "not_found" if isinstance(result, FileNotFoundError) else "unreadable"
                rejected.append((file, code, f"{file}: {result.strerror}"))
            else:
                self.digests[file] = result
                readable.append(file)
        return readable

    def _batches(
        self, files: list[str], rejected: list[Rejected], total: int, advance: Callable[[int], Any]
    ) -> Iterator[list[tuple[str, Tensor]]]:
        """Run the network; yields lists of (file, features [h*w, C])."""
        stream = RadiographStream([{"image": f} for f in files], self.transform, self.read_threads, 2 * self.batch_size)
        names: list[str] = []
        inputs: list[Tensor] = []
        for item in stream:
            self._check_share(rejected + stream.rejected, total, "images")
            names.append(item["file"])
            inputs.append(item["image"])
            if len(names) == self.batch_size:
                yield self._forward(names, inputs)
                advance(len(names))
                names, inputs = [], []
        if names:
            yield self._forward(names, inputs)
            advance(len(names))
        rejected += stream.rejected

    def _forward(self, names: list[str], inputs: list[Tensor]) -> list[tuple[str, Tensor]]:
        image = torch.stack(inputs).to(self.device)
        with torch.inference_mode():
            phi = self.network(image).float().permute(0, 2, 3, 1).flatten(1, 2).cpu()  # [B, h*w, C]
        if not bool(torch.isfinite(phi).all()):
            raise InputError(
                f"{self.features.backbone.name} gives NaN or Inf for {names[0]} or one of the {len(names) - 1} images "
                "read with it; the weights are damaged or belong to another network"
            )
        return list(zip(names, phi.clone(), strict=True))

    def _keep(self, pending: list[tuple[str, Tensor]], found: dict[str, Tensor]) -> None:
        if not pending:
            return
        if self.store is None:
            found.update(pending)
        else:
            self.store.write([self.digests[f] for f, _ in pending], torch.stack([phi for _, phi in pending]))

    def _check_share(self, rejected: list[Rejected], total: int, what: str) -> None:
        if len(rejected) > self.max_bad_share * total:
            raise InputError(
                f"{len(rejected)} of {total} {what} cannot be used, more than the allowed share of {self.max_bad_share:.0%}; "
                f"first: {_first(rejected)}. Mend or remove them, or allow more with --max_bad_share"
            )


def _first(rejected: list[Rejected]) -> str:
    return rejected[0][2] if rejected else "(none was given)"


def progress_bar(total: int, what: str, shown: bool = True) -> tqdm:
    """A bar over images; in a log file it writes a line every 15 seconds instead of redrawing."""
    return tqdm(
        total=total, desc=what, unit="image", disable=not shown, mininterval=0.1 if sys.stderr.isatty() else 15.0
    )
