"""The CUDA kernels without a GPU: the same sources, compiled for the host with one fiber per thread, against naive searches.

The emulation runs blocks and threads in shuffled orders, fills unwritten memory with NaN, completes asynchronous copies as
late as the program allows, and truncates in the matrix units. It shows neither speed nor races within a warp, and it
implements the instructions as the PTX manual describes them.
"""

import importlib

import numpy as np
import pytest
import torch

from tests.helpers.cuda_emulation import EMULATION, TYPES, filtered, mine, mix, needs_emulation, search, search_block
from tests.helpers.search_samples import assert_nearest, naive_squared

pytestmark = needs_emulation
MIXUP = importlib.import_module("monai_wscxr.ops.mixup")
FILTERS = ["portable", "int8"]
GROUP = 64  # bank rows per record of the filter


@pytest.fixture
def device():
    return "cpu"


def test_the_emulation_notices_wrong_programs():
    waiting = "some threads wait at a barrier or a warp instruction that others never reach"
    assert [what.removeprefix("emulated kernel: ") for what in EMULATION.self_check()] == [
        waiting,
        waiting,
        "the lanes of a warp meet at different instructions",
        "an asynchronous copy is not aligned to 16 bytes",
        "not a number",
        "not a number",
    ]


@pytest.mark.parametrize("kernel", FILTERS)
def test_equals_naive_float64_search(searched, kernel):
    query, bank = searched
    distance, index, _ = search(query, bank, kernel=kernel)
    assert_nearest(query, bank, distance, index)


@pytest.mark.parametrize("kernel", FILTERS)
@pytest.mark.parametrize("channels", [1, 31, 32, 33, 63, 64, 65, 129, 300])
def test_every_width(generator, kernel, channels):
    query, bank = torch.randn(9, channels, generator=generator), torch.randn(300, channels, generator=generator)
    distance, index, report = search(query, bank, kernel=kernel)
    assert_nearest(query, bank, distance, index)
    assert report["tiles"] == 1
    assert channels < 30 or report["candidates"] < 0.5 * len(query) * len(bank), "the filter excludes next to nothing"


@pytest.mark.parametrize("kernel", FILTERS)
@pytest.mark.parametrize(("n_query", "n_bank"), [(127, 255), (128, 256), (129, 257), (1, 64), (2, 65), (260, 63)])
def test_sizes_around_the_tiles(generator, kernel, n_query, n_bank):
    bank = torch.randn(n_bank, 5, generator=generator)
    query = bank[torch.randint(n_bank, (n_query,), generator=generator)]
    query[-1] = bank[-1]
    distance, index, _ = search(query, bank, kernel=kernel)
    assert_nearest(query, bank, distance, index)
    assert not distance.any()


@pytest.mark.parametrize("kernel", FILTERS)
def test_blocks_and_the_order_of_threads_change_no_bit(generator, kernel):
    bank = torch.randn(600, 40, generator=generator)
    bank[550:600] = bank[:50]  # ties between blocks
    query = torch.cat([torch.randn(110, 40, generator=generator), bank[560:580], bank[:9]])
    expected = search(query, bank, kernel=kernel)
    assert_nearest(query, bank, *expected[:2])
    for seed, blocks in enumerate(({"bank_block": 256}, {"query_block": 50}, {"bank_block": 512, "query_block": 129})):
        distance, index, report = search(query, bank, kernel=kernel, seed=seed + 1, **blocks)
        assert report["tiles"] > 1
        assert torch.equal(distance, expected[0])
        assert torch.equal(index, expected[1])


def test_float64_brute_force_gives_the_same_bits(generator):
    query, bank = torch.randn(40, 70, generator=generator), torch.randn(90, 70, generator=generator)
    expected = search(query, bank, kernel="portable")
    distance, index, report = search(query, bank, kernel="brute")
    assert report["tiles"] == 0
    assert torch.equal(distance, expected[0])
    assert torch.equal(index, expected[1])


