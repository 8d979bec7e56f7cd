"""One draw of a cross-validation: who trains and who validates."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monai_wscxr.errors import InputError


@dataclass(frozen=True)
class Draw:
    """Indices into the training items of one draw.

    Attributes:
        normal: train the bank.
        held_out: normal images that validate.
        few_shot: per k, the abnormal images that train.
        unseen: per k, the abnormal images of other patients, which validate.
    """

    normal: list[int]
    held_out: list[int]
    few_shot: dict[int, list[int]]
    unseen: dict[int, list[int]]


def make_draw(items: Sequence[Mapping[str, Any]], ks: Sequence[int], seed: int, share: float = 0.25) -> Draw:
    """Random draw over patients; a smaller k is part of a larger one.

    Args:
        items: training items with label, class and patient.
        ks: abnormal images per class.
        seed: of the draw.
        share: of the normal images held out, in (0, 1).

    Raises:
        InputError: when no abnormal image is left to validate with.
    """
    rng = random.Random(seed)
    patients = [str(item.get("patient") or item["image"]) for item in items]
    normal = [i for i, item in enumerate(items) if item["label"] == 0]
    shuffled = sorted({patients[i] for i in normal})
    rng.shuffle(shuffled)
    out: set[str] = set()
    for patient in shuffled:
        if sum(patients[i] in out for i in normal) >= share * len(normal):
            break
        out.add(patient)
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
            raise InputError(f"k = {k} leaves no abnormal image of another patient to validate with; take a smaller k")
    return Draw(
        [i for i in normal if patients[i] not in out], [i for i in normal if patients[i] in out], few_shot, unseen
    )
