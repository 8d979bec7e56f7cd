"""Banks in files: saved, loaded, and searched block by block within a budget."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from monai_wscxr.bank.file import BankFile, save_rows
from monai_wscxr.bank.search import load_packed, min_distance_streamed, mine_streamed, plan_search, save_packed
from monai_wscxr.errors import InputError
from monai_wscxr.ops import PackedBank, min_distance, mine_top_r

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


def budget_for(n_query, source, block):
    """The least budget that gives blocks of so many rows."""
    budget = 1
    while True:
        try:
            plan = plan_search(n_query, source, budget)
        except InputError:
            budget *= 2
            continue
        if plan.block_rows >= block:
            low, high = budget // 2, budget
            while low < high:
                middle = (low + high) // 2
                try:
                    enough = plan_search(n_query, source, middle).block_rows >= block
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
    assert plan_search(70, source, budget).block_rows == block
    found = min_distance_streamed(query.to(device), source, budget)
    for got, expected in zip(found, min_distance(query, bank), strict=True):
        assert torch.equal(got.cpu(), expected)
    mined = mine_streamed(query.to(device), source, 0.2, budget)
    for got, expected in zip(mined, mine_top_r(query, bank, 0.2), strict=True):
        assert torch.equal(got.cpu(), expected)


def test_a_packed_bank_comes_back_from_its_file(tmp_path, generator):
    query, bank = torch.randn(40, 9, generator=generator), torch.randn(300, 9, generator=generator)
    packed = PackedBank.pack(bank)
    save_packed(tmp_path / "bank.safetensors", packed)
    again = load_packed(tmp_path / "bank.safetensors")
    assert torch.equal(again.rows, bank)
    assert all(map(torch.equal, again.packed, packed.packed))
    assert all(map(torch.equal, min_distance(query, again), min_distance(query, bank)))
    assert BankFile(tmp_path / "bank.safetensors").shape == (300, 9)
    assert list(tmp_path.iterdir()) == [tmp_path / "bank.safetensors"]


@pytest.mark.parametrize("damage", ["missing", "text", "rows_only", "cut"])
def test_what_is_no_packed_bank_is_refused(tmp_path, generator, damage):
    path = tmp_path / "bank.safetensors"
    if damage == "text":
        path.write_text("something else")
    elif damage == "rows_only":
        save_rows(path, torch.ones(3, 2))
    elif damage == "cut":
        save_packed(path, PackedBank.pack(torch.randn(50, 4, generator=generator)))
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"bank\.safetensors (is no|cannot be read as a) packed bank"):
        load_packed(path)


@pytest.mark.parametrize("damage", ["missing", "text", "cut", "name", "vector", "integers", "header"])
def test_what_is_no_bank_file_is_refused(tmp_path, damage):
    path = tmp_path / "bank.safetensors"
    if damage == "text":
        path.write_text("something else that is longer than eight bytes")
    elif damage == "cut":
        save_rows(path, torch.ones(30, 20))
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "name":
        save_file({"others": torch.ones(3, 2)}, path)
    elif damage == "vector":
        save_file({"rows": torch.ones(3)}, path)
    elif damage == "integers":
        save_file({"rows": torch.ones(3, 2).int()}, path)
    elif damage == "header":
        header = json.dumps({"rows": {"dtype": "F32", "shape": [9, 9], "data_offsets": [0, 4]}}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(400))
    with pytest.raises(InputError, match=r"bank\.safetensors: no bank of rows"):
        BankFile(path)


def test_a_file_that_shrinks_while_it_is_read_is_an_error_not_a_hang(tmp_path):
    path = tmp_path / "bank.safetensors"
    save_rows(path, torch.ones(1000, 20))
    source = BankFile(path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(InputError, match="ends early"):
        min_distance_streamed(torch.ones(2, 20), source, budget_for(2, source, 100))


def test_too_small_a_budget_says_what_is_needed():
    with pytest.raises(InputError, match=r"searching 10 rows needs at least 0\.\d MB, the budget is 0\.0 MB"):
        min_distance_streamed(torch.ones(10, 100), torch.ones(5000, 100), 1000)


@pytest.mark.parametrize("bad", ["query", "bank"])
def test_nan_is_an_error(bad):
    rows = {"query": torch.ones(5, 3), "bank": torch.ones(50, 3)}
    rows[bad][2, 1] = torch.nan
    with pytest.raises(ValueError, match=f"{bad} holds NaN or Inf"):
        min_distance_streamed(rows["query"], rows["bank"])


def test_another_width_is_an_error():
    with pytest.raises(ValueError, match="same number of channels"):
        min_distance_streamed(torch.ones(5, 3), torch.ones(50, 4))


MEASURE = """
import sys, torch
from monai_wscxr.bank.search import BankFile, min_distance_streamed, plan_search, save_rows
torch.set_num_threads(1)
path, budget = sys.argv[1], int(sys.argv[2])
query = torch.randn(256, 256, generator=torch.Generator().manual_seed(1))
save_rows(path + ".small", torch.randn(64, 256))
min_distance_streamed(query, BankFile(path + ".small"), budget)  # libraries and threads are there before measuring
def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))
open("/proc/self/clear_refs", "w").write("5")  # resets the peak
before = status("VmRSS")
source = BankFile(path)
distance, index = min_distance_streamed(query, source, budget)
print(status("VmHWM") - before, plan_search(256, source, budget).peak_bytes, index.sum().item(), distance.sum().item())
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