def test_rows_wider_than_shared_memory(generator):
    query, bank = torch.randn(3, 4200, generator=generator), torch.randn(20, 4200, generator=generator)
    assert_nearest(query, bank, *search(query, bank, kernel="int8")[:2])


def test_lack_of_memory_halves_the_blocks_and_keeps_the_result(generator):
    query, bank = torch.randn(60, 64, generator=generator), torch.randn(2000, 64, generator=generator)
    expected = search(query, bank)
    assert expected[2]["allocation_failures"] == 0
    distance, index, report = search(query, bank, memory_bytes=150_000)
    assert report["allocation_failures"] >= 2
    assert report["tiles"] > 1
    assert torch.equal(distance, expected[0])
    assert torch.equal(index, expected[1])
    with pytest.raises(RuntimeError, match="no memory left"):
        search(query, bank, memory_bytes=30_000)


@pytest.mark.parametrize("channels", [1, 320, 5000])
@pytest.mark.parametrize(("n_query", "n_bank"), [(1, 1), (784, 8192), (100_000, 10_000_000)])
@pytest.mark.parametrize("whole", [False, True])
def test_the_plan_keeps_within_its_bytes(n_query, n_bank, channels, whole):
    for budget in (64 << 20, 3 << 30):
        query_block, bank_block, used = EMULATION.plan_search(n_query, n_bank, channels, whole, budget)
        assert used <= budget
        assert bank_block % 256 == 0
        assert 1 <= query_block <= min(n_query, 65_536)
        if bank_block < n_bank:  # memory is used up: another tile of rows would not fit
            grown = 256 * (channels * (1 if whole else 2) + 200 + query_block * 8 / GROUP)
            assert used + 1.5 * grown > budget


@pytest.mark.parametrize("where", ["query", "bank"])
@pytest.mark.parametrize("bad", [torch.nan, -torch.inf])
@pytest.mark.parametrize("dtype", TYPES)
def test_nan_and_inf_are_errors(where, bad, dtype):
    matrices = {"query": torch.ones(70, 3, dtype=dtype), "bank": torch.ones(300, 3, dtype=dtype)}
    matrices[where][2, 1] = bad
    matrices[where][64] = bad
    with pytest.raises(RuntimeError, match=f"{where} holds NaN or Inf in 2 of {len(matrices[where])} rows; distances"):
        search(**matrices)
    with pytest.raises(RuntimeError, match=f"{where} holds NaN or Inf in 2 of"):
        mine(**matrices, k=3)


def test_an_empty_query_still_looks_at_the_bank():
    assert search(torch.empty(0, 3), torch.ones(2, 3))[0].shape == (0,)
    with pytest.raises(RuntimeError, match="bank holds NaN or Inf in 1 of 2 rows"):
        search(torch.empty(0, 3), torch.tensor([[1.0, 2, 3], [1, torch.nan, 3]]))


def test_an_unknown_kernel_is_an_error():
    with pytest.raises(RuntimeError, match="must be auto, portable, int8, hopper, hopper-int8 or brute, got 'fast'"):
        search(torch.ones(1, 1), torch.ones(1, 1), kernel="fast")


def mining_sample(kind):
    g = torch.Generator().manual_seed(5)
    bank = torch.randn(1100, 6, generator=g)
    query = torch.randn(90, 6, generator=g)
    if kind == "integers":
        query, bank = (2 * query).round(), bank.round()
    elif kind == "copies":
        query[::2] = bank[torch.randint(len(bank), (45,), generator=g)]
    elif kind == "shifted":
        query[:9] += 4
    return query, bank


