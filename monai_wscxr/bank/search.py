"""Exact nearest-row search in a bank: in memory, in files, or divided among several processes.

Only `nearest` and `farthest` distinguish these cases. A bank in files is read in blocks into two buffers, one of which is
filled while the other is searched; their size follows from a memory budget (`plan_search`). Several processes search a part
of the rows each and reduce their results. In all cases the result is that of a float64 search over all rows, bit for bit.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor

from monai_wscxr.bank.rows import RowSource
from monai_wscxr.errors import InputError
from monai_wscxr.ops import min_distance, mine_top_k
from monai_wscxr.ops.checks import check_rows
from monai_wscxr.ops.min_distance import nothing_found, search_block
from monai_wscxr.system.processes import process_count, row_share, together
from monai_wscxr.system.progress import progress_bar

SEARCH_MEMORY = 1 << 30  # bytes; default budget of a search in files
# Working memory beside the blocks, see csrc/cpu/search.h. Per bank row of a block: hash and position among the distinct rows,
# then either the hash table that finds equal rows, or codes, norms and panel number. Per query: statistics, running minimum
# and candidates.
_HASHED, _TABLE, _CODED = 8 + 8, 32, 16 + 8
_BYTES_PER_QUERY = 48 + 56 + 512
_QUERIES_AT_ONCE = 1 << 15
# Early dropping in a streamed bank reads, packs and searches most of it a second time, with fewer queries. From this number of
# queries on, the second reading and packing cost at most a twentieth even where hardly any query can be dropped (CPU,
# docs/performance.md); more than this share of them cannot be kept, because those are searched to the end.
_DROPPING_QUERIES, _DROPPING_SHARE = 8192, 0.34
_FIRST_SHARE = 24  # 1 / 24 of the bank is searched before queries are dropped, as in csrc/cpu/mine_top_r.cpp


def nearest(
    query: Tensor, bank: Tensor | RowSource, memory: int = SEARCH_MEMORY, progress: bool = False
) -> tuple[Tensor, Tensor]:
    """Find the nearest bank row of every query row, S(m) of Eq. 4; the same contract as `ops.min_distance`.

    Args:
        query: [Nq, C] on the CPU or a GPU, where the search runs; with several processes the same in each.
        bank: [Nb, C], a tensor or rows in files (`FileRows`, `BankFile`); with several processes the same in each, which
            searches a part of the rows.
        memory: budget in bytes for a bank that is not on the device of the query, see `plan_search`. On a GPU it covers the
            block buffers; the working memory of the kernels (MONAI_WSCXR_CUDA_BLOCK_BYTES) is added.
        progress: show a progress bar over the bank's rows.

    Returns:
        distance [Nq] float32 (not squared) and index [Nq] int64, the same in every process; ties to the lowest index.

    Raises:
        ValueError: as `ops.min_distance`.
        InputError: when the budget is too small for one block, or a file is damaged.
        LostProcessError: when another process has ended.
    """
    if _in_place(bank, query) and process_count() == 1:
        return min_distance(query, bank)
    first, end = row_share(bank.shape[0])
    squared, index = _least_over_processes(*_search(query, bank, first, end, memory, progress))
    return squared.sqrt().float(), index


def farthest(
    query: Tensor, bank: Tensor | RowSource, k: int, memory: int = SEARCH_MEMORY, progress: bool = False
) -> tuple[Tensor, Tensor]:
    """Find the `k` query rows that are farthest from the bank, Eq. 5; the same contract as `ops.mine_top_k`.

    Rows that cannot be among the farthest are discarded early: in memory always (`ops.mine_top_k`); in files on a CPU where
    it saves more than a second pass over the bank costs, that is with many query rows of which few are kept.

    Args:
        query, bank, memory, progress: see `nearest`; at least one query row.
        k: number of rows to keep, from 1 to Nq.

    Returns:
        index [k] int64 into `query` and distance [k] float32, largest first, ties to the lowest index.

    Raises:
        ValueError: as `ops.mine_top_k`.
        InputError, LostProcessError: see `nearest`.
    """
    if _in_place(bank, query) and process_count() == 1:
        return mine_top_k(query, bank, k)
    if not 1 <= k <= query.shape[0]:
        raise ValueError(f"k must lie between 1 and the number of query rows ({query.shape[0]}), got {k}")
    if query.device.type == "cpu" and len(query) >= _DROPPING_QUERIES and k <= _DROPPING_SHARE * len(query):
        return _farthest_of_many(query, bank, k, memory, progress)
    distance, _ = nearest(query, bank, memory, progress)
    index = torch.sort(distance, descending=True, stable=True).indices[:k]
    return index, distance[index]


def _farthest_of_many(
    query: Tensor, bank: Tensor | RowSource, k: int, memory: int, progress: bool
) -> tuple[Tensor, Tensor]:
    """Do what `farthest` does, in two passes over the bank of which the second has few queries.

    Distances to the nearest row only fall while the bank is read. After a small part of it, the queries that are farthest so
    far are searched to the end; they are more than k, because some of them will turn out to be near. The k-th largest of their
    distances is a lower bound of what is kept, so a query that is nearer than that, then or at any later block, cannot be
    among the k and is dropped. Strictly nearer, in the precision of the result: at the cut the lower index wins.
    """
    first, end = row_share(bank.shape[0])
    middle = min(end, first + max(32, (end - first) // _FIRST_SHARE))
    squared, index = _least_over_processes(*_search(query, bank, first, middle, memory, progress))
    leaders = (
        2 * k if 5 * k <= len(query) else k + k // 2
    )  # least work in simulations on radiographs, docs/performance.md
    leading = torch.sort(squared, descending=True, stable=True).indices[:leaders].sort().values
    found = squared[leading], index[leading]
    lead = _least_over_processes(*_search(query[leading], bank, middle, end, memory, progress, found))[0].sqrt().float()
    cut = lead.topk(k).values[-1]

    others = torch.ones(len(query), dtype=torch.bool)
    others[leading] = False
    rest = others.nonzero()[:, 0]
    found = squared[rest], index[rest]
    left = (
        _least_over_processes(*_search(query[rest], bank, middle, end, memory, progress, found, cut))[0].sqrt().float()
    )

    candidates, distance = torch.cat([leading, rest[left >= cut]]), torch.cat([lead, left[left >= cut]])
    candidates, by_index = candidates.sort()
    order = torch.sort(distance[by_index], descending=True, stable=True).indices[:k]
    return candidates[order], distance[by_index][order]


@dataclass(frozen=True)
class SearchPlan:
    """Block size of a search within a memory budget.

    Attributes:
        block_rows: bank rows per block; two blocks are held.
        blocks: number of blocks.
        peak_bytes: peak memory of the search in bytes, without the queries themselves.
    """

    block_rows: int
    blocks: int
    peak_bytes: int


def plan_search(n_query: int, rows: int, channels: int, dtype: torch.dtype, memory: int = SEARCH_MEMORY) -> SearchPlan:
    """Choose the block size of a search that holds at most `memory` bytes.

    Args:
        n_query: number of query rows.
        rows, channels: shape of the bank.
        dtype: type of the bank's rows.
        memory: budget in bytes.

    Raises:
        InputError: when the budget is too small for blocks of 32 rows; the message names the bytes needed.
    """
    coded = -(-channels // 4) * 4
    fixed = n_query * 64 + min(n_query, _QUERIES_AT_ONCE) * (coded + _BYTES_PER_QUERY)
    per_row = 2 * channels * dtype.itemsize + _HASHED + max(_TABLE, _CODED + coded)
    block = min(rows, (memory - fixed) // per_row)
    if block < min(rows, 32):
        need = fixed + 32 * per_row
        raise InputError(
            f"searching {n_query} rows needs at least {need / 1e6:.1f} MB, the budget is {memory / 1e6:.1f} MB"
        )
    return SearchPlan(block, -(-rows // block), fixed + block * per_row)


def _in_place(bank: Tensor | RowSource, query: Tensor) -> TypeGuard[Tensor]:
    """Return whether the bank is in memory where the search runs, so that nothing needs to be read or copied."""
    return isinstance(bank, Tensor) and bank.device == query.device


def _search(
    query: Tensor,
    bank: Tensor | RowSource,
    first: int,
    end: int,
    memory: int,
    progress: bool,
    found: tuple[Tensor, Tensor] | None = None,
    cut: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Search rows [first, end) of a bank; return the least squared distances [Nq] float64 and their rows [Nq] int64.

    Args:
        query, bank, memory, progress: see `nearest`.
        first, end: rows to search.
        found: result for other rows of the bank, from which the search starts.
        cut: float32 distance; a query found to be nearer than that is not searched any further.
    """
    sample = torch.empty(1, bank.shape[1], dtype=bank.dtype, device=query.device)
    check_rows(query, sample if bank.shape[0] else sample[:0], "nearest")
    squared, index = nothing_found(query) if found is None else (found[0].clone(), found[1].clone())
    if first == end:  # more processes than rows
        return squared, index
    with progress_bar(end - first, "bank rows", progress, unit="row") as bar:
        for start, block in _blocks(query, bank, first, end, memory):
            if cut is None:
                squared, index = search_block(query, block, squared, index, start)
            else:
                active = (squared.sqrt().float() >= cut).nonzero()[:, 0]
                if not len(active):
                    break
                here = search_block(query[active], block, squared[active], index[active], start)
                squared[active], index[active] = here
            bar.update(len(block))
    return squared, index


