"""Direct calls of the operators with malformed arguments: exceptions, never a crash, and never a wrong result."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from monai_wscxr.ops import PackedBank, backend, min_distance, mixup
from monai_wscxr.ops.min_distance import nothing_found

OPS = torch.ops.monai_wscxr
ROOT = Path(__file__).parents[2]
compiled = backend("min_distance").name == "compiled"
IMPLEMENTATIONS = [
    "reference",
    pytest.param("kernel", marks=pytest.mark.skipif(not compiled, reason="no compiled kernel for the CPU")),
]
QUERY, BANK = torch.randn(5, 3), torch.randn(40, 3)


@pytest.fixture(params=IMPLEMENTATIONS)
def operator(request):
    """Return a function that calls an operator by name: its compiled kernel or its reference."""
    key = torch._C.DispatchKey.CPU if request.param == "kernel" else torch._C.DispatchKey.CompositeExplicitAutograd

    def call(name, *arguments):
        return getattr(OPS, name).default._op_dk(key, *arguments)

    return call


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_random_malformed_calls_end_in_exceptions(implementation, tmp_path):
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.ops.malformed_calls", "4500", "7", implementation]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env={**os.environ})
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.endswith("calls 4500\n")
    for name in ("min_distance", "mine_packed", "search_block", "search_packed", "mixup_into", "coreset", "pack_bank"):
        assert f"{name} returned" in run.stdout
        assert f"{name} RuntimeError" in run.stdout or f"{name} ValueError" in run.stdout


def found(squared=0.5, row=3):
    return torch.full((5,), squared, dtype=torch.float64), torch.full((5,), row)


PACKED = PackedBank.pack(BANK).packed
MALFORMED = {
    "query_rank": ("min_distance", (QUERY[0], BANK)),
    "query_type": ("min_distance", (QUERY.int(), BANK)),
    "width": ("min_distance", (QUERY[:, :2], BANK)),
    "empty_bank": ("min_distance", (QUERY, BANK[:0])),
    "no_channels": ("min_distance", (QUERY[:, :0], BANK[:, :0])),
    "mine_width": ("mine_top_r", (QUERY, BANK[:, :2], 2)),
    "mine_negative": ("mine_top_r", (QUERY, BANK, -1)),
    "mine_too_many": ("mine_top_r", (QUERY, BANK, 6)),
    "mine_empty_bank": ("mine_top_r", (QUERY, BANK[:0], 0)),
    "mine_packed_width": ("mine_packed", (QUERY[:, :2], BANK, *PACKED, 2)),
    "mine_packed_negative": ("mine_packed", (QUERY, BANK, *PACKED, -5)),
    "packed_width": ("search_packed", (QUERY, BANK[:, :2], *PACKED, *nothing_found(QUERY), 0)),
    "squared_short": ("search_packed", (QUERY, BANK, *PACKED, *nothing_found(QUERY[:3]), 0)),
    "squared_type": ("search_block", (QUERY, BANK, found()[0].float(), found()[1], 0)),
    "squared_rank": ("search_block", (QUERY, BANK, found()[0][None], found()[1], 0)),
    "index_type": ("search_block", (QUERY, BANK, found()[0], found()[1].int(), 0)),
    "index_long": ("search_block", (QUERY, BANK, found()[0], torch.zeros(6, dtype=torch.int64), 0)),
    "squared_nan": ("search_block", (QUERY, BANK, *found(squared=float("nan")), 0)),
    "squared_negative": ("search_block", (QUERY, BANK, *found(squared=-1.0), 0)),
    "row_negative": ("search_block", (QUERY, BANK, *found(row=-1), 0)),
    "distance_without_row": ("search_block", (QUERY, BANK, *found(row=2**63 - 1), 0)),
    "first_row_negative": ("search_block", (QUERY, BANK, *found(), -1)),
    "first_row_overflow": ("search_block", (QUERY, BANK, *found(), 2**63 - 41)),
    "pack_empty": ("pack_bank", (BANK[:0],)),
    "pack_no_channels": ("pack_bank", (BANK[:, :0],)),
    "mixup_width": ("mixup", (QUERY, BANK[:, :2], 0, 0, 0.1, 1.0)),
    "mixup_no_abnormal": ("mixup", (QUERY, BANK[:0], 0, 0, 0.1, 1.0)),
    "mixup_type": ("mixup", (QUERY, BANK.half(), 0, 0, 0.1, 1.0)),
    "mixup_rank": ("mixup", (QUERY[0], BANK, 0, 0, 0.1, 1.0)),
    "mixup_seed": ("mixup", (QUERY, BANK, -1, 0, 0.1, 1.0)),
    "mixup_alpha": ("mixup", (QUERY, BANK, 0, 0, float("nan"), 1.0)),
    "into_shape": ("mixup_into", (QUERY, BANK, 0, 0, 0.1, 1.0, torch.empty(4, 3))),
    "into_strided": ("mixup_into", (QUERY, BANK, 0, 0, 0.1, 1.0, torch.empty(3, 5).T)),
    "into_type": ("mixup_into", (QUERY, BANK, 0, 0, 0.1, 1.0, torch.empty(5, 3).double())),
    "into_itself": ("mixup_into", (QUERY, BANK, 0, 0, 0.1, 1.0, QUERY)),
    "into_abnormal": ("mixup_into", (QUERY, BANK, 0, 0, 0.1, 1.0, BANK[2:7])),
    "coreset_count": ("coreset", (BANK, 41, 0)),
    "coreset_none": ("coreset", (BANK, 0, 0)),
    "coreset_start": ("coreset", (BANK, 3, 40)),
    "coreset_start_negative": ("coreset", (BANK, 3, -1)),
    "coreset_no_channels": ("coreset", (BANK[:, :0], 3, 0)),
    "coreset_type": ("coreset", (BANK.half(), 3, 0)),
    "coreset_nan": ("coreset", (torch.full((9, 2), torch.nan), 3, 0)),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_every_operator_checks_its_arguments_itself(operator, case):
    name, arguments = MALFORMED[case]
    with pytest.raises(
        (ValueError, RuntimeError), match=r"\b(min_distance|mine_\w+|search_\w+|PackedBank|mixup|coreset): "
    ):
        operator(name, *arguments)


@pytest.mark.parametrize("name", ["min_distance", "pack_bank", "mixup", "coreset"])
def test_sparse_rows_are_refused(name):
    rows = BANK.to_sparse()
    arguments = {"min_distance": (rows, rows), "pack_bank": (rows,), "mixup": (rows, rows, 0, 0, 0.1, 1.0)}
    with pytest.raises(ValueError, match=r"\b(min_distance|PackedBank|mixup|coreset): "):
        getattr(OPS, name)(*arguments.get(name, (rows, 3, 0)))


@pytest.mark.parametrize("shift", [-5, -1, 0, 1, 5, 11])
@pytest.mark.parametrize("role", ["normal", "abnormal"])
def test_a_result_that_overlaps_with_the_rows_is_refused(operator, role, shift):
    memory, other = torch.randn(40), torch.randn(4, 3)
    rows, out = memory[12:24].view(4, 3), memory[12 + shift : 24 + shift].view(4, 3)
    pair = (rows, other) if role == "normal" else (other, rows)
    before = memory.clone()
    with pytest.raises((ValueError, RuntimeError), match="out shares memory"):
        operator("mixup_into", *pair, 3, 0, 0.1, 1.0, out)
    with pytest.raises(ValueError, match="out shares memory"):
        mixup(*pair, 3, out=out)
    assert torch.equal(memory, before)


@pytest.mark.parametrize("shift", [-12, 12, 13])
def test_a_result_beside_the_rows_is_written(operator, shift):
    memory, other = torch.randn(60), torch.randn(4, 3)
    rows, out = memory[24:36].view(4, 3), memory[24 + shift : 36 + shift].view(4, 3)
    expected = mixup(rows, other, 3)[0]
    operator("mixup_into", rows, other, 3, 0, 0.1, 1.0, out)
    assert torch.equal(out, expected)


def damaged(part, change):
    """Return a packed bank with one tensor changed."""
    packed = [tensor.clone() for tensor in PACKED]
    packed[part] = change(packed[part])
    return PackedBank(BANK, *packed)


def changed(place, value):
    def change(tensor):
        tensor.flatten()[place] = value
        return tensor

    return change


CODES, COLUMNS, CENTRE, ROW, LAYOUT = range(5)
DAMAGES = {
    "codes_type": (CODES, lambda t: t.int()),
    "codes_strided": (CODES, lambda t: t.repeat_interleave(2, -1)[..., ::2]),
    "codes_expanded": (CODES, lambda t: t[:1, :1, :1].expand(t.shape)),
    "columns_short": (COLUMNS, lambda t: t[:1]),
    "columns_double": (COLUMNS, lambda t: t.double()),
    "columns_nan": (COLUMNS, changed(5, float("nan"))),
    "columns_unused": (COLUMNS, changed(4, float("inf"))),
    "residual_negative": (COLUMNS, changed(2 * 32 + 3, -1e30)),
    "centre_nan": (CENTRE, changed(0, float("nan"))),
    "centre_float": (CENTRE, lambda t: t.float()),
    "row_negative": (ROW, changed(3, -7)),
    "row_beyond": (ROW, changed(3, 40)),
    "row_twice": (ROW, changed(3, 2)),
    "row_missing": (ROW, changed(3, -1)),
    "row_type": (ROW, lambda t: t.int()),
    "unique_small": (LAYOUT, changed(3, 1)),
    "unique_large": (LAYOUT, changed(3, 2**62)),
    "exponent": (LAYOUT, changed(2, 2**40)),
    "layout_short": (LAYOUT, lambda t: t[:2]),
    "layout_type": (LAYOUT, lambda t: t.float()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_packed_bank_with_one_damaged_tensor_gives_the_exact_result(damage):
    assert all(map(torch.equal, min_distance(QUERY, damaged(*DAMAGES[damage])), min_distance(QUERY, BANK)))
