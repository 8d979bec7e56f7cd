"""Choices from a datalist: few-shot abnormal images, held-out normal images, and the check for overlap with the test part."""

from __future__ import annotations

import math
import random
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from monai_wscxr.data.datalist import DatalistError, Item, by_path, few
from monai_wscxr.data.radiograph.read import file_digest


def choose_few_shot(items: Iterable[Item], k: int, seed: int, strict: bool = False) -> list[Item]:
    """Choose k abnormal images per class at random.

    The choice depends only on the seed, the class and the sorted image paths: not on the order of the input, on other classes
    or on global random state. A larger k keeps all images of a smaller one.

    Args:
        items: items of a datalist; normal ones are ignored.
        k: images per class, at least 1.
        seed: any integer.
        strict: raise an error for a class with fewer than k images, instead of using all of them.

    Returns:
        The chosen items, sorted by class and image.

    Warns:
        UserWarning: for each class with fewer than k images.

    Raises:
        DatalistError: for k below 1, no abnormal item, or, with `strict`, a class that is too small.
    """
    if k < 1:
        raise DatalistError(f"k is {k}; WSCXR needs at least one abnormal image per class, so k must be 1 or more.")
    classes: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        if item["label"] == 1:
            classes[item["class"]].append(item)
    if not classes:
        raise DatalistError(
            "there is no abnormal image to choose from; WSCXR needs at least one. Put some into "
            "train/abnormal[/CLASS], or give them label 1."
        )
    chosen = []
    for name in sorted(classes):
        pool = sorted(classes[name], key=by_path)
        if len(pool) < k:
            message = f"class {name!r} has {len(pool)} abnormal image(s), fewer than k = {k}"
            if strict:
                raise DatalistError(f"{message}. Add images, lower k, or allow smaller classes.")
            warnings.warn(f"{message}: all of them are used.", UserWarning, stacklevel=2)
        random.Random(f"few_shot:{seed}:{name}").shuffle(pool)
        chosen += sorted(pool[:k], key=by_path)
    return chosen


def hold_out(items: Iterable[Item], fraction: float, seed: int) -> tuple[list[Item], list[Item]]:
    """Split the normal images by patient into those that train and those that are held out.

    Args:
        items: items of a datalist; abnormal ones are ignored.
        fraction: share of the normal images to hold out, in (0, 1).
        seed: any integer.

    Returns:
        Images that train and images held out, each sorted by image and of at least one patient; no patient is in both. The
        number held out is as close to `fraction` of the images as whole patients allow, the smaller of two equally close ones.

    Raises:
        DatalistError: for a fraction outside (0, 1), or fewer than two patients.
    """
    if not 0.0 < fraction < 1.0:
        raise DatalistError(f"the held-out fraction is {fraction}; allowed are values between 0 and 1, both excluded.")
    patients: dict[str, list[Item]] = defaultdict(list)
    for item in sorted((i for i in items if i["label"] == 0), key=by_path):
        patients[item["patient"]].append(item)
    if len(patients) < 2:
        raise DatalistError(
            f"holding out normal images needs at least two patients with normal images, there are {len(patients)}. "
            "Add normal images, or check the patient column."
        )
    names = sorted(patients)
    random.Random(f"hold_out:{seed}").shuffle(names)
    sizes = [len(patients[name]) for name in names]
    taken = {names[i] for i in _closest_subset(sizes, fraction * sum(sizes))}
    ordered = sorted((item for group in patients.values() for item in group), key=by_path)
    return [i for i in ordered if i["patient"] not in taken], [i for i in ordered if i["patient"] in taken]


def check_overlap(
    training: Sequence[Item],
    test: Sequence[Item],
    *,
    allow: bool = False,
    digests: dict[str, str] | None = None,
) -> list[str]:
    """Find images and patients that are in training and test, and contradictory labels in training.

    Args:
        training: items used for training.
        test: items used for evaluation.
        allow: return findings about training and test instead of raising an error.
        digests: content digests by image path; missing ones are computed and added, for the caller to use again.

    Returns:
        The findings as sentences; empty without any.

    Raises:
        DatalistError: for findings without `allow`; always for exact copies with different labels in training; for a file that
            cannot be read.
    """
    digests = {} if digests is None else digests
    _fill_digests([*training, *test], digests)
    seen: dict[str, Item] = {}
    clashes = []
    for item in training:
        first = seen.setdefault(digests[item["image"]], item)
        if first["label"] != item["label"]:
            clashes.append(f"{first['image']} (label {first['label']}) and {item['image']} (label {item['label']})")
    if clashes:
        raise DatalistError(
            f"{len(clashes)} training image(s) are exact copies with contradictory labels: {few(clashes)}. Remove the "
            "wrong copy."
        )
    by_patient = {item["patient"]: item for item in reversed(training)}
    copies = [(seen[digests[item["image"]]], item) for item in test if digests[item["image"]] in seen]
    shared = {item["patient"]: (by_patient[item["patient"]], item) for item in test if item["patient"] in by_patient}
    findings = []
    for pairs, text in (
        (copies, "test image(s) are exact copies of training images"),
        (list(shared.values()), "patient(s) have images in training and in test"),
    ):
        if pairs:
            examples = few([f"{first['image']} and {second['image']}" for first, second in pairs])
            findings.append(f"{len(pairs)} {text}: {examples}.")
    if findings and not allow:
        raise DatalistError(
            f"{' '.join(findings)} Figures on such a test set look better than they are: remove these files from one "
            "side, or accept it with --allow_overlap true."
        )
    return findings


def _fill_digests(items: Iterable[Item], digests: dict[str, str]) -> None:
    paths = sorted({item["image"] for item in items} - digests.keys())
    try:
        with ThreadPoolExecutor() as pool:  # hashing and reading both release the interpreter lock
            digests.update(zip(paths, pool.map(file_digest, paths), strict=True))
    except OSError as error:
        raise DatalistError(f"{error.filename}: cannot be read ({error.strerror}). Correct the datalist.") from error


def _closest_subset(sizes: Sequence[int], target: float) -> list[int]:
    """Return indices of a proper, non-empty subset of `sizes` with the sum closest to `target`; prefer early indices."""
    total = sum(sizes)
    goal = min(max(math.ceil(target - 0.5), 1), total - 1)
    taken: list[int] = []
    held = 0
    for index, size in enumerate(sizes):
        if held + size <= goal:
            taken.append(index)
            held += size
    if held == goal:
        return taken
    # No remaining patient fits into the gap: search exactly among up to 32 patients of each size on either side (subset sum).
    # Bit s of reach[i] is set if some of the first i of them add up to s.
    chosen = set(taken)
    sides = (reversed(taken), (index for index in range(len(sizes)) if index not in chosen))
    pool: list[int] = []
    for side in sides:
        count: Counter[int] = Counter()
        for index in side:
            count[sizes[index]] += 1
            if count[sizes[index]] <= 32:
                pool.append(index)
    movable = set(pool)
    fixed = [index for index in taken if index not in movable]
    base = sum(sizes[index] for index in fixed)
    reach = [1]
    for index in pool:
        reach.append(reach[-1] | (reach[-1] << sizes[index]))
    sums = (s for s in range(reach[-1].bit_length()) if reach[-1] >> s & 1 and 0 < base + s < total)
    held = min(sums, key=lambda s: (abs(base + s - target), s))
    for step in range(len(pool) - 1, -1, -1):
        if not reach[step] >> held & 1:
            fixed.append(pool[step])
            held -= sizes[pool[step]]
    return fixed
