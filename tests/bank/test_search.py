"""Exact search in memory and in files: the same result, within the memory budget."""

import subprocess
import sys

import pytest
import torch

from monai_wscxr.bank import search
from monai_wscxr.bank.file import BankFile, save_rows
from monai_wscxr.bank.search import farthest, nearest, plan_search
from monai_wscxr.errors import InputError
from monai_wscxr.ops import min_distance, mine_top_k

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(3)


@pytest.fixture(params=DEVICES)
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and torch sees none")
    return request.param


def integers(g, n, channels=3):
    return torch.randint(-3, 4, (n, channels), generator=g).float()


def plan_of(n_query, source, budget):
    return plan_search(n_query, *source.shape, source.dtype, budget)


def budget_for(n_query, source, block):
    """Find the smallest budget that gives blocks of this many rows."""
    budget = 1
    while True:
        try:
            plan = plan_of(n_query, source, budget)
        except InputError:
            budget *= 2
            continue
        if plan.block_rows >= block:
            low, high = budget // 2, budget
            while low < high:
                middle = (low + high) // 2
                try:
                    enough = plan_of(n_query, source, middle).block_rows >= block
                except InputError:
                    enough = False
                low, high = (low, middle) if enough else (middle + 1, high)
            return low
        budget *= 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("block", [32, 100, 999, 1000])
@pytest.mark.parametrize("kind", ["file", "tensor"])
def test_same_result_as_in_memory(tmp_path, device, generator, dtype, block, kind):
    query, bank = integers(generator, 70).to(dtype), integers(generator, 1000).to(dtype)
    source = bank
    if kind == "file":
        save_rows(tmp_path / "bank.safetensors", bank)
        source = BankFile(tmp_path / "bank.safetensors")
    budget = budget_for(70, source, block)
    assert plan_of(70, source, budget).block_rows == block
    found = nearest(query.to(device), source, budget)
    for got, expected in zip(found, min_distance(query, bank), strict=True):
        assert torch.equal(got.cpu(), expected)
    mined = farthest(query.to(device), source, 14, budget)
    for got, expected in zip(mined, mine_top_k(query, bank, 14), strict=True):
        assert torch.equal(got.cpu(), expected)


@pytest.mark.parametrize("kind", ["integers", "features", "one far query"])
@pytest.mark.parametrize("k", [1, 37, 690])
def test_dropping_never_changes_what_is_mined_from_a_file(tmp_path, generator, monkeypatch, kind, k):
    """Integers give many equal distances, also at the cut, where the lowest index has to win."""
    if kind == "integers":
        query, bank = integers(generator, 2100, 5), integers(generator, 3000, 5)
    else:
        query, bank = torch.rand(2100, 16, generator=generator), torch.rand(3000, 16, generator=generator)
        query[77] += 2 if kind == "one far query" else 0
    save_rows(tmp_path / "bank.safetensors", bank)
    source = BankFile(tmp_path / "bank.safetensors")
    searched = []

    def counting(query, block, *others):
        searched.append(len(query) * len(block))
        return search.search_block_before(query, block, *others)

    monkeypatch.setattr(search, "_DROPPING_QUERIES", 2048)
    monkeypatch.setattr(search, "search_block_before", search.search_block, raising=False)
    monkeypatch.setattr(search, "search_block", counting)
    mined = farthest(query, source, k, budget_for(2100, source, 100))
    expected = mine_top_k(query, bank, k)
    assert torch.equal(mined[0], expected[0])
    assert torch.equal(mined[1], expected[1])
    if kind != "integers" and k == 37:
        assert sum(searched) < 0.6 * len(query) * len(bank)


def test_few_queries_or_most_of_them_take_one_pass_over_a_file(tmp_path, generator, monkeypatch):
    save_rows(tmp_path / "bank.safetensors", integers(generator, 500))
    source, query = BankFile(tmp_path / "bank.safetensors"), integers(generator, 2100)
    read = []
    monkeypatch.setattr(search, "_DROPPING_QUERIES", 2048)
    monkeypatch.setattr(source, "read", lambda first, out: read.append(len(out)) or BankFile.read(source, first, out))
    for queries, k, passes in [(query[:2000], 20, 1), (query, 1050, 1), (query, 20, 2)]:
        read.clear()
        farthest(queries, source, k)
        assert round(sum(read) / 500) == passes


