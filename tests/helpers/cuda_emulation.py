"""The CUDA kernels on the host: calls of the module that in-place builds put beside this file (csrc/cuda/emulation)."""

import importlib

import pytest
import torch

TYPES = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}

try:
    EMULATION = importlib.import_module("tests.helpers._cuda_emulation")
except ModuleNotFoundError:
    EMULATION = None

needs_emulation = pytest.mark.skipif(
    EMULATION is None, reason="the CUDA emulation is not built: python setup.py build_ext --inplace"
)


def described(rows):
    """Return a contiguous matrix the way the emulation takes it: (address, rows, channels, type)."""
    assert rows.is_contiguous()
    return rows.data_ptr(), rows.shape[0], rows.shape[1], TYPES[rows.dtype]


def search(query, bank, **options):
    """Run min_distance; return distance [Nq], index [Nq] and the report of the emulation."""
    query, bank = query.contiguous(), bank.contiguous()
    distance, index = torch.full((len(query),), torch.nan), torch.full((len(query),), -1)
    report = EMULATION.min_distance(described(query), described(bank), distance.data_ptr(), index.data_ptr(), options)
    return distance, index, report


def mine(query, bank, k, **options):
    """Run mine_top_r; return index [k], distance [k] and the report of the emulation."""
    query, bank = query.contiguous(), bank.contiguous()
    distance, index = torch.full((k,), torch.nan), torch.full((k,), -1)
    report = EMULATION.mine_top_r(described(query), described(bank), k, index.data_ptr(), distance.data_ptr(), options)
    return index, distance, report


def search_block(query, block, squared, index, first_row=0, **options):
    """Run min_distance_block; update squared [Nq] and index [Nq] in place."""
    places = squared.data_ptr(), index.data_ptr()
    EMULATION.min_distance_block(described(query), described(block), first_row, *places, options)


def mix(normal, abnormal, seed, offset, low, high, blocks, order=0):
    """Run mixup on `blocks` blocks, in an order of threads given by the seed `order`; return mixed, source and alpha."""
    n = len(normal)
    mixed, source, alpha = torch.full_like(normal, torch.nan), torch.full((n,), -1), torch.full((n,), torch.nan)
    places = mixed.data_ptr(), source.data_ptr(), alpha.data_ptr()
    EMULATION.mixup(described(normal), described(abnormal), seed, offset, low, high, blocks, *places, {"seed": order})
    return mixed, source, alpha


def filtered(query, bank, int8, scale=1.0, group=64, **options):
    """Run the filter alone, without centring; return minima [q, groups, 2], bounds [q, groups] and |q|^2 [q]."""
    groups = -(-len(bank) // group)
    minima, bound = torch.full((len(query), groups, 2), torch.nan), torch.full((len(query), groups), torch.nan).double()
    squared = torch.full((len(query),), torch.nan).double()
    places = minima.data_ptr(), bound.data_ptr(), squared.data_ptr()
    EMULATION.filter(described(query), described(bank), int8, scale, *places, options)
    return minima.numpy(), bound.numpy(), squared.numpy()
