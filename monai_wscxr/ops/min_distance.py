"""Nearest-row search: the exact L2 distance of each query row to a bank, and the row that attains it (Eq. 4).

The reference filters candidates and then evaluates them exactly. A float32 matrix product gives an approximate squared
distance of every pair and a rigorous bound of its error; pairs that the bound cannot exclude are evaluated again in
float64 from the stored values. The result is that of a float64 search, at about the cost of one float32 matrix product.
The Nq x Nb matrix never exists as a whole, only blocks of `_QUERY_BLOCK` x `_BANK_BLOCK`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from monai_wscxr.ops import _library
from monai_wscxr.ops.checks import (
    NO_ROW,
    check_finite,
    check_found,
    check_rows,
    check_start,
    no_gradient,
    plain_errors,
)
from monai_wscxr.ops.packed_bank import PackedBank

_QUERY_BLOCK = 1024
_BANK_BLOCK = 8192
_PILE_LIMIT = 1 << 21  # candidate pairs held before they are evaluated
_REFINE_ELEMENTS = 1 << 23  # float64 numbers held while candidates are evaluated


def min_distance(query: Tensor, bank: Tensor | PackedBank) -> tuple[Tensor, Tensor]:
    """Compute the distance of every query row to its nearest bank row, S(m) of Eq. 4.

    The result is exact for the stored values: each distance is evaluated in float64 and rounded once to float32, and the
    index is the row that attains the float64 minimum. Ties go to the lowest index. A distance beyond the range of float32
    is infinity; where even the squares overflow float64 (differences above about 1e154), rows tie at infinity. Has no
    gradient.

    Args:
        query: [Nq, C] float64, float32, float16 or bfloat16; Nq may be 0.
        bank: [Nb, C], Nb >= 1, on the same device; its floating-point type may differ. A `PackedBank` saves the
            preparation if one bank is searched several times.

    Returns:
        distance [Nq] float32 (not squared) and index [Nq] int64 into `bank`.

    Raises:
        ValueError: on wrong ranks, types, widths or devices, an empty bank, or NaN or Inf in either input.

    Example:
        >>> bank = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
        >>> distance, index = min_distance(torch.tensor([[3.0, 3.0], [0.0, 0.0]]), bank)
        >>> distance.tolist(), index.tolist()
        ([1.0, 0.0], [1, 0])
    """
    if isinstance(bank, PackedBank):
        squared, index = search_packed(query, bank)
        return squared.sqrt().float(), index
    check_rows(query, bank, "min_distance")
    found: tuple[Tensor, Tensor]
    with plain_errors():
        found = torch.ops.monai_wscxr.min_distance(query, bank)
    return found


def search_packed(query: Tensor, bank: PackedBank) -> tuple[Tensor, Tensor]:
    """Search a packed bank; return the squared distances [Nq] float64 and the rows [Nq] int64."""
    check_rows(query, bank.rows, "min_distance")
    found: tuple[Tensor, Tensor]
    with plain_errors():
        found = torch.ops.monai_wscxr.search_packed(query, bank.rows, *bank.packed, *nothing_found(query), 0)
    return found


def search_block(
    query: Tensor, block: Tensor, squared: Tensor, index: Tensor, first_row: int = 0
) -> tuple[Tensor, Tensor]:
    """Search one block of a larger bank, starting from the result for the blocks before it.

    Blocks may come in any order. The first one starts from `nothing_found`.

    Args:
        query: [Nq, C].
        block: [Nb, C], Nb >= 1, on the same device.
        squared: [Nq] float64, smallest squared distances so far.
        index: [Nq] int64, the rows that attain them; 2^63 - 1 where there is none.
        first_row: index of the block's first row in the larger bank.

    Returns:
        squared [Nq] float64 and index [Nq] int64 over all rows so far; ties go to the lowest row.

    Raises:
        ValueError: as `min_distance`; also if `squared` or `index` has another type, shape or device, or rows of the block
            have numbers outside [0, 2^63 - 1).
        RuntimeError: if `squared` and `index` hold values that no search gives (on the CPU).
    """
    check_rows(query, block, "min_distance")
    check_found(query, block, squared, index, first_row, "search_block")
    found: tuple[Tensor, Tensor]
    with plain_errors():
        found = torch.ops.monai_wscxr.search_block(query, block, squared, index, first_row)
    return found


def nothing_found(query: Tensor) -> tuple[Tensor, Tensor]:
    """Return the start of `search_block`: infinite squared distances [Nq] float64, and index 2^63 - 1 [Nq] int64."""
    n = query.shape[0]
    return query.new_full((n,), torch.inf, dtype=torch.float64), query.new_full((n,), NO_ROW, dtype=torch.int64)


def _filter_dtype(query: Tensor, bank: Tensor, largest: float) -> torch.dtype:
    """Choose the type of the filter: float32 if its error bound holds, otherwise float64.

    The bound does not hold for float64 data, extreme norms, and products that torch is allowed to compute with reduced
    precision.
    """
    double = torch.float64 in (query.dtype, bank.dtype) or not 1e-10 < largest < 1e15
    # These also reflect the older switches (set_float32_matmul_precision, allow_tf32), which raise an error when read
    # after both kinds have been set.
    switches = {
        torch.backends.cuda.matmul.fp32_precision,
        torch.backends.mkldnn.matmul.fp32_precision,  # type: ignore[attr-defined]
    }
    return torch.float64 if double or switches - {"none", "ieee"} else torch.float32


def _reference(query: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
    check_rows(query, bank, "min_distance")
    squared, index = _search(query, bank)
    return squared.sqrt().float(), index


def _search(query: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
    """Find the smallest squared distances [Nq] float64 and the rows [Nq] int64 that attain them."""
    check_finite(query, "query")
    check_finite(bank, "bank")
    n_query = query.shape[0]
    least = torch.empty(n_query, dtype=torch.float64, device=query.device)
    index = torch.empty(n_query, dtype=torch.int64, device=query.device)
    if n_query == 0:
        return least, index
    # Translation preserves distances, and centring makes the norms and therefore the bound small.
    centre = torch.zeros(bank.shape[1], dtype=torch.float64, device=bank.device)
    for block in torch.split(bank, _BANK_BLOCK):
        centre += block.double().sum(0) / bank.shape[0]
    largest = max(float((rows.double() - centre).norm(dim=1).max()) for rows in torch.split(query, _QUERY_BLOCK))
    largest = max(
        largest, *(float((rows.double() - centre).norm(dim=1).max()) for rows in torch.split(bank, _BANK_BLOCK))
    )
    dtype = _filter_dtype(query, bank, largest)
    # under autocast, the product would be computed in half precision, for which the bound does not hold
    with torch.autocast(query.device.type, enabled=False):
        for start in range(0, n_query, _QUERY_BLOCK):
            rows = slice(start, start + _QUERY_BLOCK)
            least[rows], index[rows] = _search_block(query[rows], bank, centre, dtype)
    return least, index


def _search_block(query: Tensor, bank: Tensor, centre: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Find exact squared distances (float64) and indices for one block of queries."""
    best = _Best(query, bank)
    q = (query.double() - centre).to(dtype)
    q_norm = q.double().norm(dim=1)
    upper = torch.full_like(q_norm, torch.inf)  # upper bound of the smallest squared distance
    pile: list[tuple[Tensor, Tensor, Tensor]] = []  # candidate pairs: query row, bank row, lower bound
    held = 0
    for start in range(0, bank.shape[0], _BANK_BLOCK):
        b = (bank[start : start + _BANK_BLOCK].double() - centre).to(dtype)
        b_norm = b.double().norm(dim=1)
        bound = _error_bound(q_norm, b_norm.max(), q.shape[1], dtype)
        # |q - b|^2 - |q|^2 = |b|^2 - 2 q.b: one product, no other pass over the block
        partial = torch.addmm(b_norm.square().to(dtype), q, b.T, alpha=-2)
        offset = q_norm.square() - bound
        upper = torch.minimum(upper, partial.amin(dim=1).double() + q_norm.square() + bound)
        # rounding the threshold to the type of the filter must not exclude a pair: take the next larger number
        threshold = torch.nextafter((upper - offset).to(dtype), torch.full_like(upper, torch.inf).to(dtype))
        # "not greater" instead of "at most": where norms overflow, the bound is NaN and excludes nothing
        rows, columns = torch.nonzero(~(partial > threshold[:, None]), as_tuple=True)
        pile.append((rows, columns + start, partial[rows, columns].double() + offset[rows]))
        held += rows.numel()
        if held > _PILE_LIMIT:
            upper = torch.minimum(upper, best.refine(pile, upper))
            pile, held = [], 0
    best.refine(pile, upper)
    return best.squared, best.index


