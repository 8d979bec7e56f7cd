"""Random splits of a cross-validation into training and validation images."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monai_wscxr.errors import InputError


@dataclass(frozen=True)
class RandomSplit:
    """One split, as indices into the training items of a data set.

    Attributes:
        normal: normal images for training.
        held_out: normal images for validation.
        few_shot: abnormal images for training, by k.
        unseen: abnormal images of other patients for validation, by k.
    """

    normal: list[int]
    held_out: list[int]
    few_shot: dict[int, list[int]]
    unseen: dict[int, list[int]]


def random_split(items: Sequence[Mapping[str, Any]], ks: Sequence[int], seed: int, share: float = 0.25) -> RandomSplit:
    """Split items at random by patient; the images of a smaller k are among those of a larger one.

    Args:
        items: training items with label, class and patient.
        ks: abnormal images per class, one or more values.
        seed: seed of the split.
        share: share of the normal images held out, in (0, 1).

    Raises:
        InputError: when a k is below 1, or no abnormal image is left for validation.
    """
    if min(ks) < 1:
        raise InputError(
            f"cross-validation compares trainings with abnormal images; k must be 1 or more, got {min(ks)}"
        )
    rng = random.Random(seed)
    patients = [str(item.get("patient") or item["image"]) for item in items]
    normal = [i for i, item in enumerate(items) if item["label"] == 0]
    shuffled = sorted({patients[i] for i in normal})
    rng.shuffle(shuffled)
    apart: set[str] = set()  # patients whose normal images are held out
    for patient in shuffled:
        if sum(patients[i] in apart for i in normal) >= share * len(normal):
            break
        apart.add(patient)
    classes: dict[str, list[int]] = {}
    for i, item in enumerate(items):
        if item["label"] == 1:
            classes.setdefault(str(item["class"]), []).append(i)
    for name in sorted(classes):
        rng.shuffle(classes[name])
    few_shot, unseen = {}, {}
    for k in ks:
        few_shot[k] = [i for name in sorted(classes) for i in classes[name][:k]]
        seen = {patients[i] for i in few_shot[k]}
        unseen[k] = [i for name in sorted(classes) for i in classes[name][k:] if patients[i] not in seen]
        if not unseen[k]:
            raise InputError(f"k = {k} leaves no abnormal image of another patient for validation; use a smaller k")
    train, held_out = ([i for i in normal if (patients[i] in apart) == wanted] for wanted in (False, True))
    return RandomSplit(train, held_out, few_shot, unseen)
