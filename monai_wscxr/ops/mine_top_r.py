"""Anomaly mining: the share `r` of the query rows that lie farthest from the bank (Eq. 4 and 5)."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from monai_wscxr.ops import _library
from monai_wscxr.ops.checks import check_rows, no_gradient, plain_errors
from monai_wscxr.ops.packed_bank import PackedBank


def mined_count(n: int, r: float) -> int:
    """Number of rows that mining keeps: max(1, floor(r * n)), with `r` taken as the decimal number that was written.

    (0.29 * 100 is 28.999... in binary floating point; 29 rows are kept.)

    Raises:
        ValueError: when `r` is outside (0, 1] or there is no row.
    """
    if not 0 < r <= 1:
        raise ValueError(f"the retention rate r must lie in (0, 1], got {r}; the published value is 0.2, 1 keeps all")
    if n < 1:
        raise ValueError("there are no abnormal patches to mine from; give at least one abnormal image")
    exact = Fraction(r).limit_denominator(10**9)
    return max(1, n * exact.numerator // exact.denominator)


def mine_top_r(query: Tensor, bank: Tensor | PackedBank, r: float) -> tuple[Tensor, Tensor]:
    """Keep the rows with the largest distance to their nearest bank row, M'_a of Eq. 5.

    The same set in the same order as `min_distance` followed by a stable descending sort: largest first, ties to the
    lowest index. Has no gradient.

    Args:
        query: [Nq, C] abnormal patch features, Nq >= 1.
        bank: [Nb, C] normal patch features, Nb >= 1, or a `PackedBank` of them.
        r: retention rate in (0, 1].

    Returns:
        index [k] int64 into `query` and distance [k] float32, k = max(1, floor(r * Nq)).

    Raises:
        ValueError: as `min_distance`, and for `r` outside (0, 1] or an empty query.
    """
    check_rows(query, bank.rows if isinstance(bank, PackedBank) else bank, "mine_top_r")
    return mine_top_k(query, bank, mined_count(query.shape[0], r))


def mine_top_k(query: Tensor, bank: Tensor | PackedBank, k: int) -> tuple[Tensor, Tensor]:
    """Keep the `k` rows with the largest distance to their nearest bank row; otherwise as `mine_top_r`.

    Args:
        query: [Nq, C] abnormal patch features, Nq >= 1.
        bank: [Nb, C] normal patch features, Nb >= 1, or a `PackedBank` of them.
        k: number of rows to keep, from 1 to Nq.

    Returns:
        index [k] int64 into `query` and distance [k] float32.

    Raises:
        ValueError: as `min_distance`, and for `k` outside [1, Nq].
    """
    rows = bank.rows if isinstance(bank, PackedBank) else bank
    check_rows(query, rows, "mine_top_k")
    if not 1 <= k <= query.shape[0]:
        raise ValueError(f"mine_top_k: k must lie between 1 and the number of query rows ({query.shape[0]}), got {k}")
    with plain_errors():
        if isinstance(bank, PackedBank):
            return torch.ops.monai_wscxr.mine_packed(query, rows, *bank.packed, k)
        return torch.ops.monai_wscxr.mine_top_r(query, rows, k)


def _reference(query: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    distance, _ = torch.ops.monai_wscxr.min_distance(query, bank)
    order = torch.sort(distance, descending=True, stable=True).indices[:k]
    return order, distance[order]


def _fake(query: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return query.new_empty(k, dtype=torch.int64), query.new_empty(k, dtype=torch.float32)


def _packed_reference(query, bank, codes, columns, centre, row, layout, k):
    return _reference(query, bank, k)


def _packed_fake(query, bank, codes, columns, centre, row, layout, k):
    return _fake(query, bank, k)


_library.define("mine_top_r", "(Tensor query, Tensor bank, SymInt k) -> (Tensor, Tensor)", _reference, _fake)
torch.library.register_autograd("monai_wscxr::mine_top_r", no_gradient("mine_top_r"), lib=_library._LIBRARY)
_library.define(
    "mine_packed",
    "(Tensor query, Tensor bank, Tensor codes, Tensor columns, Tensor centre, Tensor row, Tensor layout, SymInt k)"
    " -> (Tensor, Tensor)",
    _packed_reference,
    _packed_fake,
)
torch.library.register_autograd("monai_wscxr::mine_packed", no_gradient("mine_top_r"), lib=_library._LIBRARY)
