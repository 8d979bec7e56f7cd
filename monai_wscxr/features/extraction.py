"""From files to feature banks: read, preprocess, run the frozen network once per image, remember."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from monai_wscxr.bank.cache import FeatureCache
from monai_wscxr.bank.feature_bank import BankOnDisk, FeatureBank
from monai_wscxr.bank.rows import FileRows
from monai_wscxr.data.radiograph.read import file_digest
from monai_wscxr.data.stream import RadiographStream, Rejected
from monai_wscxr.data.transforms import Preprocessing, radiograph_transforms
from monai_wscxr.errors import InputError
from monai_wscxr.features.backbones import weights_hash
from monai_wscxr.features.inference import Inference
from monai_wscxr.features.patches import PatchFeatures
from monai_wscxr.system.heap import reused
from monai_wscxr.system.progress import ahead

logger = logging.getLogger(__name__)

_ATTEMPTS = 3  # at a cache whose shards turn out to be damaged
T = TypeVar("T")


@dataclass
class Extraction:
    """What became of the images that were asked for.

    Attributes:
        extracted: images that went through the network.
        reused: images whose features were in the cache.
        rejected: (file, reason code, message) of images that could not be used.
        seconds: time spent.
    """

    extracted: int = 0
    reused: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    seconds: float = 0.0


class PatchExtractor:
    """Patch features of image files, from the cache where they are known, through the network where not.

    Decoding, network and writing overlap. On a CPU every image passes the network alone, several side by side, so its
    features do not depend on what else is extracted.

    Args:
        features: the patch feature network; it is moved to `device`.
        preprocessing: from file to network input.
        device: "cpu" or "cuda".
        cache: cache folder, None for the default one, or False to keep nothing on disk.
        batch_size: images per pass of the network on a GPU.
        max_bad_share: largest share of unusable images with which the run goes on, in [0, 1].
        progress: show a progress bar.
        read_threads: threads that decode ahead of the network.
        read_workers: processes that decode in place of threads; 0 for none. For decoders that hold Python's lock for long,
            on machines with cores to spare.
        shard_images: images per shard in the cache.
        allow: gates of the loader that stay open (see `radiograph_gates`).
        precision: "float32", or "bfloat16" for backbones that bear it (see `Inference`).
        compile_network: compile the network with torch.compile.
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
    ) -> None:
        if not 0 <= max_bad_share <= 1:
            raise InputError(f"max_bad_share must lie in [0, 1], got {max_bad_share}")
        if min(batch_size, read_threads, shard_images) < 1:
            raise InputError("batch_size, read_threads and shard_images must be at least 1")
        if read_workers < 0:
            raise InputError(f"read_workers must be 0 or more, got {read_workers}")
        self.features = features.to(device).eval()
        self.network = Inference(self.features, precision, compile_network)
        self.device = torch.device(device)
        self.preprocessing = preprocessing
        self.transform = radiograph_transforms(preprocessing, allow=allow)
        self.allow = sorted(allow)
        self.grid = features.grid(preprocessing.image_size)
        self.batch_size, self.max_bad_share, self.progress = batch_size, max_bad_share, progress
        self.read_threads, self.read_workers, self.shard_images = read_threads, read_workers, shard_images
        self.precision = precision
        self.digests: dict[str, str] = {}
        self._stamps: dict[str, tuple[int, int]] = {}
        self.done = Extraction()
        self.cache = None if cache is False else FeatureCache(self.settings(), None if cache is True else cache)

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
            "inference": {
                "precision": self.precision,
                "folded": self.network.folded,
                "compiled": self.network.compiled,
            },
        }

    @property
    def image_bytes(self) -> int:
        """Bytes of the features of one image."""
        return 4 * self.grid[0] * self.grid[1] * self.features.channels

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
        return self._collect(files, what, self._features_of)

    def passed(self, files: Sequence[str]) -> tuple[Tensor, list[Rejected]]:
        """Features [n, h*w, C] of the usable ones of a few files, and the others; nothing is kept or looked up."""
        rejected: list[Rejected] = []
        found = [phi for _, phi in self._features(list(files), rejected, len(files))]
        return torch.stack(found) if found else self._none(), rejected

    def bank_on_disk(self, items: Sequence[dict[str, Any]], what: str = "images") -> BankOnDisk:
        """`bank` whose rows stay in the cache.

        Raises:
            InputError: as `bank`; or when nothing is kept on disk.
        """
        if self.cache is None:
            raise InputError("a bank on disk needs the feature cache: leave --cache on")
        used, rows, rejected = self._collect([str(item["image"]) for item in items], what, self._rows_of)
        if rows is None:
            raise InputError(f"none of the {len(items)} {what} can be used; first: {_first(rejected)}")
        return BankOnDisk(rows, tuple(used), self.grid)

    def _collect(
        self,
        files: Sequence[str],
        what: str,
        get: Callable[[list[str], dict[str, Tensor]], T],
    ) -> tuple[list[str], T, list[Rejected]]:
        """The usable files, what `get` makes of their digests and of the features that are not in the cache, the others."""
        began = time.perf_counter()
        rejected: list[Rejected] = []
        found: dict[str, Tensor] = {}  # by digest; stays empty where there is a cache
        readable = self._digest(files, rejected)
        extracted: set[str] = set()
        for _ in range(_ATTEMPTS):
            if self.cache is not None:
                self.cache.refresh()
            refused = {file for file, _, _ in rejected}
            first: dict[str, str] = {}  # copies pass the network once
            for file in readable:
                if file not in refused and not (self.cache is not None and self.digests[file] in self.cache):
                    first.setdefault(self.digests[file], file)
            missing = [file for digest, file in first.items() if digest not in found]
            self._extract(missing, rejected, len(files), what, found)
            extracted.update(missing)
            _reject_copies(readable, self.digests, rejected)
            self._check_share(len(rejected), rejected, len(files), what)
            refused = {file for file, _, _ in rejected}
            used = [file for file in files if file not in refused]
            try:
                result = get([self.digests[file] for file in used], found)
                break
            except KeyError:  # a shard turned out to be damaged and was put aside; its images are missing now
                logger.info("extracting the images of damaged shards again")
        else:
            assert self.cache is not None
            raise InputError(
                f"features in {self.cache.folder} are damaged again and again; check the disk, or point "
                "MONAI_WSCXR_CACHE at another one"
            )
        self.done.extracted += len(extracted - refused)
        self.done.reused += len([file for file in used if file not in extracted])
        self.done.rejected += rejected
        self.done.seconds += time.perf_counter() - began
        return used, result, rejected

    def _features_of(self, digests: list[str], found: dict[str, Tensor]) -> Tensor:
        if not digests:
            return self._none()
        return torch.stack([found[digest] for digest in digests]) if self.cache is None else self.cache.read(digests)

    def _none(self) -> Tensor:
        return torch.empty(0, self.grid[0] * self.grid[1], self.features.channels)

    def _rows_of(self, digests: list[str], found: dict[str, Tensor]) -> FileRows | None:
        assert self.cache is not None
        return self.cache.rows(digests) if digests else None

    def fill(self, items: Sequence[dict[str, Any]], total: int) -> None:
        """Bring the features of images into the cache: one process's share of the work of several.

        Unusable images are left out; `bank` tries them again and lists them.

        Args:
            items: datalist items; those that the cache knows are passed over.
            total: number of images of which these are a share, for the allowed share of unusable ones.

        Raises:
            InputError: as `bank`, or when there is no cache.
        """
        if self.cache is None:
            raise InputError("features cannot be shared between processes without the feature cache; leave --cache on")
        rejected: list[Rejected] = []
        readable = self._digest([str(item["image"]) for item in items], rejected)
        first = {self.digests[file]: file for file in reversed(readable) if self.digests[file] not in self.cache}
        self._extract(list(first.values())[::-1], rejected, total, "this share", {})

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
                rejected.append((file, code, f"it cannot be read ({result.strerror})"))
            else:
                self.digests[file] = result
                readable.append(file)
        return readable

    def _extract(
        self, files: list[str], rejected: list[Rejected], total: int, what: str, found: dict[str, Tensor]
    ) -> None:
        """Run files through the network into the cache, shard by shard, or into `found`."""
        if not files:
            return
        cache = self.cache
        if cache is not None:
            cache.check_space(len(files), self.image_bytes)
        pending: list[str] = []
        buffer = torch.empty(0)
        writing: deque[Future[None]] = deque()
        bar = tqdm(total=len(files), desc=f"{what}: features", unit="image", disable=not self.progress)
        with bar, ThreadPoolExecutor(1) as writer:
            for file, phi in self._features(files, rejected, total):
                bar.update()
                if cache is None:
                    found[self.digests[file]] = phi
                    continue
                if not pending:
                    buffer = torch.empty(min(self.shard_images, len(files)), *phi.shape)
                buffer[len(pending)] = phi
                pending.append(self.digests[file])
                if len(pending) == self.shard_images:
                    writing.append(writer.submit(cache.write, pending, buffer))
                    pending = []
                    if len(writing) > 1:
                        writing.popleft().result()
            if cache is not None and pending:
                writing.append(writer.submit(cache.write, pending, buffer[: len(pending)]))
            for future in writing:
                future.result()

    def _features(self, files: list[str], rejected: list[Rejected], total: int) -> Iterator[tuple[str, Tensor]]:
        """Decode and run the network; yields (file, features [h*w, C]) in order."""
        items = [{"image": f} for f in files]
        stream = RadiographStream(items, self.transform, self.read_threads, self.read_ahead, self.read_workers)

        def loaded() -> Iterator[dict[str, Any]]:
            for item in stream:
                self._check_share(len(rejected) + len(stream.rejected), rejected + stream.rejected, total, "images")
                yield item

        for item, rows in self.run(loaded()):
            yield item["file"], rows
        rejected += stream.rejected

    @property
    def read_ahead(self) -> int:
        """Images decoded ahead of the network."""
        return 2 * (torch.get_num_threads() if self.device.type == "cpu" else self.batch_size)

    def run(self, loaded: Iterable[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], Tensor]]:
        """Every loaded item with its features [h*w, C], in order, while later ones pass the network.

        Raises:
            InputError: when the network gives NaN.
        """
        on_cpu = self.device.type == "cpu"
        threads = torch.get_num_threads()
        batches = batched(loaded, 1 if on_cpu else self.batch_size)
        # threads that wait for each other inside operations lose more than they gain: each computes alone
        with reused():
            for results in ahead(self._forward, batches, threads if on_cpu else 1, 2 * threads if on_cpu else 2):
                yield from results

    def _forward(self, batch: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], Tensor]]:
        image = torch.stack([item["image"] for item in batch]).to(self.device)
        if self.device.type == "cpu":
            image = image.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            phi = self.network(image).permute(0, 2, 3, 1).flatten(1, 2).cpu()  # [B, h*w, C]
        if not bool(torch.isfinite(phi).all()):
            raise InputError(
                f"{self.features.backbone.name} gives NaN or Inf for {batch[0]['file']} or one of the {len(batch) - 1} images "
                "read with it; the weights are damaged or belong to another network"
            )
        return list(zip(batch, phi.clone(), strict=True))

    def _check_share(self, count: int, rejected: list[Rejected], total: int, what: str) -> None:
        if count > self.max_bad_share * total:
            raise InputError(
                f"{count} of {total} {what} cannot be used, more than the allowed share of {self.max_bad_share:.0%}; "
                f"first: {_first(rejected)}. Mend or remove them, or allow more with --max_bad_share"
            )


def _reject_copies(files: list[str], digests: dict[str, str], rejected: list[Rejected]) -> None:
    """Reject the copies of unusable files, which were not read themselves."""
    known = {file for file, _, _ in rejected}
    reasons = {digests[file]: (code, message) for file, code, message in rejected if file in digests}
    for file in files:
        if file not in known and digests[file] in reasons:
            rejected.append((file, *reasons[digests[file]]))


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` consecutive items; the last one may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _first(rejected: list[Rejected]) -> str:
    return f"{rejected[0][0]}: {rejected[0][2]}" if rejected else "(none was given)"
