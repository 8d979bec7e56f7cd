"""The split of a training run: images that train, that calibrate and that are for testing, chosen reproducibly."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from monai_wscxr.data.datalist import Item, load_with_rest
from monai_wscxr.data.masks import check_masks
from monai_wscxr.data.selection import choose_few_shot, find_overlap, hold_out, join_copies


@dataclass(frozen=True)
class TrainingSplit:
    """Items of a training run.

    Attributes:
        normal: normal images of the normal bank.
        held_out: normal images kept out of training, for calibration.
        abnormal: few-shot abnormal images; none in a training on normal images alone.
        test: test images, used only for the overlap check.
        findings: overlaps with the test images that were allowed, as sentences.
        digests: content digest of every image, by file.
        left_out: how much of the data set no part uses, by reason, as a sentence; empty when nothing.
    """

    normal: list[Item]
    held_out: list[Item]
    abnormal: list[Item]
    test: list[Item]
    findings: list[str]
    digests: dict[str, str]
    left_out: str = ""

    def summary(self) -> str:
        """Describe the split and what the data set leaves out in one line."""
        classes = ", ".join(f"{n} {name}" for name, n in sorted(count_classes(self.abnormal).items()))
        text = (
            f"{len(self.normal)} normal images train, {len(self.held_out)} are held out, abnormal: {classes or 'none'}"
        )
        return f"{text}; {self.left_out}" if self.left_out else text

    @property
    def normals_only(self) -> bool:
        """Whether the training has normal images alone."""
        return not self.abnormal


def count_classes(items: Iterable[Item]) -> dict[str, int]:
    """Count the items of each class."""
    return dict(Counter(str(item["class"]) for item in items))


@dataclass(frozen=True)
class CheckedDatalist:
    """A data set that passed all checks that need its files.

    Attributes:
        training, test: items; training images with equal pixels have one patient, so that copies stay on one side of a split.
        findings: overlaps of training and test that were allowed, as sentences.
        digests: content digest of every image, by file.
        left_out: how much of the data set no part uses, by reason, as a sentence; empty when nothing.
    """

    training: list[Item]
    test: list[Item]
    findings: list[str]
    digests: dict[str, str]
    left_out: str


def checked_datalist(
    source: str | os.PathLike[str],
    allow_overlap: bool = False,
    digests: Mapping[str, str] | None = None,
    cache: str | os.PathLike[str] | bool | None = None,
    progress: bool = True,
) -> CheckedDatalist:
    """Load a data set and check all of it for copies, contradictions, overlap and unusable masks, before anything is chosen.

    Args:
        source: folder or datalist file, see `load_datalist`.
        allow_overlap: accept that training and test share images or patients.
        digests: known content digests by file; these files are not hashed again.
        cache: folder for the digests of pixels; None takes the default, False none.
        progress: show a progress bar when many images have to be decoded.

    Raises:
        DatalistError: see `load_datalist`, `check_masks` and `check_overlap`.
    """
    loaded = load_with_rest(source)
    training, test = loaded.parts["training"], loaded.parts["test"]
    check_masks(test)
    found = dict(digests or {})
    findings, pixels = find_overlap(training, test, allow_overlap, found, cache, progress)
    return CheckedDatalist(join_copies(training, pixels), test, findings, found, loaded.summary())


def training_split(
    source: str | os.PathLike[str],
    k: int,
    holdout: float = 0.15,
    seed: int = 0,
    strict: bool = False,
    allow_overlap: bool = False,
    digests: Mapping[str, str] | None = None,
    cache: str | os.PathLike[str] | bool | None = None,
    progress: bool = True,
) -> TrainingSplit:
    """Split the training part of a data set; no test image is ever chosen.

    The whole data set is checked before anything is chosen, see `checked_datalist`.

    Args:
        source: folder or datalist file, see `load_datalist`.
        k: abnormal images per class (few-shot), >= 0; 0 for a training on normal images alone.
        holdout: share of the normal images held out for calibration, by patient, in (0, 1).
        seed: of both choices.
        strict: raise an error for a class with fewer than k images, instead of a warning.
        allow_overlap: accept that training and test share images or patients.
        digests: known content digests by file; these files are not hashed again.
        cache: folder for the digests of pixels; None takes the default, False none.
        progress: show a progress bar when many images have to be decoded.

    Raises:
        DatalistError: see `checked_datalist`, `choose_few_shot` and `hold_out`.
    """
    data = checked_datalist(source, allow_overlap, digests, cache, progress)
    abnormal = choose_few_shot([item for item in data.training if item["label"] == 1], k, seed, strict)
    normal, held_out = hold_out([item for item in data.training if item["label"] == 0], holdout, seed)
    return TrainingSplit(normal, held_out, abnormal, data.test, data.findings, data.digests, data.left_out)