def _error_bound(q_norm: Tensor, b_norm: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """Bound |approximate - exact| squared distance of centred rows with these norms, per query.

    The error has three sources: the product, whose relative error in any order of additions is at most
    gamma = C u / (1 - C u) times |q||b| (Higham, Accuracy and Stability of Numerical Algorithms, 3.1); rounding of norms
    and sums; and rounding of the centred rows. Each is at most a multiple of u (|q| + |b|)^2. The constants are doubled.
    """
    unit = torch.finfo(dtype).eps / 2
    gamma = channels * unit / (1 - channels * unit)
    tiny = torch.finfo(dtype).tiny * (4 * channels + 8)  # products that underflow
    return (gamma + 16 * unit) * (q_norm + b_norm).square() + tiny


class _Best:
    """Exact minimum so far of one block of queries."""

    def __init__(self, query: Tensor, bank: Tensor) -> None:
        self.query, self.bank = query, bank
        self.squared = torch.full((query.shape[0],), torch.inf, dtype=torch.float64, device=query.device)
        self.index = torch.full((query.shape[0],), bank.shape[0], dtype=torch.int64, device=query.device)

    def refine(self, pile: list[tuple[Tensor, Tensor, Tensor]], upper: Tensor) -> Tensor:
        """Evaluate the pairs that `upper` does not exclude in float64; return the exact squared minima so far."""
        if not pile:
            return self.squared
        rows, columns, lower = (torch.cat(parts) for parts in zip(*pile, strict=True))
        keep = ~(lower > upper[rows])
        rows, columns = rows[keep], columns[keep]
        step = max(1, _REFINE_ELEMENTS // self.query.shape[1])
        for r, c in zip(torch.split(rows, step), torch.split(columns, step), strict=True):
            exact = (self.query[r].double() - self.bank[c].double()).square().sum(dim=1)
            before = self.squared
            self.squared = before.scatter_reduce(0, r, exact, "amin")
            # an index found earlier remains a candidate only where the minimum has not decreased
            contender = torch.where(self.squared < before, self.bank.shape[0], self.index)
            attains = exact == self.squared[r]
            self.index = contender.scatter_reduce(0, r[attains], c[attains], "amin")
        return self.squared


def _fake(query: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
    check_rows(query, bank, "min_distance")
    return query.new_empty(query.shape[0], dtype=torch.float32), query.new_empty(query.shape[0], dtype=torch.int64)


def _packed_reference(
    query: Tensor,
    bank: Tensor,
    codes: Tensor,
    columns: Tensor,
    centre: Tensor,
    row: Tensor,
    layout: Tensor,
    squared: Tensor,
    index: Tensor,
    first_row: int,
) -> tuple[Tensor, Tensor]:
    """Search the rows; the reference does not need the codes."""
    return _block_reference(query, bank, squared, index, first_row)


def _block_reference(
    query: Tensor, bank: Tensor, squared: Tensor, index: Tensor, first_row: int
) -> tuple[Tensor, Tensor]:
    check_rows(query, bank, "search_block")
    check_found(query, bank, squared, index, first_row, "search_block")
    check_start(squared, index, "search_block")
    here, at = _search(query, bank)
    better = (here < squared) | ((here == squared) & (at + first_row < index))
    return torch.where(better, here, squared), torch.where(better, at + first_row, index)


def _packed_fake(
    query: Tensor,
    bank: Tensor,
    codes: Tensor,
    columns: Tensor,
    centre: Tensor,
    row: Tensor,
    layout: Tensor,
    squared: Tensor,
    index: Tensor,
    first_row: int,
) -> tuple[Tensor, Tensor]:
    return _block_fake(query, bank, squared, index, first_row)


def _block_fake(query: Tensor, bank: Tensor, squared: Tensor, index: Tensor, first_row: int) -> tuple[Tensor, Tensor]:
    check_rows(query, bank, "search_block")
    check_found(query, bank, squared, index, first_row, "search_block")
    return squared.new_empty(squared.shape), index.new_empty(index.shape)


_library.define("min_distance", "(Tensor query, Tensor bank) -> (Tensor, Tensor)", _reference, _fake)
_library.define_autograd("min_distance", no_gradient("min_distance"))
_library.define(
    "search_packed",
    "(Tensor query, Tensor bank, Tensor codes, Tensor columns, Tensor centre, Tensor row, Tensor layout,"
    " Tensor squared, Tensor index, SymInt first_row) -> (Tensor, Tensor)",
    _packed_reference,
    _packed_fake,
)
_library.define_autograd("search_packed", no_gradient("min_distance"))
_library.define(
    "search_block",
    "(Tensor query, Tensor bank, Tensor squared, Tensor index, SymInt first_row) -> (Tensor, Tensor)",
    _block_reference,
    _block_fake,
)
_library.define_autograd("search_block", no_gradient("min_distance"))
