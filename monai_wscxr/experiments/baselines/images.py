"""Parts of the methods that learn from grey images in place of features: reading, protocol, run as a bundle workflow."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from monai_wscxr.data.datalist import Item
from monai_wscxr.data.isolation import may_crash
from monai_wscxr.data.preprocessing import Preprocessing, RadiographLoader
from monai_wscxr.data.stream import RadiographStream, Rejected
from monai_wscxr.errors import InputError
from monai_wscxr.experiments.baselines.common import Learned, MethodSplit, Scored, write_results
from monai_wscxr.model.calibration import calibrate
from monai_wscxr.system.progress import progress_bar
from monai_wscxr.training.run_folder import RunFolder

_READ_AHEAD = 32  # files


@dataclass(frozen=True)
class GreyImages:
    """Grey images of one size in memory.

    Attributes:
        files: their paths, n.
        pixels: [n, 1, S, S] uint8.
    """

    files: list[str]
    pixels: Tensor

    def __len__(self) -> int:
        return len(self.files)

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        return self.pixels.shape[-1]

    def floats(self, index: Tensor | slice = slice(None)) -> Tensor:
        """Return images [B, 1, S, S] as float32 in [0, 1].

        Args:
            index: of the images; all by default.
        """
        return self.pixels[index].float().div_(255)

    def of(self, files: Collection[str]) -> GreyImages:
        """Return the images of some files, in this order."""
        chosen = [number for number, file in enumerate(self.files) if file in files]
        return GreyImages([self.files[number] for number in chosen], self.pixels[chosen])

    def with_images(self, others: GreyImages) -> GreyImages:
        """Return these images and then others."""
        return GreyImages([*self.files, *others.files], torch.cat([self.pixels, others.pixels]))

    @property
    def digest(self) -> str:
        """Digest of all pixels in their order, by which a training knows its images again."""
        return hashlib.blake2b(self.pixels.contiguous().numpy().data, digest_size=16).hexdigest()


class ImageReader:
    """Reader of grey images: read as for WSCXR, resized to squares (bilinear, anti-aliased), kept as 8 bits.

    Args:
        size: side of the images in pixels, 32 to 4096.
        intensity: "as_read", as the compared methods publish it, or "standardised", see `Preprocessing`.
        allow: gates of the loader that are not applied, see `data.radiograph.gates`.
        max_bad_share: largest share of unusable images that is tolerated, in [0, 1].
        read_workers: number of processes that decode in place of threads. With 0, threads do, unless there is a file on which a
            decoder may crash.
        threads: number of decoding threads, at least 1.
        progress: show a progress bar.

    Attributes:
        rejected: (file, reason code, message) of images that cannot be used.

    Raises:
        InputError: when a number is out of its range, or a gate is unknown.
    """

    def __init__(
        self,
        size: int,
        intensity: str = "as_read",
        allow: Collection[str] = (),
        max_bad_share: float = 0.05,
        read_workers: int = 0,
        threads: int = 2,
        progress: bool = True,
    ) -> None:
        if not 0 <= max_bad_share <= 1:
            raise InputError(f"max_bad_share must lie in [0, 1], got {max_bad_share}")
        if read_workers < 0 or threads < 1:
            raise InputError(f"read_workers must be 0 or more and threads 1 or more, got {read_workers} and {threads}")
        self.size, self.intensity, self.max_bad_share = size, intensity, max_bad_share
        self.read_workers, self.threads, self.progress = read_workers, threads, progress
        preprocessing = Preprocessing(size, (0.0,), (1.0,), intensity=intensity)
        self.transform = RadiographLoader(preprocessing, allow=allow, normalise=False)
        self.rejected: list[Rejected] = []

    @property
    def settings(self) -> dict[str, Any]:
        """What the pixels depend on besides the files."""
        return {
            "size": self.size,
            "intensity": self.intensity,
            "reader_chain": self.transform.preprocessing.reader_chain,
        }

    def read(self, items: Sequence[Item], what: str = "images") -> GreyImages:
        """Read the items' images, in order; unusable ones are left out, see `rejected`.

        Args:
            items: data list items; `image` is the path.
            what: plural noun for the images, in the progress bar and messages.

        Raises:
            InputError: when a larger share of the images than `max_bad_share` is unusable, or no usable one is left.
        """
        workers = self.read_workers
        if workers == 0 and any(may_crash(str(item["image"])) for item in items):
            workers = self.threads
        stream = RadiographStream(items, self.transform, self.threads, _READ_AHEAD, workers)
        files: list[str] = []
        pixels = torch.empty(len(items), 1, self.size, self.size, dtype=torch.uint8)
        with progress_bar(len(items), what, self.progress) as bar:
            for item in stream:
                pixels[len(files)] = item["image"].mul(255).round_()
                files.append(item["file"])
                bar.update()
        bad = stream.rejected
        if bad and len(bad) > self.max_bad_share * len(items):
            raise InputError(
                f"{len(bad)} of {len(items)} {what} cannot be used, more than the allowed share of {self.max_bad_share:.0%}; "
                f"first: {bad[0][0]}: {bad[0][2].rstrip('.')}. Repair or remove them, or raise --max_bad_share"
            )
        if not files:
            raise InputError(f"there are no usable {what}; first: {bad[0][0] if bad else '(none was given)'}")
        self.rejected += bad
        return GreyImages(files, pixels[: len(files)])


@dataclass(frozen=True)
class Place:
    """Where a training keeps its states, so that it continues after a kill.

    Attributes:
        folder: for this training; None keeps nothing.
        shared: for networks that trainings on the same images and seed have in common; None takes `folder`.
        progress: show a progress bar.
    """

    folder: Path | None = None
    shared: Path | None = None
    progress: bool = False

    def file(self, name: str, shared: bool = False) -> Path | None:
        """Return the file of a state, or None."""
        folder = self.shared if shared and self.shared is not None else self.folder
        return None if folder is None else folder / f"{name}.pt"


class ImageMethod(Protocol):
    """A compared method that learns from grey images.

    Attributes:
        learned: set by `fit_images`.
    """

    learned: Learned

    def fit_images(self, normal: GreyImages, abnormal: GreyImages | None, place: Place) -> None:
        """Learn from normal images and, for a method with a k, from few-shot abnormal ones; continue from states in `place`."""

    def image_scores(self, images: GreyImages) -> list[Tensor]:
        """Compute the anomaly scores [n] of images for each state that the published protocol may choose from.

        The last entry belongs to the trained method. The score of an image does not depend on the others.
        """


@runtime_checkable
class MapMethod(Protocol):
    """An `ImageMethod` that also says where an image is abnormal."""

    def image_maps(self, images: GreyImages) -> Tensor:
        """Compute the anomaly maps [n, h, w] of images."""


def fit_and_score_images(
    method: ImageMethod,
    normal: GreyImages,
    held_out: GreyImages,
    test: GreyImages,
    labels: Sequence[int],
    false_positive_rate: float = 0.05,
    abnormal: GreyImages | None = None,
    place: Place | None = None,
) -> Scored:
    """Fit a method on images, calibrate it on `held_out` and score `test`; nothing is chosen on the test images."""
    began = time.perf_counter()
    method.fit_images(normal, abnormal, place or Place())
    fitted = time.perf_counter()
    held_out_scores = method.image_scores(held_out)[-1].tolist()
    epochs = [scores.tolist() for scores in method.image_scores(test)]
    seconds = {"training": fitted - began, "evaluation": time.perf_counter() - fitted}
    calibration = calibrate(held_out_scores, (), false_positive_rate)
    return Scored(list(labels), epochs, calibration, held_out_scores, seconds)


def run_image_method(
    method: ImageMethod,
    name: str,
    reader: ImageReader,
    split: MethodSplit,
    folder: RunFolder,
    false_positive_rate: float = 0.05,
    shared: str | Path | None = None,
) -> dict[str, Any]:
    """Run one method as a bundle workflow and write `metrics.json` and `predictions.csv`.

    Killed, it continues from its last state when it is run again with the same settings.

    Args:
        method: the method, not yet fitted.
        name: name of the method.
        reader: reader of grey images.
        split: training, calibration and test images.
        folder: output folder of the run.
        false_positive_rate: target share of normal images flagged.
        shared: folder for networks that runs on the same images and seed have in common, see `Place`.

    Returns:
        Content of `metrics.json`.
    """
    began = time.perf_counter()
    normal = reader.read(split.normal, "normal images")
    held_out = reader.read(split.held_out, "held-out normal images")
    abnormal = None if split.abnormal is None else reader.read(split.abnormal, "abnormal images")
    test = reader.read(split.test, "test images")
    reading = time.perf_counter() - began
    items = {str(item["image"]): item for item in split.test}
    labels = [items[file]["label"] for file in test.files]
    common = None if shared is None else Path(shared)
    if common is not None:
        common.mkdir(parents=True, exist_ok=True)
    place = Place(folder.states, common, reader.progress)
    scored = fit_and_score_images(method, normal, held_out, test, labels, false_positive_rate, abnormal, place)
    more = {"network": method.learned.network, "cost": vars(method.learned.cost), "images": reader.settings}
    seconds = {"reading": reading, **scored.seconds}
    found = write_results(name, split, test.files, scored, reader.rejected, folder, seconds, more)
    folder.finish()
    return found
