"""Choices from a datalist: few-shot abnormal images, held-out normal images, and the check for overlap with the test part."""

from __future__ import annotations

import logging
import math
import os
import random
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from monai_wscxr.data.datalist import DatalistError, Item, by_path, few
from monai_wscxr.data.duplicates import fill_file_digests, pixel_digests

logger = logging.getLogger("monai_wscxr")


def choose_few_shot(items: Iterable[Item], k: int, seed: int, strict: bool = False) -> list[Item]:
    """Choose k abnormal images per class at random.

    The choice depends only on the seed, the class and the sorted image paths: not on the order of the input, on other classes
    or on global random state. A larger k keeps all images of a smaller one.

    Args:
        items: items of a datalist; normal ones are ignored.
        k: images per class; 0 chooses none, for a training on normal images alone.
        seed: any integer.
        strict: raise an error for a class with fewer than k images, instead of using all of them.

    Returns:
        The chosen items, sorted by class and image; none for k = 0 or without abnormal items.

    Warns:
        UserWarning: for each class with fewer than k images, and when there is no abnormal item for k of 1 or more.

    Raises:
        DatalistError: for k below 0, or, with `strict`, no abnormal item or a class that is too small.
    """
    if k < 0:
        raise DatalistError(f"k is {k}; it must be 1 or more, or 0 to train on normal images alone.")
    if k == 0:
        return []
    classes: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        if item["label"] == 1:
            classes[item["class"]].append(item)
    if not classes:
        message = "there is no abnormal image to choose from"
        if strict:
            raise DatalistError(
                f"{message}. Put some into train/abnormal[/CLASS], give them label 1, or train on normal images alone "
                "with --k 0."
            )
        warnings.warn(
            f"{message}: training on normal images alone, as with --k 0. To train with abnormal ones, put them into "
            "train/abnormal[/CLASS], or give them label 1.",
            UserWarning,
            stacklevel=2,
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
    cache: str | os.PathLike[str] | bool | None = None,
    progress: bool = True,
) -> list[str]:
    """Find pictures and patients that are in training and test, and pictures with contradictory labels.

    Two files are copies if their decoded pixels are equal (`duplicates`), in any format. Copies with the same label within one
    part are allowed; their number is logged.

    Args:
        training: all items of the training part, before any choice.
        test: items used for evaluation.
        allow: return findings about training and test instead of raising an error.
        digests: content digests by image path; missing ones are computed and added, for the caller to use again.
        cache: folder for the digests of pixels; None takes the default, False none.
        progress: show a progress bar when many images have to be decoded.

    Returns:
        The findings as sentences; empty without any.

    Raises:
        DatalistError: for findings without `allow`; always for copies with different labels, in one part or in two; for a file
            that cannot be read.
    """
    return find_overlap(training, test, allow, digests, cache, progress)[0]


def find_overlap(
    training: Sequence[Item],
    test: Sequence[Item],
    allow: bool = False,
    digests: dict[str, str] | None = None,
    cache: str | os.PathLike[str] | bool | None = None,
    progress: bool = True,
) -> tuple[list[str], dict[str, str]]:
    """Do what `check_overlap` does and return the digests of the pixels, by image path, as well."""
    digests = {} if digests is None else digests
    everything = [*training, *test]
    files = {item["image"] for item in everything}
    try:
        fill_file_digests(files, digests)
    except OSError as error:
        raise DatalistError(f"{error.filename}: cannot be read ({error.strerror}). Correct the datalist.") from error
    chosen = {file: digests[file] for file in files}
    # images of one label without a test part cannot contradict each other or leak
    needed = bool(test) or len({item["label"] for item in training}) > 1
    pixels = pixel_digests(chosen, cache, progress) if needed else chosen
    _check_contradictions(everything, pixels)
    seen: dict[str, Item] = {}
    for item in training:
        seen.setdefault(pixels[item["image"]], item)
    _log_copies(training, test, pixels)
    by_patient = {item["patient"]: item for item in reversed(training)}
    copies = [(seen[pixels[item["image"]]], item) for item in test if pixels[item["image"]] in seen]
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
    return findings, pixels


def join_copies(items: Sequence[Item], pixels: Mapping[str, str]) -> list[Item]:
    """Return the items with one patient for all patients that share a picture, so that copies stay on one side of a split.

    Args:
        items: items of a datalist.
        pixels: digests of the pixels by image path.
    """
    joined: dict[str, str] = {}  # to another patient of the same group

    def first(patient: str) -> str:
        while patient in joined:
            patient = joined[patient]
        return patient

    owner: dict[str, str] = {}
    for item in items:
        one, other = first(owner.setdefault(pixels[item["image"]], item["patient"])), first(item["patient"])
        if one != other:
            joined[max(one, other)] = min(one, other)
    return [{**item, "patient": first(item["patient"])} for item in items] if joined else list(items)


def _check_contradictions(items: Iterable[Item], pixels: Mapping[str, str]) -> None:
    seen: dict[str, Item] = {}
    clashes = []
    for item in items:
        first = seen.setdefault(pixels[item["image"]], item)
        if first["label"] != item["label"]:
            clashes.append(f"{first['image']} (label {first['label']}) and {item['image']} (label {item['label']})")
    if clashes:
        raise DatalistError(
            f"{len(clashes)} image(s) are exact copies, with equal pixels, of images with contradictory labels: "
            f"{few(clashes)}. Remove the wrong copy."
        )


def _log_copies(training: Sequence[Item], test: Sequence[Item], pixels: Mapping[str, str]) -> None:
    """Warn about copies within one part, and about those in two classes of abnormal images."""
    for part, items in (("training", training), ("test", test)):
        first: dict[str, Item] = {}
        for item in items:
            first.setdefault(pixels[item["image"]], item)
        copies = [(first[pixels[item["image"]]], item) for item in items if first[pixels[item["image"]]] is not item]
        if copies:
            classes = sum(one["class"] != other["class"] for one, other in copies)
            logger.warning(
                "%d %s image(s) are exact copies of others in the same part%s (first: %s and %s)",
                *(len(copies), part, f", {classes} of them in another class" if classes else ""),
                *(item["image"] for item in copies[0]),
            )


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
