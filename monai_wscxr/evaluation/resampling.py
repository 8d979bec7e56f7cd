"""Resamples of the test images by patient, for intervals of figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CELLS = 2_000_000  # counts in memory at a time


def number_patients(items: Sequence[Mapping[str, Any]]) -> NDArray[np.int64]:
    """Number the patients of datalist items, [n]; an image without a patient is one of its own."""
    keys = [str(item.get("patient") or item.get("file") or item["image"]) for item in items]
    codes = {key: n for n, key in enumerate(dict.fromkeys(keys))}
    return np.array([codes[key] for key in keys], dtype=np.int64)


def resample_patients(
    abnormal: NDArray[np.bool_], patients: NDArray[np.int64], resamples: int, seed: int
) -> Iterator[NDArray[np.float64]]:
    """Yield how often each image occurs in each resample of the patients (Efron's bootstrap), in several parts.

    Patients with normal images, with abnormal ones and with both are resampled apart.

    Args:
        abnormal: [n] whether an image is abnormal.
        patients: [n] number of its patient, from 0 on without gaps.
        resamples: number of resamples.
        seed: of the resamples.

    Yields:
        [r, n]; the r of all parts together are the number of resamples.
    """
    generator = np.random.default_rng(seed)
    number = int(patients.max()) + 1
    kinds = np.zeros(number, dtype=np.int64)
    np.bitwise_or.at(kinds, patients, np.where(abnormal, 2, 1))
    strata = [np.flatnonzero(kinds == kind) for kind in (1, 2, 3)]
    at_once = max(1, _CELLS // len(patients))
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        rows = number * np.arange(size)[:, None]
        chosen = [
            rows + members[generator.integers(len(members), size=(size, len(members)))]
            for members in strata
            if len(members)
        ]
        places = np.concatenate(chosen, axis=1).ravel()
        drawn = np.bincount(places, minlength=size * number).reshape(size, number)
        yield drawn[:, patients].astype(np.float64)
