"""The split of a training run: images that train, that calibrate and that are for testing, chosen reproducibly."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from monai_wscxr.data.datalist import Item, load_datalist
from monai_wscxr.data.selection import check_overlap, choose_few_shot, hold_out


@dataclass(frozen=True)
class TrainingSplit:
    """Items of a training run.

    Attributes:
        normal: normal images of the normal bank.
        held_out: normal images kept out of training, for calibration.
        abnormal: few-shot abnormal images.
        test: test images, used only for the overlap check.
        findings: overlaps with the test images that were allowed, as sentences.
        digests: content digest of every image, by file.
    """

    normal: list[Item]
    held_out: list[Item]
    abnormal: list[Item]
    test: list[Item]
    findings: list[str]
    digests: dict[str, str]

    def summary(self) -> str:
        """Describe the split in one line."""
        classes = ", ".join(f"{n} {name}" for name, n in sorted(count_classes(self.abnormal).items()))
        return f"{len(self.normal)} normal images train, {len(self.held_out)} are held out, abnormal: {classes}"


def count_classes(items: Iterable[Item]) -> dict[str, int]:
    """Count the items of each class."""
    return dict(Counter(str(item["class"]) for item in items))


def training_split(
    source: str | os.PathLike[str],
    k: int,
    holdout: float = 0.15,
    seed: int = 0,
    strict: bool = False,
    allow_overlap: bool = False,
    digests: Mapping[str, str] | None = None,
) -> TrainingSplit:
    """Split the training part of a data set; no test image is ever chosen.

    Args:
        source: folder or datalist file, see `load_datalist`.
        k: abnormal images per class (few-shot), >= 1.
        holdout: share of the normal images held out for calibration, by patient, in (0, 1).
        seed: of both choices.
        strict: raise an error for a class with fewer than k images, instead of a warning.
        allow_overlap: accept that training and test share images or patients.
        digests: known content digests by file; these files are not hashed again.

    Raises:
        DatalistError: see `load_datalist`, `choose_few_shot`, `hold_out` and `check_overlap`.
    """
    datalist = load_datalist(source)
    training = datalist["training"]
    found = dict(digests or {})
    abnormal = choose_few_shot([item for item in training if item["label"] == 1], k, seed, strict)
    normal, held_out = hold_out([item for item in training if item["label"] == 0], holdout, seed)
    used = normal + held_out + abnormal
    findings = check_overlap(used, datalist["test"], allow=allow_overlap, digests=found)
    return TrainingSplit(normal, held_out, abnormal, datalist["test"], findings, found)
