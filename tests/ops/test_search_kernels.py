"""The compiled CPU search: instruction sets, panels, error bounds, threads, blocks, and dropping of queries."""

import numpy as np
import pytest
import torch

from monai_wscxr import ops
from monai_wscxr.ops import PackedBank, min_distance, mine_top_r, mined_count
from monai_wscxr.ops.min_distance import nothing_found, search_block, search_packed

if ops.EXTENSION is None:
    pytest.skip("the extension is not built", allow_module_level=True)
KERNELS = ops.EXTENSION.available_search_kernels()
TRIALS = 1000


@pytest.fixture(params=KERNELS)
def kernel(request, kernels):
    kernels(request.param)
    return request.param


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def exact(query, bank):
    """Compute the smallest squared distances in float64 and the lowest rows that attain them."""
    squared = np.stack([((q - bank.double().numpy()) ** 2).sum(1) for q in query.double().numpy()])
    return squared.min(1), squared.argmin(1)


def assert_exact(query, bank, found):
    least, row = exact(query, bank)
    assert found[1].tolist() == row.tolist()
    np.testing.assert_allclose(found[0].double().numpy(), np.sqrt(least), rtol=2.0**-23, atol=2.0**-149)


def clustered(g, n_query, n_bank, channels):
    centres = torch.randn(8, channels, generator=g)

    def rows(n):
        return torch.relu(centres[torch.randint(8, (n,), generator=g)] + 0.2 * torch.randn(n, channels, generator=g))

    return rows(n_query), rows(n_bank)


@pytest.mark.parametrize("channels", [1, 3, 4, 5, 8, 17, 31, 33, 64, 100, 257])
def test_any_number_of_channels(kernel, generator, channels):
    query, bank = clustered(generator, 30, 300, channels)
    query[:5] = bank[-5:]
    assert_exact(query, bank, min_distance(query, bank))


@pytest.mark.parametrize("channels", [60, 64, 65, 67, 128, 200])
@pytest.mark.parametrize("loudest", [1, 3, 100])
def test_sums_that_need_more_than_sixteen_bits(kernel, generator, threads, channels, loudest):
    """Codes near their largest value in every channel, in a few, or in hardly any; enough queries for sums of 16 bits."""
    threads(1)
    signs = torch.where(torch.rand(400, channels, generator=generator) < 0.5, -1.0, 1.0)
    bank = signs * (1 + 0.05 * torch.randn(400, channels, generator=generator))
    bank[:, ::7] *= loudest
    query = bank[:60] * (1 + 0.05 * torch.randn(60, channels, generator=generator))
    assert_exact(query, bank, min_distance(query, bank))


@pytest.mark.parametrize("n_query", [1, 11, 12, 13, 25])
@pytest.mark.parametrize("n_bank", [1, 31, 32, 33, 520, 1025])
def test_sizes_around_tiles_and_panels(kernel, generator, n_query, n_bank):
    query, bank = clustered(generator, n_query, n_bank, 24)
    assert_exact(query, bank, min_distance(query, bank))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("n_query", [3, 50, 700])