def _least_over_processes(squared: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Reduce squared distances [Nq] to their minimum over the processes, and rows [Nq] to the lowest one that attains it.

    Distances are compared as float64: rounding them to float32 first would create ties.
    """
    if process_count() == 1:
        return squared, index
    least = squared.clone()
    together(lambda: dist.all_reduce(least, dist.ReduceOp.MIN))
    row = torch.where(squared == least, index, torch.iinfo(torch.int64).max)
    together(lambda: dist.all_reduce(row, dist.ReduceOp.MIN))
    return least, row


def _blocks(query: Tensor, bank: Tensor | RowSource, first: int, end: int, memory: int) -> Iterator[tuple[int, Tensor]]:
    """Yield the first row and the content of each block of rows [first, end), on the device of the query.

    The next block is read, and copied to a GPU, while the current one is searched.
    """
    if _in_place(bank, query):
        yield first, bank[first:end]
        return
    device = query.device
    on_gpu = device.type == "cuda"
    channels = bank.shape[1]
    plan = plan_search(query.shape[0], end - first, channels, bank.dtype, memory)
    size = (2, plan.block_rows, channels)
    buffers = torch.empty(size, dtype=bank.dtype, pin_memory=on_gpu)
    on_device = torch.empty(size, dtype=bank.dtype, device=device) if on_gpu else buffers
    ready: queue.Queue[tuple[int, int, Tensor] | Exception | None] = queue.Queue()
    free: queue.Queue[int | None] = queue.Queue()
    for number in (0, 1):
        free.put(number)
    stream = torch.cuda.Stream(device) if on_gpu else None

    def fill(start: int, number: int) -> Tensor:
        block = buffers[number, : min(plan.block_rows, end - start)]
        if isinstance(bank, Tensor):
            block.copy_(bank[start : start + len(block)])
        else:
            bank.read(start, block)
        if stream is None:
            return block
        with torch.cuda.stream(stream):
            copy = on_device[number, : len(block)]
            copy.copy_(block, non_blocking=True)
        stream.synchronize()  # waits in this thread, while the search continues in the other
        return copy

    def read() -> None:
        try:
            for start in range(first, end, plan.block_rows):
                number = free.get()
                if number is None:
                    return
                ready.put((start, number, fill(start, number)))
            ready.put(None)
        except Exception as error:  # raised again in the thread that consumes the blocks
            ready.put(error)

    reader = threading.Thread(target=read, name="bank reader", daemon=True)
    reader.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, Exception):
                raise item
            start, number, block = item
            yield start, block
            if on_gpu:
                torch.cuda.current_stream(device).synchronize()  # the search is done before the buffer is filled again
            free.put(number)
    finally:
        free.put(None)
        reader.join()
