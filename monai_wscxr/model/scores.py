"""Anomaly scores and maps of images, from their patch scores."""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from monai_wscxr.errors import InputError
from monai_wscxr.system.threads import ONE_THREAD_PRODUCT


def anomaly_score(patch_scores: ArrayLike, share: float = 0.0) -> NDArray[np.float32]:
    """Return the anomaly scores [B, E] of images: the mean of their highest patch scores.

    Args:
        patch_scores: [B, E, h, w], before upsampling.
        share: share of the patches that count, in [0, 1], rounded to whole patches and at least one; 0 gives the maximum,
            as published, 1 the mean over all patches.
    """
    scores = np.asarray(patch_scores)
    patches = scores.reshape(*scores.shape[:2], -1)
    count = max(1, round(share * patches.shape[2]))
    highest = np.sort(patches, axis=2)[..., -count:]  # in one order, so that rounding does not depend on the places
    means: NDArray[np.float32] = highest.mean(2, dtype=np.float64).astype(np.float32)
    return means


def check_score_share(share: float) -> float:
    """Return the share of `anomaly_score` as a float after checking it.

    Raises:
        InputError: when it is not a number in [0, 1].
    """
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
        raise InputError(f"score_share must lie in [0, 1] (0: the maximum, as published), got {share!r}")
    return float(share)


def anomaly_map(patch_scores: ArrayLike, size: tuple[int, int], sigma: float = 4.0) -> NDArray[np.float32]:
    """Return the anomaly maps [B, 1, H, W]: patch scores, upsampled bilinearly and smoothed by a Gaussian.

    Both steps are linear and separable, so together they are one small matrix per axis: A scores B^T, with A [H, h] and
    B [W, w]. The result is the same, for hundreds of times less work than filtering the upsampled map.

    Args:
        patch_scores: [B, 1, h, w].
        size: height H and width W of the map.
        sigma: standard deviation of the Gaussian in pixels of the map, >= 0; published: 4 at 256 pixels. The Gaussian is
            cut off at 4 sigma, or at the shorter side of the map; borders are reflected.
    """
    scores = np.asarray(patch_scores, np.float32)
    radius = min(math.ceil(4 * sigma), min(size) - 1) if sigma > 0 else 0
    rows, columns = (
        _map_axis(patches, pixels, sigma, radius) for patches, pixels in zip(scores.shape[-2:], size, strict=True)
    )
    stretched = rows @ scores  # [B, 1, H, w]
    maps = np.empty((*scores.shape[:2], *size), np.float32)
    step = max(1, ONE_THREAD_PRODUCT // columns.size)
    for start in range(0, size[0], step):
        np.matmul(stretched[..., start : start + step, :], columns.T, out=maps[..., start : start + step, :])
    return maps


@functools.lru_cache(maxsize=16)
def _map_axis(patches: int, pixels: int, sigma: float, radius: int) -> NDArray[np.float32]:
    """Return the matrix [pixels, patches] of upsampling and smoothing along one axis.

    Column i is the response to patch i.
    """
    centres = np.clip((np.arange(pixels) + 0.5) * patches / pixels - 0.5, 0, None)
    low = np.minimum(centres.astype(int), patches - 1)
    high, part = np.minimum(low + 1, patches - 1), centres - low
    responses = np.zeros((pixels, patches))
    np.add.at(responses, (np.arange(pixels), low), 1 - part)
    np.add.at(responses, (np.arange(pixels), high), part)
    if radius > 0:
        offsets = np.arange(-radius, radius + 1)
        kernel = np.exp(-np.square(offsets.astype(np.float64)) / (2 * sigma**2))
        padded = np.pad(responses, ((radius, radius), (0, 0)), mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(
            padded, len(kernel), axis=0
        )  # [pixels, patches, 2 radius + 1]
        responses = windows @ (kernel / kernel.sum())
    return np.ascontiguousarray(responses, np.float32)
