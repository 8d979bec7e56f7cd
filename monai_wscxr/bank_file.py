"""Banks in files, and exact search in banks that do not fit in memory.

A bank of rows is one tensor in a safetensors file. Searching it reads block after block into two buffers, one filled while
the other is searched; what is held at once is planned beforehand from a byte budget.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from monai_wscxr.atomic import replacing
from monai_wscxr.errors import InputError
from monai_wscxr.ops import PackedBank, mined_count
from monai_wscxr.ops.checks import check_rows
from monai_wscxr.ops.min_distance import nothing_found, search_block
from monai_wscxr.row_source import FileRows, RowsOnDisk, RowSource

_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_FORMAT = "monai_wscxr packed bank 1"
# What a search holds beside its blocks, see csrc/cpu/search.h. Per bank row of a block: hash and place among the rows that
# are kept; and then either the table in which equal rows are found, or codes, sizes and panel number. Per query: statistics,
# running minimum and candidates.
_HASHED, _TABLE, _CODED = 8 + 8, 32, 16 + 8
_BYTES_PER_QUERY = 48 + 56 + 512
_QUERIES_AT_ONCE = 1 << 15


def save_rows(path: str | Path, rows: Tensor) -> None:
    """Write a bank [N, C] as the tensor `rows` of a safetensors file (to a temporary name, then renamed)."""
    with replacing(Path(path)) as temporary:
        save_file({"rows": rows.contiguous()}, temporary)


def save_packed(path: str | Path, bank: PackedBank) -> None:
    """Write a packed bank, rows included."""
    with replacing(Path(path)) as temporary:
        save_file({f.name: getattr(bank, f.name).contiguous() for f in fields(bank)}, temporary, {"format": _FORMAT})


def load_packed(path: str | Path) -> PackedBank:
    """Read a file of `save_packed`. Its tensors stay in the file until they are used (memory-mapped).

    Results do not depend on the machine that packed it; where that had another instruction set, every search packs anew, so
    pack and save once more here.

    Raises:
        InputError: when the file is something else, damaged or from another version.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            if (file.metadata() or {}).get("format") != _FORMAT:
                raise InputError(f"{path} is no packed bank of this version; pack the rows again and save them")
            return PackedBank(**{f.name: file.get_tensor(f.name) for f in fields(PackedBank)})
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read as a packed bank: {error}") from None


class BankFile(FileRows):
    """Rows [N, C] in a safetensors file, read in blocks and never as a whole.

    Args:
        path: file of `save_rows` or `save_packed`, or any safetensors file with a matrix of that name.
        name: of the tensor.

    Raises:
        InputError: when the file cannot be read or holds no such matrix of floating-point numbers.
    """

    def __init__(self, path: str | Path, name: str = "rows") -> None:
        self.path = Path(path)
        try:
            with open(self.path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if not 0 < length <= 100 << 20:
                    raise ValueError("its header is damaged")
                entry = json.loads(file.read(length))[name]
            begin, end = entry["data_offsets"]
            dtype = _TYPES[entry["dtype"]]
            rows, channels = (int(size) for size in entry["shape"])
            whole = rows * channels * dtype.itemsize
            if min(rows, channels) < 1 or end - begin != whole or self.path.stat().st_size < 8 + length + end:
                raise ValueError("it is shorter than its header says")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}: no bank of rows [N, C] named {name!r} can be read from it ({error}); write one with save_rows"
            ) from None
        matrix = RowsOnDisk(self.path, 8 + length + begin, rows)
        super().__init__([matrix], torch.tensor([[0, 0, rows]]), channels, dtype)


@dataclass(frozen=True)
class SearchPlan:
    """How a bank is searched within a budget.

    Attributes:
        block_rows: bank rows that are held and searched at once (two such blocks are held).
        blocks: number of blocks.
        peak_bytes: resident memory of the search beyond what the process holds before it, the queries not counted.
    """

    block_rows: int
    blocks: int
    peak_bytes: int


