"""Bilinear resizing of radiographs, anti-aliased when shrinking, by products of small matrices.

An output pixel is a weighted mean of the few input pixels near it, along one axis after the other: a matrix with a narrow band.
It is applied in blocks of rows that share most of their inputs. The products are so small that BLAS computes each on the
calling thread, because images are read by several threads or processes at a time.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from monai_wscxr.system.threads import ONE_THREAD_PRODUCT

_BLOCK = 8  # output rows that are computed together


def resize(image: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Resize an image [H, W] to [height, width]: bilinear, anti-aliased along axes that shrink.

    Weights are computed in float64 and rounded, as are the sums, in float32. The result is that of
    `torch.nn.functional.interpolate` with `antialias=True`, up to rounding.
    """
    return np.ascontiguousarray(_along_columns(_along_columns(image, height).T, width).T)


def _along_columns(image: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Resize the first axis of an image [H, W]: [size, W]."""
    if len(image) == size:
        return image
    out = np.empty((size, image.shape[1]), np.float32)
    for start, first, weights in _bands(len(image), size):
        rows, inputs = weights.shape
        part = max(1, ONE_THREAD_PRODUCT // weights.size)
        for column in range(0, image.shape[1], part):
            some = slice(column, column + part)
            np.matmul(weights, image[first : first + inputs, some], out=out[start : start + rows, some])
    return out


@functools.lru_cache(maxsize=64)
def _bands(inputs: int, outputs: int) -> list[tuple[int, int, NDArray[np.float32]]]:
    """Return the blocks of the matrix that resizes an axis: first output, first input, and weights [outputs, inputs]."""
    scale = inputs / outputs
    support = max(scale, 1.0)  # half the width of the triangle that weighs the inputs
    centres = (np.arange(outputs) + 0.5) * scale
    low = np.maximum((centres - support + 0.5).astype(int), 0)
    high = np.minimum((centres + support + 0.5).astype(int), inputs)
    found = []
    for start in range(0, outputs, _BLOCK):
        block = slice(start, start + _BLOCK)
        first, last = int(low[block].min()), int(high[block].max())
        distance = np.abs(np.arange(first, last) + 0.5 - centres[block, None]) / support
        weights = np.maximum(1 - distance, 0)
        found.append((start, first, (weights / weights.sum(1, keepdims=True)).astype(np.float32)))
    return found
