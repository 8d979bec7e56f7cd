"""Nearest-row search: for each query row the exact L2 distance to a bank and the row that attains it (Eq. 4).

The reference follows filter, certify, refine. A float32 matrix product gives an approximate squared distance of every
pair together with a rigorous error bound; pairs that the bound cannot rule out are evaluated again in float64 from the
stored values. The result is therefore that of a float64 search at about the cost of one float32 matrix product, and
the Nq x Nb matrix is never held: blocks of `_QUERY_BLOCK` x `_BANK_BLOCK` are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from monai_wscxr.ops import _library

_QUERY_BLOCK = 1024
_BANK_BLOCK = 8192
_PILE_LIMIT = 1 << 21  # candidate pairs that are kept before they are refined
_REFINE_ELEMENTS = 1 << 23  # float64 numbers held while pairs are refined
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def min_distance(query: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
    """Distance of every query row to its nearest bank row, S(m) of Eq. 4.

    Exact with respect to the stored values: each reported distance is that of a float64 evaluation, rounded once to
    float32, and the index is the row that attains the float64 minimum; ties go to the lowest index. A distance beyond
    the range of float32 is reported as infinity; where even the squares overflow float64 (differences above about
    1e154), rows tie at infinity. Has no gradient.

    Args:
        query: [Nq, C], float64, float32, float16 or bfloat16; Nq may be 0.
        bank: [Nb, C], Nb >= 1, on the same device; its floating type may differ.

    Returns:
        distance [Nq] float32 (not squared) and index [Nq] int64 into `bank`.

    Raises:
        ValueError: on wrong ranks, types, widths or devices, an empty bank, or a NaN or Inf in either input.
    """
    check_rows(query, bank, "min_distance")
    return torch.ops.monai_wscxr.min_distance(query, bank)


def check_rows(query: Tensor, bank: Tensor, operator: str) -> None:
    """Check what all search operators ask of their two row matrices; raise ValueError with the remedy otherwise."""
    for name, rows in (("query", query), ("bank", bank)):
        if rows.ndim != 2:
            raise ValueError(f"{operator}: {name} must be a matrix of rows [N, C], got shape {tuple(rows.shape)}")
        if rows.dtype not in _DTYPES:
            raise ValueError(f"{operator}: {name} must be a floating-point tensor, got {rows.dtype}; convert it first")
    if query.shape[1] != bank.shape[1] or query.shape[1] == 0:
        raise ValueError(
            f"{operator}: query and bank must have the same number of channels (at least 1), "
            f"got {query.shape[1]} and {bank.shape[1]}; were they made with the same backbone and layers?"
        )
    if query.device != bank.device:
        raise ValueError(f"{operator}: query is on {query.device} but bank on {bank.device}; move one of them")
    if bank.shape[0] == 0:
        raise ValueError(f"{operator}: the bank is empty, so nothing can be nearest; fill it with normal patches first")


def _check_finite(query: Tensor, bank: Tensor) -> None:
    for name, rows in (("query", query), ("bank", bank)):
        if not bool(torch.isfinite(rows).all()):
            bad = int((~torch.isfinite(rows)).any(dim=1).sum())
            raise ValueError(
                f"{name} holds NaN or Inf in {bad} of {rows.shape[0]} rows; distances to them mean nothing. "
                "Look for damaged images or a broken weights file"
            )


def _filter_dtype(query: Tensor, bank: Tensor, largest: float) -> torch.dtype:
    """float32 where its bound is rigorous, float64 elsewhere (float64 data, extreme norms, reduced-precision products)."""
    double = torch.float64 in (query.dtype, bank.dtype) or not 1e-10 < largest < 1e15
    # the old switches (set_float32_matmul_precision, allow_tf32) show here too; asking them raises once both were used
    switches = {
        torch.backends.cuda.matmul.fp32_precision,
        torch.backends.mkldnn.matmul.fp32_precision,  # type: ignore[attr-defined]
    }
    return torch.float64 if double or switches - {"none", "ieee"} else torch.float32


def _reference(query: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
    _check_finite(query, bank)
    n_query = query.shape[0]
    distance = torch.empty(n_query, dtype=torch.float32, device=query.device)
    index = torch.empty(n_query, dtype=torch.int64, device=query.device)
    if n_query == 0:
        return distance, index
    # Distances do not change under translation; centring makes the norms, and with them the bound, small.
    centre = torch.zeros(bank.shape[1], dtype=torch.float64, device=bank.device)
    for block in bank.split(_BANK_BLOCK):
        centre += block.double().sum(0) / bank.shape[0]
    largest = max(float((rows.double() - centre).norm(dim=1).max()) for rows in query.split(_QUERY_BLOCK))
    largest = max(largest, *(float((rows.double() - centre).norm(dim=1).max()) for rows in bank.split(_BANK_BLOCK)))
    dtype = _filter_dtype(query, bank, largest)
    # autocast would compute the product in half precision, outside the bound
    with torch.autocast(query.device.type, enabled=False):
        for start in range(0, n_query, _QUERY_BLOCK):
            rows = slice(start, start + _QUERY_BLOCK)
            squared, index[rows] = _search_block(query[rows], bank, centre, dtype)
            distance[rows] = squared.sqrt().float()
    return distance, index


def _search_block(query: Tensor, bank: Tensor, centre: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Exact squared distance (float64) and index for one block of queries."""
    best = _Best(query, bank)
    q = (query.double() - centre).to(dtype)
    q_norm = q.double().norm(dim=1)
    upper = torch.full_like(q_norm, torch.inf)  # a certified upper bound of the least squared distance
    pile: list[tuple[Tensor, Tensor, Tensor]] = []  # candidate pairs: query row, bank row, certified lower bound
    held = 0
    for start in range(0, bank.shape[0], _BANK_BLOCK):
        b = (bank[start : start + _BANK_BLOCK].double() - centre).to(dtype)
        b_norm = b.double().norm(dim=1)
        bound = _error_bound(q_norm, b_norm.max(), q.shape[1], dtype)
        # |q - b|^2 - |q|^2 = |b|^2 - 2 q.b : one product, no other pass over the block
        partial = torch.addmm(b_norm.square().to(dtype), q, b.T, alpha=-2)
        offset = q_norm.square() - bound
        upper = torch.minimum(upper, partial.amin(dim=1).double() + q_norm.square() + bound)
        # rounding the threshold to the filter's type must not lose a pair: go to the next representable number
        threshold = torch.nextafter((upper - offset).to(dtype), torch.full_like(upper, torch.inf).to(dtype))
        # "not greater" rather than "at most": where norms overflow, the bound is NaN and rules nothing out
        rows, columns = torch.nonzero(~(partial > threshold[:, None]), as_tuple=True)
        pile.append((rows, columns + start, partial[rows, columns].double() + offset[rows]))
        held += rows.numel()
        if held > _PILE_LIMIT:
            upper = torch.minimum(upper, best.refine(pile, upper))
            pile, held = [], 0
    best.refine(pile, upper)
    return best.squared, best.index


