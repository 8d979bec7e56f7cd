"""Every compiled CUDA kernel that the GPU can run, in addition to the operator tests, which run on the GPU as well."""

import numpy as np
import pytest
import torch

from monai_wscxr import ops
from monai_wscxr.ops import backend, min_distance, mine_top_r, mixup
from monai_wscxr.ops.min_distance import nothing_found, search_block
from tests.helpers.search_samples import assert_nearest

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none"),
]
KERNELS = ["portable", "int8", "hopper", "hopper-int8", "brute"]


@pytest.fixture
def device():
    return "cuda"


@pytest.fixture(params=KERNELS)
def kernel(request, monkeypatch):
    if request.param.startswith("hopper"):
        built = ops.CUDA_EXTENSION.build_info()["hopper_kernel"]
        if built != "built":
            pytest.skip(f"the Hopper kernel is {built}")
        if torch.cuda.get_device_capability() != (9, 0):
            pytest.skip("the Hopper kernel needs compute capability 9.0")
    monkeypatch.setenv("MONAI_WSCXR_CUDA_KERNEL", request.param)
    return request.param


def truth(query, bank):
    """Compute the smallest squared distances and the first rows that attain them in float64, on the device."""
    least = torch.full((len(query),), torch.inf, dtype=torch.float64, device=query.device)
    index = torch.zeros(len(query), dtype=torch.int64, device=query.device)
    for start in range(0, len(bank), 512):
        block = bank[start : start + 512].double()
        for rows in torch.arange(len(query), device=query.device).split(16):
            squared = (query[rows, None].double() - block).square().sum(2)
            value, at = squared.min(1)
            better = value < least[rows]
            least[rows] = torch.where(better, value, least[rows])
            index[rows] = torch.where(better, at + start, index[rows])
    return least, index


def assert_true(query, bank, distance, index):
    least, expected = truth(query, bank)
    torch.testing.assert_close(distance.double(), least.sqrt(), rtol=1e-6, atol=1e-37)
    other = index != expected
    attained = (query[other].double() - bank[index[other]].double()).square().sum(1)
    rounding = 4 * (bank.shape[1] + 2) * 2.0**-53
    assert (attained <= least[other] * (1 + rounding)).all(), "another row is nearer"


@pytest.mark.parametrize("operator", ["min_distance", "mine_top_r", "mixup"])
def test_operator_is_compiled(operator):
    assert backend(operator, "cuda").name == "compiled", backend(operator, "cuda").reason


def test_equals_naive_float64_search(searched, kernel):
    query, bank = searched
    assert_nearest(query, bank, *min_distance(query, bank))