def test_the_number_of_threads_changes_nothing(generator, threads, count, n_query):
    query, bank = clustered(generator, n_query, 4000, 16)  # with few queries, the bank is divided among the threads
    threads(1)
    before = min_distance(query, bank)
    threads(count)
    assert all(map(torch.equal, before, min_distance(query, bank)))
    assert all(map(torch.equal, mine_top_r(query, bank, 0.1), mined_by_sorting(query, bank, 0.1)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_instruction_sets_agree_bit_for_bit(generator, kernels, dtype):
    query, bank = (rows.to(dtype) for rows in clustered(generator, 64, 900, 77))
    results = []
    for name in KERNELS:
        kernels(name)
        results.append(search_packed(query, PackedBank.pack(bank)))
    for squared, index in results[1:]:
        assert torch.equal(squared, results[0][0])
        assert torch.equal(index, results[0][1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 30.0])
def test_the_residual_bounds_what_the_codes_leave_out(kernel, generator, dtype, scale):
    # The stored bound must hold for |row - centre - scale * code| in float64, and exceed it by at most one part in a thousand.
    _, bank = clustered(generator, 1, 100, 45)
    bank[3] *= 200  # an outlier
    bank = (bank * scale).to(dtype)
    packed = PackedBank.pack(bank)
    levels, exponent = packed.layout[1:3].tolist()
    offset = 128 if levels == 127 else 64
    words = packed.codes.reshape(len(packed.codes), -1, 32, 4).transpose(1, 2).reshape(len(packed.row), -1)
    used = packed.row >= 0
    rows = packed.row[used]
    code = words[used][:, :45].double() - offset
    step = packed.columns[:, 1].flatten()[used].double() / 2
    truth = (bank.double() - packed.centre)[rows] * 2.0**-exponent
    left_out = (truth - step[:, None] * code).norm(dim=1)
    stored = packed.columns[:, 2].flatten()[used].double()
    assert bool((left_out <= stored).all())
    assert bool((stored <= left_out * 1.001 + 1e-6 * truth.norm(dim=1)).all())
    coded = step * code.norm(dim=1)
    torch.testing.assert_close(packed.columns[:, 0].flatten()[used].double(), coded.square(), rtol=1e-6, atol=1e-30)
    assert int(code.abs().max()) == levels
    assert sorted(rows.tolist()) == list(range(100))


def test_equal_rows_are_packed_once_and_the_first_wins(kernel, generator):
    _, rows = clustered(generator, 1, 60, 9)
    bank = rows.repeat(3, 1)
    packed = PackedBank.pack(bank)
    assert packed.layout[3] == 60
    assert packed.row[packed.row >= 0].tolist() == list(range(60))
    assert min_distance(rows, packed)[1].tolist() == list(range(60))


def test_a_bank_of_equal_rows_costs_one_evaluation_per_query(generator):
    query, bank = torch.randn(50, 40, generator=generator), torch.ones(5000, 40)
    before = ops.EXTENSION.search_counts()["evaluated"]
    assert min_distance(query, bank)[1].tolist() == [0] * 50
    assert ops.EXTENSION.search_counts()["evaluated"] - before == 50


def test_rows_and_queries_far_beyond_the_rest(kernel, generator):
    query, bank = clustered(generator, 40, 500, 12)
    bank[100], bank[300] = 1e17, -3e30
    query[7], query[9], query[11] = 2e17, -3e30, 1e25
    assert_exact(query, bank, min_distance(query, bank))


def test_more_channels_than_are_coded(kernel, generator):
    query, bank = clustered(generator, 3, 40, 65_536 + 50)
    query[0] = bank[17]
    bank[20] = bank[17]
    bank[20, -1] += 1e-3  # differs in a channel that is not quantised
    assert_exact(query, bank, min_distance(query, bank))


@pytest.mark.parametrize("other", KERNELS)
def test_a_bank_packed_for_another_instruction_set_gives_the_same(kernel, kernels, generator, other):
    query, bank = clustered(generator, 20, 300, 16)
    kernels(other)
    packed = PackedBank.pack(bank)
    kernels(kernel)
    assert_exact(query, bank, min_distance(query, packed))
    assert all(map(torch.equal, mine_top_r(query, packed, 0.3), mined_by_sorting(query, bank, 0.3)))


@pytest.mark.parametrize("damage", ["layout", "row", "codes"])
def test_a_packed_bank_that_does_not_fit_is_packed_anew(generator, damage):
    query, bank = clustered(generator, 20, 300, 16)
    packed = PackedBank.pack(bank)
    if damage == "row":
        packed.row[5] = 300  # would be read out of bounds
    elif damage == "layout":
        packed.layout[4] = 299
    else:
        packed = PackedBank(bank, packed.codes[:-1].clone(), *packed.packed[1:])
    assert_exact(query, bank, min_distance(query, packed))


@pytest.mark.parametrize("block", [1, 7, 100, 299])
def test_blocks_in_any_order_give_the_result_of_the_whole(kernel, generator, block):
    query = torch.randint(-2, 3, (60, 3), generator=generator).float()  # many ties, within and across blocks
    bank = torch.randint(-2, 3, (300, 3), generator=generator).float()
    squared, index = nothing_found(query)
    firsts = torch.arange(0, 300, block)
    for first in firsts[torch.randperm(len(firsts), generator=generator)].tolist():
        squared, index = search_block(query, bank[first : first + block], squared, index, first)
    least, row = exact(query, bank)
    assert squared.tolist() == least.tolist()
    assert index.tolist() == row.tolist()


def test_overflowing_squares_tie_across_blocks():
    query, bank = torch.full((3, 2), 1e200, dtype=torch.float64), torch.full((6, 2), -1e200, dtype=torch.float64)
    squared, index = nothing_found(query)
    for first in (3, 0):
        squared, index = search_block(query, bank[first : first + 3], squared, index, first)
    assert squared.tolist() == [torch.inf] * 3
    assert index.tolist() == [0] * 3


def mined_by_sorting(query, bank, r):
    distance, _ = min_distance(query, bank)
    order = torch.sort(distance, descending=True, stable=True).indices[: mined_count(len(query), r)]
    return order, distance[order]


def test_dropping_never_changes_what_is_mined():
    evaluated = [0, 0]
    ties = 0
    for number in range(TRIALS):
        g = torch.Generator().manual_seed(number)
        n_query, n_bank = (int(torch.randint(low, high, (1,), generator=g)) for low, high in ((20, 200), (200, 1500)))
        query, bank = clustered(g, n_query, n_bank, int(torch.randint(1, 12, (1,), generator=g)))
        if number % 3 == 1:  # ties at the cut
            query, bank = (2 * query).round(), (2 * bank).round()
        elif number % 3 == 2:  # a part of the queries is far away
            query[: n_query // 10] += 3
        r = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)[number % 6]
        start = ops.EXTENSION.search_counts()["evaluated"]
        index, distance = mine_top_r(query, bank, r)
        middle = ops.EXTENSION.search_counts()["evaluated"]
        order, expected = mined_by_sorting(query, bank, r)
        assert torch.equal(index, order)
        assert torch.equal(distance, expected)
        if r <= 0.1:
            evaluated[0] += middle - start
            evaluated[1] += ops.EXTENSION.search_counts()["evaluated"] - middle
        ties += len(distance) > len(distance.unique())
    assert evaluated[0] < evaluated[1], "nothing was dropped"
    assert ties > TRIALS / 10


def test_mining_skips_most_of_the_search_where_few_queries_are_far(generator):
    query, bank = clustered(generator, 2000, 20_000, 32)
    query[::20] += 2
    packed = PackedBank.pack(bank)
    assert all(map(torch.equal, mine_top_r(query, packed, 0.05), mined_by_sorting(query, packed, 0.05)))


def test_unknown_instruction_set_is_refused():
    with pytest.raises(ValueError, match="no search kernels named mmx"):
        ops.EXTENSION.use_search_kernels("mmx")


@pytest.mark.parametrize("operator", ["pack_bank", "search_packed", "search_block", "mine_packed"])
def test_opcheck(generator, operator):
    query, bank = clustered(generator, 20, 70, 9)
    packed = PackedBank.pack(bank)
    arguments = {
        "pack_bank": (bank,),
        "search_packed": (query, bank, *packed.packed, *nothing_found(query), 0),
        "search_block": (query, bank, *nothing_found(query), 7),
        "mine_packed": (query, bank, *packed.packed, 4),
    }[operator]
    torch.library.opcheck(getattr(torch.ops.monai_wscxr, operator).default, arguments)


REJECTED = {
    "rank": (lambda: torch.ones(3), r"PackedBank: bank must be a matrix of rows"),
    "empty": (lambda: torch.ones(0, 3), "the bank is empty"),
    "no_channels": (lambda: torch.ones(3, 0), "no channels"),
    "type": (lambda: torch.ones(3, 3).int(), "floating-point"),
    "device": (lambda: torch.ones(3, 3, device="meta"), "packed on the CPU"),
    "nan": (lambda: torch.tensor([[1.0], [torch.nan]]), "bank holds NaN or Inf in 1 of 2 rows"),
}


@pytest.mark.parametrize("case", REJECTED)
def test_packing_says_what_is_wrong(case):
    make, message = REJECTED[case]
    with pytest.raises(ValueError, match=message):
        PackedBank.pack(make())