def _error_bound(q_norm: Tensor, b_norm: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """Bound of |approximate - exact| squared distance for centred rows of these norms, per query.

    Three sources: the product accumulates at most gamma = C u / (1 - C u) relative to |q||b| whatever its order
    (Higham, Accuracy and Stability of Numerical Algorithms, 3.1), rounding of norms and sums, and rounding of the
    centred rows themselves; each is at most a multiple of u (|q| + |b|)^2. The constants are doubled.
    """
    unit = torch.finfo(dtype).eps / 2
    gamma = channels * unit / (1 - channels * unit)
    tiny = torch.finfo(dtype).tiny * (4 * channels + 8)  # products that underflow
    return (gamma + 16 * unit) * (q_norm + b_norm).square() + tiny


class _Best:
    """Running exact minimum of one query block."""

    def __init__(self, query: Tensor, bank: Tensor) -> None:
        self.query, self.bank = query, bank
        self.squared = torch.full((query.shape[0],), torch.inf, dtype=torch.float64, device=query.device)
        self.index = torch.full((query.shape[0],), bank.shape[0], dtype=torch.int64, device=query.device)

    def refine(self, pile: list[tuple[Tensor, Tensor, Tensor]], upper: Tensor) -> Tensor:
        """Evaluate in float64 the pairs that `upper` does not rule out; return the exact squared minima so far."""
        if not pile:
            return self.squared
        rows, columns, lower = (torch.cat(parts) for parts in zip(*pile, strict=True))
        keep = ~(lower > upper[rows])
        rows, columns = rows[keep], columns[keep]
        step = max(1, _REFINE_ELEMENTS // self.query.shape[1])
        for r, c in zip(rows.split(step), columns.split(step), strict=True):
            exact = (self.query[r].double() - self.bank[c].double()).square().sum(dim=1)
            before = self.squared
            self.squared = before.scatter_reduce(0, r, exact, "amin")
            # an index found earlier stays a contender only where the minimum did not fall
            contender = torch.where(self.squared < before, self.bank.shape[0], self.index)
            attains = exact == self.squared[r]
            self.index = contender.scatter_reduce(0, r[attains], c[attains], "amin")
        return self.squared


def _fake(query: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
    return query.new_empty(query.shape[0], dtype=torch.float32), query.new_empty(query.shape[0], dtype=torch.int64)


def no_gradient(operator: str):
    """A backward formula that says why there is none."""

    def backward(ctx, *grads):
        raise RuntimeError(
            f"{operator} has no gradient: the nearest row changes by jumps. Detach its inputs, "
            "or compute the distance to the returned rows with ordinary tensor operations"
        )

    return backward


_library.define("min_distance", "(Tensor query, Tensor bank) -> (Tensor, Tensor)", _reference, _fake)
torch.library.register_autograd("monai_wscxr::min_distance", no_gradient("min_distance"), lib=_library._LIBRARY)