@pytest.mark.parametrize(("n_query", "n_bank", "channels"), [(1000, 20_000, 512), (300, 5000, 1024), (777, 9999, 321)])
def test_sizes_of_a_real_search(kernel, n_query, n_bank, channels):
    g = torch.Generator("cuda").manual_seed(n_bank)
    bank = torch.relu(torch.randn(n_bank, channels, generator=g, device="cuda"))
    query = torch.relu(torch.randn(n_query, channels, generator=g, device="cuda"))
    query[::7] = bank[:: max(1, n_bank * 7 // n_query)][: len(query[::7])]
    query[1::7] = bank[: len(query[1::7])] * (
        1 + 1e-3 * torch.randn(len(query[1::7]), channels, generator=g, device="cuda")
    )
    first = min_distance(query, bank)
    assert_true(query, bank, *first)
    for _ in range(3):  # the order of threads must not matter
        assert all(map(torch.equal, first, min_distance(query, bank)))


def test_near_copies_compete(kernel):
    g = torch.Generator("cuda").manual_seed(3)
    rows = torch.randn(64, 1024, generator=g, device="cuda").repeat_interleave(16, 0)
    bank = rows * (1 + 1e-3 * torch.randn(rows.shape, generator=g, device="cuda"))
    query = bank[::4] * (1 + 1e-3 * torch.randn(bank[::4].shape, generator=g, device="cuda"))
    assert_true(query, bank, *min_distance(query, bank))


@pytest.mark.parametrize("case", ["one_sign", "one_sign_aligned", "wide_range"])
def test_matrix_units_stay_within_the_accumulation_error(kernel, case):
    """Search with sums that truncation affects most, so that the argmin is right only because of the error bound."""
    g = torch.Generator("cuda").manual_seed(11)
    base = 1 + torch.rand(1, 4096, generator=g, device="cuda")
    if case == "wide_range":
        base = base * 2.0 ** torch.randint(-12, 12, (1, 4096), generator=g, device="cuda")
    bank = base + 2.0**-11 * torch.randint(-2, 3, (3000, 4096), generator=g, device="cuda")
    query = base + 2.0**-11 * torch.randint(-2, 3, (40, 4096), generator=g, device="cuda")
    if case == "one_sign_aligned":
        bank, query = bank.half().float(), query.half().float()
    bank = torch.cat([bank, -bank])  # with a mean of zero, centring does not remove the offset
    assert_true(query, bank, *min_distance(query, bank))


def test_small_blocks_change_no_bit(kernel, monkeypatch):
    g = torch.Generator("cuda").manual_seed(5)
    query, bank = (torch.randn(n, 96, generator=g, device="cuda") for n in (3000, 40_000))
    bank[30_000:30_100] = bank[:100]
    query[:50] = bank[30_020:30_070]
    expected = min_distance(query, bank)
    monkeypatch.setenv("MONAI_WSCXR_CUDA_BLOCK_BYTES", str(6 << 20))
    assert all(map(torch.equal, expected, min_distance(query, bank)))
    assert int(expected[1][0]) == 20


def test_mining_equals_search_and_stable_sort(kernel):
    g = torch.Generator("cuda").manual_seed(6)
    bank = torch.randn(30_000, 64, generator=g, device="cuda")
    query = torch.randn(4000, 64, generator=g, device="cuda")
    query[:300] += 1.5
    query[1000:1100] = query[:100]
    distance, _ = min_distance(query, bank)
    order = torch.sort(distance, descending=True, stable=True).indices
    for r in (0.001, 0.05, 0.2, 1.0):
        index, mined = mine_top_r(query, bank, r)
        assert torch.equal(index, order[: len(index)])
        assert torch.equal(mined, distance[index])


def test_blocks_of_a_streamed_bank_add_up_to_the_whole(kernel):
    g = torch.Generator("cuda").manual_seed(8)
    query, bank = (torch.randn(n, 40, generator=g, device="cuda") for n in (500, 7000))
    squared, index = nothing_found(query)
    for start in (4000, 0, 2000, 6000):
        squared, index = search_block(query, bank[start : start + 2000], squared, index, start)
    distance, expected = min_distance(query, bank)
    assert torch.equal(index, expected)
    assert torch.equal(squared.sqrt().float(), distance)


def test_runs_on_the_current_stream(kernel):
    query, bank = torch.randn(2000, 128, device="cuda"), torch.randn(50_000, 128, device="cuda")
    expected = min_distance(query, bank)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = torch.zeros_like(query)
        torch.cuda._sleep(50_000_000)
        late += query  # on this stream, after the delay
        result = min_distance(late, bank)
    stream.synchronize()
    assert all(map(torch.equal, expected, result))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("n", "m", "channels"), [(100_001, 3000, 320), (7, 3, 5), (5000, 1, 1023)])
def test_mixup_gives_the_bits_of_the_cpu(dtype, n, m, channels):
    g = torch.Generator().manual_seed(9)
    normal, abnormal = (torch.randn(rows, channels, generator=g).to(dtype) for rows in (n, m))
    on_cpu = mixup(normal, abnormal, 2**40 + 3, 2**32 - 50_000)
    on_gpu = mixup(normal.cuda(), abnormal.cuda(), 2**40 + 3, 2**32 - 50_000)
    assert all(torch.equal(x, y.cpu()) for x, y in zip(on_cpu, on_gpu, strict=True))


def test_more_than_two_billion_coordinates(kernel):
    if torch.cuda.mem_get_info()[0] < 12 << 30:
        pytest.skip("needs 12 GB of free device memory")
    if kernel == "brute":
        pytest.skip("takes too long without a filter")
    bank = torch.randn(2_200_000, 1024, device="cuda", dtype=torch.float16)
    query = bank[[0, 1, 2_097_152, 2_199_999]]
    distance, index = min_distance(query, bank)
    assert index.tolist() == [0, 1, 2_097_152, 2_199_999]
    assert np.array_equal(distance.cpu().numpy(), np.zeros(4, dtype=np.float32))
