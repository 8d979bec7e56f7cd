"""Extract the patch features of image files: each image passes the frozen network once, its features are kept on disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from monai_wscxr.bank.cache import FeatureCache
from monai_wscxr.bank.feature_bank import BankOnDisk, FeatureBank
from monai_wscxr.bank.rows import FileRows
from monai_wscxr.data.isolation import Isolation, crash_of, decode
from monai_wscxr.data.preprocessing import Preprocessing, RadiographLoader
from monai_wscxr.data.stream import RadiographStream, Rejected
from monai_wscxr.errors import InputError
from monai_wscxr.features.backbones import weights_hash
from monai_wscxr.features.digests import FileDigests
from monai_wscxr.features.inference import Inference
from monai_wscxr.features.patches import PatchFeatures
from monai_wscxr.features.running import NetworkRunner
from monai_wscxr.system.progress import ahead, progress_bar

logger = logging.getLogger(__name__)

_ATTEMPTS = 3  # passes over a cache in which damaged shards are found
T = TypeVar("T")


@dataclass
class Extraction:
    """Counts of an extractor's work so far.

    Attributes:
        extracted: number of images that passed the network.
        reused: number of images whose features were in the cache.
        rejected: (file, reason code, message) of images that cannot be used.
        seconds: time spent.
    """

    extracted: int = 0
    reused: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    seconds: float = 0.0


class PatchExtractor:
    """Patch features of image files: from the cache where they are known, from the network otherwise.

    Decoding, network and writing overlap. On a CPU the features of an image do not depend on the other images, see
    `NetworkRunner`.

    Args:
        features: patch feature network; it is moved to `device`.
        preprocessing: steps from file to network input.
        device: "cpu" or "cuda".
        cache: cache folder; None or True for the default one, False to keep nothing on disk.
        batch_size: images per pass of the network on a GPU.
        max_bad_share: largest share of unusable images that is tolerated, in [0, 1].
        progress: show a progress bar.
        read_threads: number of threads that decode ahead of the network.
        shard_images: number of images per shard of the cache.
        allow: names of the reader's gates that are switched off, see `data.radiograph.gates`.
        precision: "float32", or "bfloat16" for backbones that tolerate it, see `Inference`.
        compile_network: compile the network with torch.compile.
        runtime: library that executes the network, see `Inference`.
        read_workers: number of processes that decode in place of threads, with limits on memory and time; 0 for none. Without
            them, files on which a decoder may crash are first tried in such a process, see `data.isolation`.

    Attributes:
        cache: the feature cache, or None.
        done: counts of the work so far.
        grid: patch rows and columns (h, w) of one image.
        runner: runs the network over loaded images.
        trusted: whether `transform` may be given any file, because it decodes in other processes.

    Raises:
        InputError: when a number is out of its range, the cache cannot be written, or as `Inference`.
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
        precision: str = "float32",
        compile_network: bool = False,
        read_workers: int = 0,
        runtime: str = "torch",
    ) -> None:
        if not 0 <= max_bad_share <= 1:
            raise InputError(f"max_bad_share must lie in [0, 1], got {max_bad_share}")
        if min(batch_size, read_threads, shard_images) < 1:
            raise InputError("batch_size, read_threads and shard_images must be at least 1")
        if read_workers < 0:
            raise InputError(f"read_workers must be 0 or more, got {read_workers}")
        self.features = features.to(device).eval()
        root = None if cache is None or isinstance(cache, bool) else cache
        self.network = Inference(self.features, precision, compile_network, runtime, preprocessing.image_size, root)
        self.runner = NetworkRunner(self._patch_rows, device, batch_size, features.backbone.name)
        self.preprocessing = preprocessing
        self.transform: Callable[[dict[str, Any]], dict[str, Any]] = RadiographLoader(preprocessing, allow=allow)
        self.allow = sorted(allow)
        self.precision = precision
        self.grid = features.grid(preprocessing.image_size)
        self.max_bad_share, self.progress, self.shard_images = max_bad_share, progress, shard_images
        self.read_threads, self.read_workers = read_threads, read_workers
        self.trusted = read_workers > 0
        self.done = Extraction()
        self.cache = None if cache is False else FeatureCache(self.settings(), None if cache is True else cache)
        self._files = FileDigests()

    def settings(self) -> dict[str, Any]:
        """Return everything that the features depend on besides the image, as JSON-like values."""
        backbone = self.features.backbone
        # an image that a gate refuses must not come back from the cache of a run in which the gate was off
        return {
            **({"allow": self.allow} if self.allow else {}),
            "preprocessing": self.preprocessing.to_dict(),
            "backbone": backbone.name,
            "backbone_sha256": weights_hash(backbone),
            "layers": backbone.layers,
            "neighbourhood": self.features.neighbourhood,
            "align_to": self.features.align_to,
            "aligned_channels": self.features.aligned_channels,
            "inference": self.network.settings(),
        }

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return self.runner.device

    @property
    def batch_size(self) -> int:
        """Images per pass of the network on a GPU."""
        return self.runner.batch_size

    @property
    def image_bytes(self) -> int:
        """Bytes of the features of one image."""
        return 4 * self.grid[0] * self.grid[1] * self.features.channels

    @property
    def digests(self) -> dict[str, str]:
        """Content digest of every file seen, by path; digests that are known already may be added."""
        return self._files.known

    def digest(self, file: str) -> str:
        """Return the content digest of a file, computed once for as long as the file does not change.

        Raises:
            OSError: when the file cannot be read.
        """
        return self._files.of(file)

    def run(self, loaded: Iterable[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], Tensor]]:
        """Yield every loaded item with its features [h*w, C], in order; nothing is cached. See `NetworkRunner.run`."""
        return self.runner.run(loaded)

    def bank(self, items: Sequence[dict[str, Any]], what: str = "images") -> FeatureBank:
        """Return the patch features of the items' images, in order; unusable images are left out, see `done.rejected`.

        Args:
            items: data list items; `image` is the path.
            what: plural noun for the images, in the progress bar and messages.

        Raises:
            InputError: when a larger share of the images than `max_bad_share` is unusable, no usable image is left, the disk
                has too little space, or the network gives NaN.
        """
        used, features, rejected = self.usable(_paths(items), what)
        if not used:
            raise none_usable(len(items), what, rejected)
        return FeatureBank.from_images(features, used, self.grid)

    def bank_on_disk(self, items: Sequence[dict[str, Any]], what: str = "images") -> BankOnDisk:
        """Return the same as `bank`, with the rows left in the cache.

        Raises:
            InputError: as `bank`; or without a cache.
        """
        if self.cache is None:
            raise InputError("a bank on disk needs the feature cache: leave --cache on")
        used, rows, rejected = self._collect(_paths(items), what, self._rows_on_disk)
        if rows is None:
            raise none_usable(len(items), what, rejected)
        return BankOnDisk(rows, tuple(used), self.grid)

    def usable(
        self, files: Sequence[str], what: str = "images", of: int | None = None
    ) -> tuple[list[str], Tensor, list[Rejected]]:
        """Return the usable files, their patch features [n, h*w, C] in the same order, and the rejected files.

        Args:
            files: paths.
            what: plural noun for the images, in the progress bar and messages.
            of: number of images of a whole that comes in parts; `max_bad_share` then refers to it and to all that have been
                rejected since the extractor was made.

        Raises:
            InputError: as `bank`, except that there need not be a usable file.
        """
        return self._collect(files, what, self._features_in_memory, of)

    def passed(self, files: Sequence[str]) -> tuple[Tensor, list[Rejected]]:
        """Return the features [n, h*w, C] of the usable ones of a few files, and the rejected files, without the cache."""
        rejected: list[Rejected] = []
        found = [rows for _, rows in self._features(files, rejected, len(files))]
        return torch.stack(found) if found else self._no_features(), rejected

    def fill(self, items: Sequence[dict[str, Any]], total: int) -> None:
        """Bring the features of images into the cache: the part of one process where several share the work.

        Unusable images are left out; `bank` tries them again and lists them.

        Args:
            items: data list items; images whose features are in the cache are skipped.
            total: number of images of all processes, which the share of unusable ones refers to.

        Raises:
            InputError: as `bank`; or without a cache.
        """
        if self.cache is None:
            raise InputError("features cannot be shared between processes without the feature cache; leave --cache on")
        readable, rejected = self._files.read(_paths(items), self.read_threads)
        self._extract(self._missing(readable, rejected), rejected, total, "images of this process", {})

    def _collect(
        self,
        files: Sequence[str],
        what: str,
        get: Callable[[list[str], dict[str, Tensor]], T],
        of: int | None = None,
    ) -> tuple[list[str], T, list[Rejected]]:
        """Extract the features that are missing and return the usable files, their features, and the rejected files.

        Args:
            files: paths.
            what: plural noun for the images, in messages.
            get: returns the features of images, given their digests and, without a cache, the features by digest. It raises
                KeyError when the cache has lost some of them to damage; these are extracted again.
            of: see `usable`.
        """
        total, before = (len(files), ()) if of is None else (of, tuple(self.done.rejected))
        began = time.perf_counter()
        found: dict[str, Tensor] = {}  # by digest; stays empty with a cache
        readable, unreadable = self._files.read(files, self.read_threads)
        rejected = [*before, *unreadable]
        extracted: set[str] = set()
        for _ in range(_ATTEMPTS):
            if self.cache is not None:
                self.cache.refresh()
            missing = [file for file in self._missing(readable, rejected) if self.digests[file] not in found]
            self._extract(missing, rejected, total, what, found)
            extracted.update(missing)
            _reject_copies(readable, self.digests, rejected)
            self._check_share(rejected, total, what)
            refused = {file for file, _, _ in rejected}
            used = [file for file in files if file not in refused]
            try:
                result = get([self.digests[file] for file in used], found)
                break
            except KeyError:
                logger.info("extracting the images of damaged shards again")
        else:
            assert self.cache is not None
            raise InputError(
                f"features in {self.cache.folder} are damaged again and again; check the disk, or point "
                "MONAI_WSCXR_CACHE at another one"
            )
        self.done.extracted += len(extracted - refused)
        self.done.reused += len([file for file in used if file not in extracted])
        new = rejected[len(before) :]
        self.done.rejected += new
        self.done.seconds += time.perf_counter() - began
        return used, result, new

    def _missing(self, readable: Sequence[str], rejected: Sequence[Rejected]) -> list[str]:
        """Return the files whose features are not in the cache, one of each content, without the rejected ones."""
        refused = {file for file, _, _ in rejected}
        first: dict[str, str] = {}
        for file in readable:
            digest = self.digests[file]
            if file not in refused and (self.cache is None or digest not in self.cache):
                first.setdefault(digest, file)
        return list(first.values())

    def _features_in_memory(self, digests: list[str], found: dict[str, Tensor]) -> Tensor:
        if not digests:
            return self._no_features()
        return torch.stack([found[digest] for digest in digests]) if self.cache is None else self.cache.read(digests)

    def _no_features(self) -> Tensor:
        return torch.empty(0, self.grid[0] * self.grid[1], self.features.channels)

    def _rows_on_disk(self, digests: list[str], found: dict[str, Tensor]) -> FileRows | None:
        assert self.cache is not None
        return self.cache.rows(digests) if digests else None

    def _extract(
        self, files: Sequence[str], rejected: list[Rejected], total: int, what: str, found: dict[str, Tensor]
    ) -> None:
        """Run files through the network and put their features into the cache, or into `found` without one."""
        files = self._without_crashes(files, rejected)
        if not files:
            return
        if self.cache is not None:
            self.cache.check_space(len(files), self.image_bytes)
        with progress_bar(len(files), f"{what}: features", self.progress) as bar:

            def features() -> Iterator[tuple[str, Tensor]]:
                for file, rows in self._features(files, rejected, total):
                    bar.update()
                    yield self.digests[file], rows

            if self.cache is None:
                found.update(features())
            else:
                self.cache.write_all(features(), len(files), self.shard_images)

    def _without_crashes(self, files: Sequence[str], rejected: list[Rejected]) -> list[str]:
        """Return the files that this process can decode, and add those on which a decoder crashes to the rejected."""
        if self.trusted:
            return list(files)
        kept = []
        with Isolation(decode, self.read_threads) as isolation:
            for file, error in zip(
                files,
                ahead(lambda file: crash_of(self.digests[file], file, isolation), files, self.read_threads, 8),
                strict=True,
            ):
                if error is None:
                    kept.append(file)
                else:
                    rejected.append((file, error.code, error.message))
        return kept

    def _features(self, files: Sequence[str], rejected: list[Rejected], total: int) -> Iterator[tuple[str, Tensor]]:
        """Decode files and run the network; yield (file, features [h*w, C]) in order and extend `rejected` at the end."""
        items = [{"image": file} for file in files]
        stream = RadiographStream(items, self.transform, self.read_threads, self.runner.read_ahead, self.read_workers)

        def loaded() -> Iterator[dict[str, Any]]:
            for item in stream:
                self._check_share([*rejected, *stream.rejected], total, "images")
                yield item

        for item, rows in self.run(loaded()):
            yield item["file"], rows
        rejected += stream.rejected

    def _patch_rows(self, image: Tensor) -> Tensor:
        """Return the patch features [B, h*w, C] of images [B, 3, H, W]."""
        return self.network(image).permute(0, 2, 3, 1).flatten(1, 2)

    def _check_share(self, rejected: Sequence[Rejected], total: int, what: str) -> None:
        if len(rejected) > self.max_bad_share * total:
            raise InputError(
                f"{len(rejected)} of {total} {what} cannot be used, more than the allowed share of {self.max_bad_share:.0%}; "
                f"first: {_first(rejected)}. Repair or remove them, or raise --max_bad_share"
            )


def _paths(items: Sequence[dict[str, Any]]) -> list[str]:
    return [str(item["image"]) for item in items]


def _reject_copies(files: Sequence[str], digests: dict[str, str], rejected: list[Rejected]) -> None:
    """Reject the copies of rejected files, which were not read themselves, for the same reason."""
    refused = {file for file, _, _ in rejected}
    reasons = {digests[file]: (code, message) for file, code, message in rejected if file in digests}
    rejected += [(file, *reasons[digests[file]]) for file in files if file not in refused and digests[file] in reasons]


def none_usable(count: int, what: str, rejected: Sequence[Rejected]) -> InputError:
    """Return the error for images of which not one can be used."""
    return InputError(f"none of the {count} {what} can be used; first: {_first(rejected)}")


def _first(rejected: Sequence[Rejected]) -> str:
    """Return the first rejected file with its reason, for a message."""
    if not rejected:
        return "(none was given)"
    file, _, message = rejected[0]
    return f"{file}: {message.rstrip('.')}"
