"""Anomaly mining: the query rows that are farthest from the bank (Eq. 4 and 5)."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from monai_wscxr.ops import _library
from monai_wscxr.ops.checks import check_count, check_rows, no_gradient, plain_errors
from monai_wscxr.ops.packed_bank import PackedBank

_LARGEST_DENOMINATOR = 10**9


def mined_count(n: int, r: float) -> int:
    """Return the number of rows that mining keeps, max(1, floor(r * n)).

    This is the only place that computes the count; the operators and kernels receive it.

    Binary floating point cannot represent most decimal numbers, and floor would lose a row: 0.29 * 100 is
    28.999999999999996. Therefore `r` is replaced by the nearest fraction whose denominator is at most 10^9, and the
    product is evaluated exactly: 29 rows for r = 0.29 and n = 100, 1 row for r = 1/3 and n = 3.

    Args:
        n: number of query rows, at least 1.
        r: retention rate in (0, 1].

    Returns:
        A count in [1, n].

    Raises:
        ValueError: if `r` is outside (0, 1], or `n` is below 1.
    """
    if not 0 < r <= 1:
        raise ValueError(f"the retention rate r must lie in (0, 1], got {r}; the published value is 0.2, 1 keeps all")
    if n < 1:
        raise ValueError("there are no abnormal patches to mine from; give at least one abnormal image")
    rate = Fraction(r).limit_denominator(_LARGEST_DENOMINATOR)
    return max(1, n * rate.numerator // rate.denominator)


def mine_top_r(query: Tensor, bank: Tensor | PackedBank, r: float) -> tuple[Tensor, Tensor]:
    """Keep the share `r` of the query rows with the largest distance to their nearest bank row, M'_a of Eq. 5.

    The rows and their order are those of `min_distance` followed by a stable descending sort: largest distance first,
    ties to the lowest index. Has no gradient.

    Args:
        query: [Nq, C] abnormal patch features, Nq >= 1.
        bank: [Nb, C] normal patch features, Nb >= 1, or a `PackedBank` of them.
        r: retention rate in (0, 1].

    Returns:
        index [k] int64 into `query` and distance [k] float32, with k = `mined_count(Nq, r)`.

    Raises:
        ValueError: as `min_distance`; also if `r` is outside (0, 1] or `query` is empty.

    Example:
        >>> normal, abnormal = torch.zeros(5, 2), torch.tensor([[0.0, 1.0], [3.0, 4.0], [0.0, 0.0], [0.0, 2.0]])
        >>> index, distance = mine_top_r(abnormal, normal, r=0.5)
        >>> index.tolist(), distance.tolist()
        ([1, 3], [5.0, 2.0])
    """
    check_rows(query, bank.rows if isinstance(bank, PackedBank) else bank, "mine_top_r")
    return _mine(query, bank, mined_count(query.shape[0], r))


def mine_top_k(query: Tensor, bank: Tensor | PackedBank, k: int) -> tuple[Tensor, Tensor]:
    """Keep the `k` query rows with the largest distance to their nearest bank row; otherwise like `mine_top_r`.

    Args:
        query: [Nq, C] abnormal patch features, Nq >= 1.
        bank: [Nb, C] normal patch features, Nb >= 1, or a `PackedBank` of them.
        k: number of rows to keep, in [1, Nq].

    Returns:
        index [k] int64 into `query` and distance [k] float32.

    Raises:
        ValueError: as `min_distance`; also if `k` is outside [1, Nq].
    """
    check_rows(query, bank.rows if isinstance(bank, PackedBank) else bank, "mine_top_k")
    if not 1 <= k <= query.shape[0]:
        raise ValueError(f"mine_top_k: k must lie between 1 and the number of query rows ({query.shape[0]}), got {k}")
    return _mine(query, bank, k)


def _mine(query: Tensor, bank: Tensor | PackedBank, k: int) -> tuple[Tensor, Tensor]:
    mined: tuple[Tensor, Tensor]
    with plain_errors():
        if isinstance(bank, PackedBank):
            mined = torch.ops.monai_wscxr.mine_packed(query, bank.rows, *bank.packed, k)
        else:
            mined = torch.ops.monai_wscxr.mine_top_r(query, bank, k)
    return mined


def _reference(query: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    check_rows(query, bank, "mine_top_r")
    check_count(query, k)
    distance, _ = torch.ops.monai_wscxr.min_distance(query, bank)
    order = torch.sort(distance, descending=True, stable=True).indices[:k]
    return order, distance[order]


def _fake(query: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    check_rows(query, bank, "mine_top_r")
    if isinstance(k, int) and isinstance(query.shape[0], int):  # a check of symbolic sizes would restrict the graph
        check_count(query, k)
    return query.new_empty(k, dtype=torch.int64), query.new_empty(k, dtype=torch.float32)


def _packed_reference(
    query: Tensor, bank: Tensor, codes: Tensor, columns: Tensor, centre: Tensor, row: Tensor, layout: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    return _reference(query, bank, k)


def _packed_fake(
    query: Tensor, bank: Tensor, codes: Tensor, columns: Tensor, centre: Tensor, row: Tensor, layout: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    return _fake(query, bank, k)


_library.define("mine_top_r", "(Tensor query, Tensor bank, SymInt k) -> (Tensor, Tensor)", _reference, _fake)
_library.define_autograd("mine_top_r", no_gradient("mine_top_r"))
_library.define(
    "mine_packed",
    "(Tensor query, Tensor bank, Tensor codes, Tensor columns, Tensor centre, Tensor row, Tensor layout, SymInt k)"
    " -> (Tensor, Tensor)",
    _packed_reference,
    _packed_fake,
)
_library.define_autograd("mine_packed", no_gradient("mine_top_r"))