def plan_search(n_query: int, source: RowSource | Tensor, budget_bytes: int) -> SearchPlan:
    """Choose the block size for a search of `n_query` rows that holds at most `budget_bytes`.

    Raises:
        InputError: when the budget does not suffice for a block of 32 rows; says how much does.
    """
    rows, channels = source.shape
    coded = -(-channels // 4) * 4
    fixed = n_query * 64 + min(n_query, _QUERIES_AT_ONCE) * (coded + _BYTES_PER_QUERY)
    per_row = 2 * channels * source.dtype.itemsize + _HASHED + max(_TABLE, _CODED + coded)
    block = min(rows, (budget_bytes - fixed) // per_row)
    if block < min(rows, 32):
        need = fixed + 32 * per_row
        raise InputError(
            f"searching {n_query} rows needs at least {need / 1e6:.1f} MB, the budget is {budget_bytes / 1e6:.1f} MB"
        )
    return SearchPlan(block, -(-rows // block), fixed + block * per_row)


def min_distance_streamed(
    query: Tensor, source: RowSource | Tensor, budget_bytes: int = 1 << 30, progress: bool = False
) -> tuple[Tensor, Tensor]:
    """`min_distance` in a bank that lies in a file or in host memory, block by block; the same result.

    Args:
        query: [Nq, C], on the CPU or a GPU; the search runs there.
        source: the bank: rows in files (`BankFile`, `FileRows`), or a tensor [Nb, C] on the CPU.
        budget_bytes: memory for the search, see `plan_search`. On a GPU it is that of the block buffers; what its kernels
            work with comes on top (a quarter of the free memory and at most 3 GiB, or WSCXR_CUDA_BLOCK_BYTES).
        progress: show a bar.

    Returns:
        distance [Nq] float32 and index [Nq] int64.

    Raises:
        ValueError: as `min_distance`.
        InputError: when the budget is too small or the file is damaged.
    """
    check_rows(query, torch.empty(1, source.shape[1], dtype=source.dtype, device=query.device), "min_distance_streamed")
    plan = plan_search(query.shape[0], source, budget_bytes)
    squared, index = nothing_found(query)
    first = 0
    with tqdm(total=source.shape[0], desc="bank rows", unit="row", unit_scale=True, disable=not progress) as bar:
        for block in _blocks(source, plan, query.device):
            squared, index = search_block(query, block, squared, index, first)
            first += block.shape[0]
            bar.update(block.shape[0])
    return squared.sqrt().float(), index


def mine_streamed(
    query: Tensor, source: RowSource | Tensor, r: float, budget_bytes: int = 1 << 30, progress: bool = False
) -> tuple[Tensor, Tensor]:
    """`mine_top_r` against a bank as in `min_distance_streamed`: index [k] int64 and distance [k] float32."""
    k = mined_count(query.shape[0], r)
    distance, _ = min_distance_streamed(query, source, budget_bytes, progress)
    order = torch.sort(distance, descending=True, stable=True).indices[:k]
    return order, distance[order]


def _blocks(source: RowSource | Tensor, plan: SearchPlan, device: torch.device) -> Iterator[Tensor]:
    """The blocks in order, on `device`; the next one is read, and copied to a GPU, while this one is used."""
    on_gpu = device.type == "cuda"
    rows, channels = source.shape
    size = (2, plan.block_rows, channels)
    buffers = torch.empty(size, dtype=source.dtype, pin_memory=on_gpu)
    on_device = torch.empty(size, dtype=source.dtype, device=device) if on_gpu else buffers
    ready: queue.Queue = queue.Queue()
    free: queue.Queue = queue.Queue()
    for number in (0, 1):
        free.put(number)
    stream = torch.cuda.Stream(device) if on_gpu else None

    def fill(first: int, number: int) -> Tensor:
        block = buffers[number, : min(plan.block_rows, rows - first)]
        if not isinstance(source, Tensor):
            source.read(first, block)
        else:
            block.copy_(source[first : first + len(block)])
        if stream is None:
            return block
        with torch.cuda.stream(stream):
            copy = on_device[number, : len(block)]
            copy.copy_(block, non_blocking=True)
        stream.synchronize()  # in this thread: the search goes on meanwhile
        return copy

    def read() -> None:
        try:
            for first in range(0, rows, plan.block_rows):
                number = free.get()
                if number is None:
                    return
                ready.put((number, fill(first, number)))
            ready.put(None)
        except Exception as error:  # handed to the thread that consumes the blocks
            ready.put(error)

    reader = threading.Thread(target=read, name="bank reader", daemon=True)
    reader.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, Exception):
                raise item
            number, block = item
            yield block
            if on_gpu:
                torch.cuda.current_stream(device).synchronize()  # the block's buffer is about to be overwritten
            free.put(number)
    finally:
        free.put(None)
        reader.join()