@pytest.mark.parametrize(
    ("kind", "k", "kernel"),
    [
        ("plain", 1, "portable"),
        ("plain", 45, "int8"),
        ("integers", 20, "portable"),
        ("integers", 3, "int8"),
        ("copies", 60, "int8"),
        ("shifted", 9, "portable"),
        ("shifted", 90, "portable"),
    ],
)
def test_mining_drops_queries_and_finds_what_search_and_stable_sort_find(kind, k, kernel):
    query, bank = mining_sample(kind)
    index, distance, report = mine(query, bank, k, kernel=kernel, seed=k)
    every = torch.from_numpy(np.sqrt(naive_squared(query, bank).min(1)).astype(np.float32))
    order = torch.sort(every, descending=True, stable=True).indices[:k]
    assert index.tolist() == order.tolist()
    assert torch.allclose(distance, every[order], rtol=2.0**-23, atol=0)
    assert report["pairs"] <= len(query) * len(bank)
    if (kind, k) == (
        "shifted",
        9,
    ):  # nine queries are clearly farthest, so nearly all others stop after the first share
        assert report["pairs"] < 0.4 * len(query) * len(bank), "nothing was dropped"


def test_a_query_that_ties_with_the_cut_is_not_dropped():
    # After the first share of the bank (256 rows), query 5 is farthest with 3 and ends at 2. Query 0 is at 2 so far, a tie
    # that it would win by its index, but it ends at 1.
    query = torch.tensor([2.0, 0, 0, 0, 0, -3])[:, None]
    bank = torch.zeros(300, 1)
    bank[290], bank[295] = -5, 3
    for k in (1, 2):
        index, distance, _ = mine(query, bank, k)
        assert index.tolist() == [5, 0][:k]
        assert distance.tolist() == [2.0, 1.0][:k]


@pytest.mark.parametrize("kernel", FILTERS)
def test_blocks_of_a_streamed_bank_add_up_to_the_whole(generator, kernel):
    query, bank = torch.randn(50, 20, generator=generator), torch.randn(500, 20, generator=generator)
    bank[400:] = bank[:100]
    query[:20] = bank[10:30]
    squared = torch.full((50,), torch.inf, dtype=torch.float64)
    index = torch.full((50,), 2**63 - 1)
    for begin, end in ((300, 500), (0, 130), (130, 300)):
        search_block(query, bank[begin:end], squared, index, begin, kernel=kernel)
    whole = search(query, bank)
    assert torch.equal(index, whole[1])
    assert torch.equal(squared.sqrt().float(), whole[0])


def representable(g, n, channels):
    """Return positive half-precision numbers with full mantissas: errors come only from the sums, not from rounding."""
    return ((1 + torch.rand(n, channels, generator=g)).half().double() - 2.0**-10).half().float()


def around_one_row(g):
    row = 100 * torch.randn(1, 80, generator=g)
    return [row + 0.1 * torch.randn(n, 80, generator=g) for n in (20, 100)]


def powers_of_ten(g, n):
    return 10.0 ** torch.randint(-3, 4, (n, 1), generator=g)


CERTIFIED = {
    "normal": lambda g: [1000 * torch.randn(n, 200, generator=g) for n in (30, 200)],
    "one_sign": lambda g: [representable(g, n, 1024) for n in (8, 64)],
    "spread": lambda g: [torch.randn(n, 96, generator=g) * powers_of_ten(g, n) for n in (30, 200)],
    "mixed_channels": lambda g: [
        torch.randn(n, 64, generator=g) * 10.0 ** torch.linspace(-4, 4, 64) for n in (30, 130)
    ],
    "near_copies": around_one_row,
}


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("truncating", [False, True])
@pytest.mark.parametrize("name", CERTIFIED)
def test_the_certificate_holds(generator, name, truncating, whole):
    query, bank = CERTIFIED[name](generator)
    minima, bound, squared = filtered(query, bank, whole, truncating=truncating)
    true = naive_squared(query, bank)
    for row in range(len(query)):
        for group in range(minima.shape[1]):
            inside = true[row, group * GROUP : (group + 1) * GROUP]
            first, second = (float(value) for value in minima[row, group])
            column = EMULATION.packed_column(first)
            assert column < len(inside)
            least = [EMULATION.packed_least(v) + squared[row] - bound[row, group] for v in (first, second)]
            assert least[0] <= inside.min()
            assert inside[column] <= EMULATION.packed_largest(first) + squared[row] + bound[row, group]
            others = np.delete(inside, column)
            if len(others):
                assert least[1] <= others.min()
            else:
                assert second > 1e38


