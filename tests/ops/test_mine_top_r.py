"""mine_top_r against a naive float64 search and a stable sort: same rows, same order."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from monai_wscxr.ops import PackedBank, backend, min_distance, mine_top_k, mine_top_r, mined_count

TRIALS = 300


def naive(query, bank, k):
    """Compute distances in float64, round once to float32 and sort stably; return index [k] and distance [k]."""
    query, bank = query.cpu().double().numpy(), bank.cpu().double().numpy()
    with np.errstate(over="ignore"):
        squared = np.stack([((row - bank) ** 2).sum(axis=1) for row in query])
        distance = np.sqrt(squared.min(axis=1)).astype(np.float32)
    order = np.argsort(-distance.astype(np.float64), kind="stable")[:k]
    return order, distance[order]


def assert_mined(query, bank, r, k):
    index, distance = mine_top_r(query, bank, r)
    assert index.shape == distance.shape == (k,)
    assert (index.dtype, distance.dtype) == (torch.int64, torch.float32)
    assert index.device == distance.device == query.device
    order, expected = naive(query, bank, k)
    assert index.tolist() == order.tolist()
    np.testing.assert_allclose(distance.cpu().numpy(), expected, rtol=2.0**-23, atol=2.0**-149)


def trial(number):
    """Return random rows: plain, integers (ties), copies of bank rows (distance 0) or repeated queries (ties)."""
    g = torch.Generator().manual_seed(number)
    n_query, n_bank, channels, percent = (
        int(torch.randint(low, high, (1,), generator=g)) for low, high in ((1, 60), (1, 40), (1, 9), (1, 101))
    )
    bank = torch.randn(n_bank, channels, generator=g)
    query = torch.randn(n_query, channels, generator=g)
    kind = ("plain", "integers", "copies", "repeated")[number % 4]
    if kind == "integers":
        query, bank = (2 * query).round(), bank.round()
    elif kind == "copies":
        half = torch.rand(n_query, generator=g) < 0.5
        query[half] = bank[torch.randint(n_bank, (int(half.sum()),), generator=g)]
    elif kind == "repeated":
        query = query[torch.randint(n_query, (n_query,), generator=g)]
    k = max(1, n_query * percent // 100)
    return query, bank, percent / 100, k


def test_same_rows_in_the_same_order_as_a_naive_search_and_a_stable_sort(device):
    ties = 0
    for number in range(TRIALS):
        query, bank, r, k = trial(number)
        assert_mined(query.to(device), bank.to(device), r, k)
        ties += k > len(np.unique(naive(query, bank, k)[1]))
    assert ties > TRIALS / 4, "the trials have few ties among the mined rows"


@pytest.mark.parametrize("r", [0.2, 1])
def test_every_sample_of_the_shared_list(searched, r):
    query, bank = searched
    k = max(1, int(Fraction(str(r)) * len(query)))
    distance, _ = min_distance(query, bank)
    order = torch.sort(distance, descending=True, stable=True).indices[:k]
    index, mined = mine_top_r(query, bank, r)
    assert torch.equal(index, order)
    assert torch.equal(mined, distance[order])
    assert_mined(query, bank, r, k)


def test_equal_distances_keep_their_order(device):
    query = torch.tensor([[1.0], [-2.0], [2.0], [0.0], [2.0], [-1.0]], device=device)
    index, distance = mine_top_r(query, torch.zeros(1, 1, device=device), 1.0)
    assert index.tolist() == [1, 2, 4, 0, 5, 3]
    assert distance.tolist() == [2.0, 2.0, 2.0, 1.0, 1.0, 0.0]
    assert mine_top_r(query, torch.zeros(1, 1, device=device), 0.34)[0].tolist() == [1, 2], "the cut goes through a tie"


def test_r_1_keeps_every_row_once(sample):
    query, bank = sample("grid")
    assert sorted(mine_top_r(query, bank, 1)[0].tolist()) == list(range(len(query)))


@pytest.mark.parametrize(
    ("n", "r", "k"),
    [
        (100, 0.29, 29),  # 28.999999999999996 in binary floating point
        (100, 0.57, 57),
        (10, 0.1, 1),
        (3, 1 / 3, 1),
        (3, 2 / 3, 2),
        (49, 1 / 49, 1),  # 0.9999999999999999 in binary floating point, although r is the closest number to 1/49
        (1000, 0.001, 1),
        (5, 0.2, 1),
        (10, 0.3, 3),
        (4, 0.2, 1),  # floor is 0: one row is kept
        (100, 1e-12, 1),
        (100, 5e-324, 1),
        (7, 1, 7),
        (7, 1.0, 7),
        (7, 0.9999, 6),
        (10**6, 0.999999, 999_999),
        (1, 1.0, 1),
        (10**9, 0.2, 2 * 10**8),
    ],
)
def test_count_is_the_floor_of_the_decimal_product(n, r, k):
    assert mined_count(n, r) == k
    if n <= 1000:
        assert len(mine_top_r(torch.arange(n).float()[:, None], torch.zeros(1, 1), r)[0]) == k


def test_count_equals_exact_arithmetic_on_written_decimals():
    for hundredths in range(1, 101):
        for n in (1, 3, 99, 100, 101, 784, 12_544, 1_000_003):
            assert mined_count(n, float(f"{hundredths / 100:.2f}")) == max(1, n * hundredths // 100)


@pytest.mark.parametrize("k", [1, 7, 40])
@pytest.mark.parametrize("kind", ["plain", "packed"])
def test_mine_top_k_keeps_the_first_k_of_all_rows(sample, kind, k):
    query, bank = sample("clustered")
    everything = mine_top_r(query, bank, 1)
    if kind == "packed":
        if bank.device.type != "cpu":
            pytest.skip("banks are packed on the CPU")
        bank = PackedBank.pack(bank)
    index, distance = mine_top_k(query, bank, k)
    assert torch.equal(index, everything[0][:k])
    assert torch.equal(distance, everything[1][:k])


ROWS = torch.ones(3, 2)


@pytest.mark.parametrize("k", [-1, 0, 4])
def test_k_outside_its_range_is_an_error(k):
    message = r"k must lie between 1 and the number of query rows \(3\), got " + str(k)
    with pytest.raises(ValueError, match=message):
        mine_top_k(ROWS, ROWS, k)


@pytest.mark.parametrize("k", [-1, 4])
@pytest.mark.skipif(backend("mine_top_r").name == "reference", reason="no compiled kernel for the CPU")
def test_the_kernels_check_k_themselves(k):
    with pytest.raises(RuntimeError, match=f"k must lie between 0 and 3, got {k}"):
        torch.ops.monai_wscxr.mine_top_r(ROWS, ROWS, k)
    with pytest.raises(RuntimeError, match=f"k must lie between 0 and 3, got {k}"):
        torch.ops.monai_wscxr.mine_packed(ROWS, ROWS, *PackedBank.pack(ROWS).packed, k)


@pytest.mark.parametrize("r", [0, 0.0, -0.2, 1.0000001, 20, float("nan"), float("inf"), -float("inf")])
def test_r_outside_its_range_is_an_error(r):
    with pytest.raises(ValueError, match=r"the retention rate r must lie in \(0, 1\], got .*published value is 0.2"):
        mine_top_r(ROWS, ROWS, r)
    with pytest.raises(ValueError, match="retention rate"):
        mined_count(3, r)


REJECTED = {
    "empty_query": (torch.ones(0, 2), ROWS, "there are no abnormal patches to mine from"),
    "empty_bank": (ROWS, torch.ones(0, 2), "mine_top_r: the bank is empty"),
    "query_rank": (torch.ones(2), ROWS, "mine_top_r: query must be a matrix of rows"),
    "bank_rank": (ROWS, torch.ones(2), "mine_top_r: bank must be a matrix of rows"),
    "query_int": (ROWS.int(), ROWS, "mine_top_r: query must be a floating-point tensor"),
    "bank_int": (ROWS, ROWS.int(), "mine_top_r: bank must be a floating-point tensor"),
    "width": (ROWS, torch.ones(3, 5), "mine_top_r: .*same number of channels .* got 2 and 5"),
    "device": (ROWS, ROWS.to("meta"), "mine_top_r: query is on cpu but bank on meta"),
}


@pytest.mark.parametrize("case", REJECTED)
def test_every_argument_check_says_what_came(case):
    query, bank, message = REJECTED[case]
    with pytest.raises(ValueError, match=message):
        mine_top_r(query, bank, 0.5)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["query", "bank"])
def test_nan_and_inf_are_errors(device, where, bad):
    matrices = {"query": torch.ones(5, 3), "bank": torch.ones(7, 3)}
    matrices[where][2, 1] = bad
    with pytest.raises(ValueError, match=f"{where} holds NaN or Inf in 1 of"):
        mine_top_r(matrices["query"].to(device), matrices["bank"].to(device), 0.5)


def test_backward_says_why_there_is_none(device):
    query = torch.ones(3, 2, device=device, requires_grad=True)
    index, distance = mine_top_r(query, torch.zeros(1, 2, device=device), 1)
    assert not index.requires_grad
    with pytest.raises(
        RuntimeError, match=r"mine_top_r has no gradient: the index of the nearest row is not differentiable\. Detach"
    ):
        distance.sum().backward()


def test_autocast_and_reduced_precision_change_nothing(sample, device, matmul_precision):
    query, bank = sample("near_copies")
    before = mine_top_r(query, bank, 0.5)
    matmul_precision.set_float32_matmul_precision("medium")
    with torch.autocast(device, dtype=torch.bfloat16):
        after = mine_top_r(query, bank, 0.5)
    assert all(map(torch.equal, before, after))


@pytest.mark.parametrize("share", [5, 1])
def test_opcheck(searched, share):
    query, bank = searched
    torch.library.opcheck(
        torch.ops.monai_wscxr.mine_top_r.default, (query, bank, max(1, len(query) // share)), rtol=0, atol=0
    )


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(device, generator, compile_counted, dynamic):
    def mine(query, bank):
        index, distance = mine_top_r(query * 2, bank, 0.29)
        return query[index], distance

    compiled, counter = compile_counted(mine)
    for n_query, n_bank in ((50, 7), (100, 30), (17, 4)):
        query = torch.randn(n_query, 6, generator=generator).to(device)
        bank = torch.randn(n_bank, 6, generator=generator).to(device)
        if dynamic:
            torch._dynamo.mark_dynamic(query, 0)
            torch._dynamo.mark_dynamic(bank, 0)
        assert all(map(torch.equal, compiled(query, bank), mine(query, bank)))
    assert counter.frame_count == 1 if dynamic else counter.frame_count <= 2


class Mine(torch.nn.Module):
    def forward(self, query, bank):
        return mine_top_r(query, bank, 0.2)


def test_exports_with_free_sizes(device, generator):
    query, bank = torch.randn(40, 6, generator=generator).to(device), torch.randn(9, 6, generator=generator).to(device)
    # from 10 rows on: with fewer, k = max(1, floor(0.2 n)) is the constant 1, which export does not treat as a free size
    free = {"query": {0: torch.export.Dim("n", min=10)}, "bank": {0: torch.export.Dim("m")}}
    program = torch.export.export(Mine(), (query, bank), dynamic_shapes=free)
    for n_query, n_bank in ((40, 9), (25, 3), (10, 1)):
        got = program.module()(query[:n_query], bank[:n_bank])
        assert all(map(torch.equal, got, mine_top_r(query[:n_query], bank[:n_bank], 0.2)))
