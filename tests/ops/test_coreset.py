"""The k-centre greedy operator against a naive float64 search, on difficult data."""

import importlib

import numpy as np
import pytest
import torch

from monai_wscxr.ops import coreset

module = importlib.import_module("monai_wscxr.ops.coreset")


def naive(rows, count, start):
    """Choose with numpy; compute all distances again for every choice."""
    x = rows.double().numpy()
    chosen = [start]
    while len(chosen) < count:
        nearest = np.min([((x - x[c]) ** 2).sum(axis=1) for c in chosen], axis=0)
        nearest[chosen] = -1
        chosen.append(int(np.argmax(nearest)))  # the first of equal maxima
    return torch.tensor(chosen)


def spread(n, c, seed=0):
    return torch.relu(torch.randn(n, c, generator=torch.Generator().manual_seed(seed)))


CASES = {
    "spread": (spread(300, 37), 60, 7),
    "one channel": (spread(50, 1), 20, 0),
    "channels of whole vectors": (spread(120, 64, 1), 40, 3),
    "many ties": (torch.randint(0, 3, (200, 3), generator=torch.Generator().manual_seed(0)).float(), 200, 5),
    "copies": (spread(20, 8).repeat(5, 1), 100, 50),
    "constant": (torch.ones(30, 4), 30, 12),
    "far from the origin": (1000 + spread(200, 16, 2), 60, 0),
    "beyond what float32 resolves": (1e7 + torch.randint(0, 5, (150, 9)).float(), 50, 1),
    "tiny": (1e-22 * spread(100, 9, 3), 30, 4),
    "huge": (1e25 * spread(100, 9, 4), 30, 4),
    "near-copies": (spread(10, 20, 5).repeat(20, 1) + 1e-5 * spread(200, 20, 6), 80, 0),
    "all rows": (spread(40, 5, 7), 40, 39),
    "one choice": (spread(40, 5), 1, 8),
    "a single row": (spread(1, 5), 1, 0),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("implementation", [coreset, module._reference], ids=["operator", "reference"])
@pytest.mark.parametrize("case", CASES)
def test_it_chooses_what_a_naive_search_chooses(case, implementation, dtype):
    rows, count, start = CASES[case]
    rows = rows.to(dtype)
    assert implementation(rows, count, start).tolist() == naive(rows, count, start).tolist()


def test_float64_rows_that_float32_cannot_tell_apart():
    rows = 1.0 + 1e-10 * spread(60, 7).double()
    assert coreset(rows, 30, 2).tolist() == naive(rows, 30, 2).tolist()


def test_more_rows_than_one_batch_and_more_choices_than_one_tile():
    rows = spread(3000, 24, 9)
    assert torch.equal(coreset(rows, 500, 11), module._reference(rows, 500, 11))


def test_a_smaller_coreset_is_the_beginning_of_a_larger_one():
    rows = spread(400, 10)
    assert coreset(rows, 20, 5).tolist() == coreset(rows, 100, 5).tolist()[:20]


def test_the_number_of_threads_changes_nothing():
    rows, threads = spread(2000, 40), torch.get_num_threads()
    found = []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            found.append(coreset(rows, 400, 0))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


def test_rows_that_are_not_contiguous():
    rows = spread(12, 90).T
    assert coreset(rows, 20, 0).tolist() == naive(rows, 20, 0).tolist()


@pytest.mark.parametrize(
    ("rows", "count", "start", "message"),
    [
        (torch.ones(3), 1, 0, r"\[N, C\]"),
        (torch.ones(3, 2).half(), 1, 0, "float32 or float64"),
        (torch.ones(3, 2), 0, 0, r"count must lie in \[1, 3\]"),
        (torch.ones(3, 2), 4, 0, r"count must lie in \[1, 3\]"),
        (torch.ones(0, 2), 1, 0, "count"),
        (torch.ones(3, 2), 1, 3, "start"),
        (torch.ones(3, 2), 1, -1, "start"),
        (torch.tensor([[1.0], [float("nan")]]), 1, 0, "NaN or Inf"),
        (torch.tensor([[1.0], [float("inf")]]), 1, 0, "NaN or Inf"),
    ],
)
def test_what_is_refused(rows, count, start, message):
    with pytest.raises(ValueError, match=message):
        coreset(rows, count, start)


def test_the_operator_is_declared_well():
    torch.library.opcheck(torch.ops.monai_wscxr.coreset, (spread(20, 4), 5, 2))


def test_it_compiles_into_a_graph():
    rows = spread(30, 4)
    compiled = torch.compile(lambda x: torch.ops.monai_wscxr.coreset(x, 8, 1), fullgraph=True, backend="eager")
    assert torch.equal(compiled(rows), coreset(rows, 8, 1))
