"""The k-centre greedy coreset: rows chosen one by one, each the farthest from all rows chosen before."""

from __future__ import annotations

import torch
from torch import Tensor

from monai_wscxr.ops import _library
from monai_wscxr.ops.checks import check_finite

_DTYPES = (torch.float32, torch.float64)


def coreset(rows: Tensor, count: int, start: int) -> Tensor:
    """Choose rows by the greedy algorithm for the k-centre problem (Gonzalez, 1985), as PatchCore does.

    The first choice is row `start`. Each further choice is the row with the largest Euclidean distance to its nearest
    chosen row. Distances are compared as float64 sums of squared differences of the stored values. Ties go to the lowest
    row, and no row is chosen twice. Whether sums that differ only in their last bits tie is not defined.

    Args:
        rows: [N, C] float32 or float64, N >= 1, C >= 1, finite.
        count: number of rows to choose, in [1, N].
        start: index of the first choice, in [0, N).

    Returns:
        Row indices [count] int64 in the order of choice.

    Raises:
        ValueError: on wrong shapes or types, NaN or Inf, or numbers outside their ranges.

    Example:
        >>> coreset(torch.tensor([[0.0], [1.0], [5.0], [9.0]]), count=3, start=0).tolist()
        [0, 3, 2]
    """
    _check(rows, count, start)
    if not bool(torch.isfinite(rows).all()):
        raise ValueError("coreset: rows hold NaN or Inf, which have no distance; remove them")
    chosen: Tensor = torch.ops.monai_wscxr.coreset(rows, count, start)
    return chosen


def _check(rows: Tensor, count: int, start: int) -> None:
    """Check the arguments of `coreset` except for NaN and Inf."""
    if rows.ndim != 2 or rows.dtype not in _DTYPES or rows.layout != torch.strided or rows.shape[1] == 0:
        raise ValueError(
            "coreset: rows must be [N, C] float32 or float64 with at least one channel, got "
            f"{tuple(rows.shape)} {rows.dtype}"
        )
    if count < 1 or count > rows.shape[0]:
        raise ValueError(f"coreset: count must lie in [1, {rows.shape[0]}], the number of rows, got {count}")
    if start < 0 or start >= rows.shape[0]:
        raise ValueError(f"coreset: start must be a row index below {rows.shape[0]}, got {start}")


def _reference(rows: Tensor, count: int, start: int) -> Tensor:
    _check(rows, count, start)
    check_finite(rows, "coreset: rows")
    wide = rows.double()
    chosen = torch.empty(count, dtype=torch.int64, device=rows.device)
    chosen[0] = start
    nearest = torch.full((rows.shape[0],), torch.inf, dtype=torch.float64, device=rows.device)
    for step in range(1, count):
        last = chosen[step - 1]
        nearest = torch.minimum(nearest, (wide - wide[last]).square().sum(dim=1))
        nearest[last] = -1  # below every distance, so that it is never chosen again
        # the first of equal maxima; argmax does not promise which one it returns
        chosen[step] = (nearest == nearest.max()).nonzero()[0, 0]
    return chosen


def _fake(rows: Tensor, count: int, start: int) -> Tensor:
    _check(rows, count, start)
    return rows.new_empty(count, dtype=torch.int64)


_library.define("coreset", "(Tensor rows, int count, int start) -> Tensor", _reference, _fake)