@pytest.mark.parametrize("k", [0, 71])
@pytest.mark.parametrize("kind", ["file", "tensor"])
def test_k_outside_the_query_is_an_error(tmp_path, generator, k, kind):
    query, bank = integers(generator, 70), integers(generator, 100)
    save_rows(tmp_path / "bank.safetensors", bank)
    source = BankFile(tmp_path / "bank.safetensors") if kind == "file" else bank
    with pytest.raises(ValueError, match=f"between 1 and the number of query rows .70., got {k}"):
        farthest(query, source, k)


def test_a_file_that_shrinks_while_it_is_read_is_an_error_not_a_hang(tmp_path):
    path = tmp_path / "bank.safetensors"
    save_rows(path, torch.ones(1000, 20))
    source = BankFile(path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(InputError, match="ends early"):
        nearest(torch.ones(2, 20), source, budget_for(2, source, 100))


def test_too_small_a_budget_says_what_is_needed(tmp_path):
    save_rows(tmp_path / "bank.safetensors", torch.ones(5000, 100))
    with pytest.raises(InputError, match=r"searching 10 rows needs at least 0\.\d MB, the budget is 0\.0 MB"):
        nearest(torch.ones(10, 100), BankFile(tmp_path / "bank.safetensors"), 1000)


@pytest.mark.parametrize("kind", ["file", "tensor"])
@pytest.mark.parametrize("bad", ["query", "bank"])
def test_nan_is_an_error(tmp_path, bad, kind):
    rows = {"query": torch.ones(5, 3), "bank": torch.ones(50, 3)}
    rows[bad][2, 1] = torch.nan
    save_rows(tmp_path / "bank.safetensors", rows["bank"])
    source = BankFile(tmp_path / "bank.safetensors") if kind == "file" else rows["bank"]
    with pytest.raises(ValueError, match=f"{bad} holds NaN or Inf"):
        nearest(rows["query"], source)


@pytest.mark.parametrize("kind", ["file", "tensor"])
def test_another_width_is_an_error(tmp_path, kind):
    save_rows(tmp_path / "bank.safetensors", torch.ones(50, 4))
    source = BankFile(tmp_path / "bank.safetensors") if kind == "file" else torch.ones(50, 4)
    with pytest.raises(ValueError, match="same number of channels"):
        nearest(torch.ones(5, 3), source)


MEASURE = """
import sys, torch
from monai_wscxr.bank import BankFile, nearest, plan_search, save_rows
torch.set_num_threads(1)
path, budget = sys.argv[1], int(sys.argv[2])
query = torch.randn(256, 256, generator=torch.Generator().manual_seed(1))
save_rows(path + ".small", torch.randn(64, 256))
nearest(query, BankFile(path + ".small"), budget)  # loads libraries and starts threads before the measurement
def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))
open("/proc/self/clear_refs", "w").write("5")  # resets the peak
before = status("VmRSS")
source = BankFile(path)
distance, index = nearest(query, source, budget)
predicted = plan_search(256, *source.shape, source.dtype, budget).peak_bytes
print(status("VmHWM") - before, predicted, index.sum().item(), distance.sum().item())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_peak_memory_is_as_predicted_in_a_bank_four_times_the_budget(tmp_path, generator):
    bank = torch.randn(200_000, 256, generator=generator)
    budget = bank.nbytes // 4
    save_rows(tmp_path / "bank.safetensors", bank)
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "bank.safetensors"), str(budget)],
        capture_output=True,
        text=True,
        check=True,
    )
    peak, predicted, index, distance = map(float, run.stdout.split())
    assert predicted <= budget
    assert 0.9 * predicted <= peak <= 1.1 * predicted, f"{peak / 1e6:.1f} MB, {predicted / 1e6:.1f} MB predicted"
    query = torch.randn(256, 256, generator=torch.Generator().manual_seed(1))
    expected = min_distance(query, bank)
    assert index == expected[1].sum().item()
    assert distance == pytest.approx(expected[0].sum().item(), rel=1e-6)
