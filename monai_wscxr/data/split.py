"""Who trains, who calibrates, who is tested: the split of a run, made once and reproducibly."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from monai_wscxr.data.datalist import load_datalist
from monai_wscxr.data.selection import check_overlap, choose_few_shot, hold_out

Item = dict[str, Any]


@dataclass(frozen=True)
class TrainingSplit:
    """Items of a training run.

    Attributes:
        normal: normal images that make the normal bank.
        held_out: normal images that train nothing; they calibrate.
        abnormal: the few-shot abnormal images.
        test: test images; looked at for overlap only.
        findings: what the overlap check allowed, as sentences.
        digests: file to content digest of every image seen.
    """

    normal: list[Item]
    held_out: list[Item]
    abnormal: list[Item]
    test: list[Item]
    findings: list[str]
    digests: dict[str, str]

    def summary(self) -> str:
        """One line for logs."""
        classes = ", ".join(f"{n} {name}" for name, n in sorted(count_classes(self.abnormal).items()))
        return f"{len(self.normal)} normal images train, {len(self.held_out)} are held out, abnormal: {classes}"


def count_classes(items: Iterable[Item]) -> dict[str, int]:
    """Number of items of each class."""
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
    """Split a data set for training; nothing is ever taken from its test part.

    Args:
        source: folder or datalist file, see `load_datalist`.
        k: abnormal images per class (few-shot), >= 1.
        holdout: share of the normal images held out for calibration, in (0, 1), by patient.
        seed: of both choices.
        strict: a class with fewer than k images is an error instead of a warning.
        allow_overlap: go on although training and test share images or patients.
        digests: content digests that are known already, by file; those files are not read for theirs again.

    Raises:
        DatalistError: see the functions of `datalist` and `selection`.
    """
    datalist = load_datalist(source)
    training = datalist["training"]
    found = dict(digests or {})
    abnormal = choose_few_shot([item for item in training if item["label"] == 1], k, seed, strict)
    normal, held_out = hold_out([item for item in training if item["label"] == 0], holdout, seed)
    used = normal + held_out + abnormal
    findings = check_overlap(used, datalist["test"], allow=allow_overlap, digests=found)
    return TrainingSplit(normal, held_out, abnormal, datalist["test"], findings, found)