def test_the_accumulation_error_is_needed_and_is_enough(generator):
    query, bank = CERTIFIED["one_sign"](generator)
    minima, bound, squared = filtered(query, bank, False)
    assert torch.equal(query.half().float(), query), "rounding to half precision is exact"
    columns = np.array([[EMULATION.packed_column(float(v)) for v in row[:, 0]] for row in minima])
    exact = np.take_along_axis(naive_squared(query, bank), columns, axis=1)
    low, high = (
        np.array([[function(float(v)) for v in row[:, 0]] for row in minima]) + squared[:, None]
        for function in (EMULATION.packed_least, EMULATION.packed_largest)
    )
    error = np.maximum(low - exact, exact - high)
    norms = query.double().norm(dim=1).numpy(), float(bank.double().norm(dim=1).max())
    without_accumulation = 2.0**-22 * (norms[0][:, None] + norms[1]) ** 2
    assert (error > without_accumulation).any(), "the errors of the emulated matrix units are too small for this test"
    assert (error <= bound).all()


def test_packing_keeps_order_and_column(generator):
    values = torch.randn(400, generator=generator) * 10.0 ** torch.randint(-20, 30, (400,), generator=generator)
    for t in [0.0, -0.0, 3e38, 1e-45, -1e-45, *values.tolist()]:
        t = float(np.float32(t))
        for column in (0, 1, 17, 63):
            packed = EMULATION.pack_minimum(t, column)
            assert EMULATION.packed_column(packed) == column
            assert EMULATION.packed_least(packed) <= t <= EMULATION.packed_largest(packed)
            assert abs(packed - t) <= 2.0**-17 * abs(t) + 2.0**-143
    low, high = np.float32(1.5), np.float32(1.5001)
    for sign in (1, -1):
        packed = sorted(EMULATION.pack_minimum(float(sign * v), c) for v, c in ((low, 63), (high, 0)))
        assert [EMULATION.packed_column(v) for v in packed] == ([63, 0] if sign == 1 else [0, 63])


def test_philox_and_index_are_those_of_the_reference(generator):
    counters = torch.randint(2**62, (50,), generator=generator)
    for seed in (0, 5, 2**63 - 1):
        expected = torch.stack(MIXUP.philox(counters, seed), dim=1).tolist()
        assert [list(EMULATION.philox(int(c), seed)) for c in counters] == expected
    for u, n in zip(counters.tolist(), range(1, 10**12, 10**12 // 50), strict=False):
        assert EMULATION.index_below(u, n) == u * n >> 64


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("n", "m", "channels", "blocks", "seed", "offset"),
    [(1, 1, 1, 1, 0, 0), (37, 5, 33, 2, 2**62 + 1, 2**32 - 20), (70, 40, 64, 3, 9, 7), (20, 3, 320, 20, 1, 2**63 - 30)],
)
def test_mixup_gives_the_bits_of_the_reference(generator, dtype, n, m, channels, blocks, seed, offset):
    normal, abnormal = (torch.randn(rows, channels, generator=generator).to(dtype) for rows in (n, m))
    if blocks == 3:  # not aligned to 16 bytes
        store = torch.empty(n * channels + 1, dtype=dtype)
        store[1:] = normal.flatten()
        normal = store[1:].view(n, channels)
    got = mix(normal, abnormal, seed, offset, 0.1, 0.9, blocks, order=3)
    expected = MIXUP._reference(normal, abnormal, seed, offset, 0.1, 0.9)
    assert all(map(torch.equal, got, expected))
