"""min_distance against a naive float64 search: same rows and same distances for all kinds of numbers and block sizes."""

import importlib
import re

import numpy as np
import pytest
import torch

from monai_wscxr import ops
from monai_wscxr.ops import OPERATORS, PackedBank, _library, backend, min_distance
from tests.helpers.search_samples import assert_nearest, naive_squared

MODULE = importlib.import_module("monai_wscxr.ops.min_distance")
PACKING = importlib.import_module("monai_wscxr.ops.packed_bank")
KERNELS = ops.EXTENSION.available_search_kernels() if ops.EXTENSION is not None else []


def packed(query, bank):
    """Search a packed bank; on devices other than the CPU, which have none, the plain one."""
    return min_distance(query, PackedBank.pack(bank) if bank.device.type == "cpu" else bank)


def packed_in_plain_torch(query, bank):
    """Search a bank packed by the reference with the compiled kernels."""
    codes = PackedBank(bank, *PACKING._reference(bank))
    return min_distance(query, codes if bank.device.type == "cpu" else bank)


# The public function (compiled if a kernel is registered), each instruction set by name, packed banks, and the reference
# with constants that exercise every branch.
IMPLEMENTATIONS = {
    "public": (min_distance, {}),
    **{name: (min_distance, {"kernels": name}) for name in KERNELS},
    "packed": (packed, {}),
    "packed_in_plain_torch": (packed_in_plain_torch, {}),
    "reference": (MODULE._reference, {}),
    "small_blocks": (MODULE._reference, {"_QUERY_BLOCK": 7, "_BANK_BLOCK": 11}),
    "pile_overflows": (MODULE._reference, {"_QUERY_BLOCK": 7, "_BANK_BLOCK": 11, "_PILE_LIMIT": 5}),
    "refined_in_steps": (MODULE._reference, {"_BANK_BLOCK": 16, "_PILE_LIMIT": 40, "_REFINE_ELEMENTS": 640}),
}


@pytest.fixture(params=IMPLEMENTATIONS)
def search(request, monkeypatch):
    function, constants = IMPLEMENTATIONS[request.param]
    if "kernels" in constants:
        request.getfixturevalue("kernels")(constants["kernels"])
        return function
    for name, value in constants.items():
        monkeypatch.setattr(MODULE, name, value)
    return function


def test_equals_naive_float64_search(search, searched):
    assert_nearest(*searched, *search(*searched))


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_sizes_around_the_blocks(device, generator, extra):
    query = torch.randn(70, 3, generator=generator).to(device)
    bank = torch.randn(MODULE._BANK_BLOCK + extra, 3, generator=generator).to(device)
    assert_nearest(query, bank, *min_distance(query, bank))
    query = torch.randn(MODULE._QUERY_BLOCK + extra, 3, generator=generator).to(device)
    assert_nearest(query, bank[:40], *min_distance(query, bank[:40]))


def test_the_nearest_row_may_be_the_last_of_the_bank(device, generator):
    bank = torch.randn(2 * MODULE._BANK_BLOCK + 1, 3, generator=generator).to(device)
    query = bank[[-1, 0, MODULE._BANK_BLOCK, MODULE._BANK_BLOCK - 1]]
    distance, index = min_distance(query, bank)
    assert index.tolist() == [len(bank) - 1, 0, MODULE._BANK_BLOCK, MODULE._BANK_BLOCK - 1]
    assert distance.tolist() == [0.0] * 4


def test_plain_float32_expansion_and_cdist_fail_where_this_does_not(search, sample):
    query, bank = sample("near_copies")
    truth = naive_squared(query, bank)
    expansion = query.square().sum(1)[:, None] - 2 * query @ bank.T + bank.square().sum(1)
    wrong_rows = {
        "expansion": (expansion.cpu().numpy().argmin(1) != truth.argmin(1)).sum(),
        "cdist": (torch.cdist(query, bank).cpu().numpy().argmin(1) != truth.argmin(1)).sum(),
    }
    assert all(wrong_rows.values()), f"too easy a sample: {wrong_rows}"
    assert (torch.cdist(query, bank).amin(1).cpu().numpy() / np.sqrt(truth.min(1)) - 1).max() > 1e-5
    _, index = search(query, bank)
    assert np.array_equal(index.cpu().numpy(), truth.argmin(1))


def test_faiss_and_the_expansion_fail_where_this_does_not(search, generator):
    faiss = pytest.importorskip("faiss", reason="faiss is not a dependency: pip install faiss-cpu")
    # sixteen near-copies of each of 64 rows, and queries next to them, all about 1e-3 apart; large enough for faiss to use
    # matrix products
    rows = torch.randn(64, 1024, generator=generator)
    bank, query = (rows.repeat_interleave(n, 0) for n in (16, 4))
    bank, query = (x * (1 + 1e-3 * torch.randn(x.shape, generator=generator)) for x in (bank, query))
    truth = naive_squared(query, bank)
    flat = faiss.IndexFlatL2(bank.shape[1])
    flat.add(bank.numpy())
    squared, row = flat.search(query.numpy(), 1)
    expansion = (query.square().sum(1)[:, None] - 2 * query @ bank.T + bank.square().sum(1)).numpy()
    least = np.sqrt(truth.min(1))
    for there, at in ((squared[:, 0], row[:, 0]), (expansion.min(1), expansion.argmin(1))):
        assert (at != truth.argmin(1)).mean() > 0.3
        assert np.abs(np.sqrt(there.clip(0)) / least - 1).max() > 1e-3
    distance, index = search(query, bank)
    assert np.array_equal(index.numpy(), truth.argmin(1))
    np.testing.assert_allclose(distance.double().numpy(), least, rtol=1e-6)


def test_a_copy_of_a_bank_row_is_at_distance_zero_exactly(search, sample):
    query, bank = sample("duplicates")
    distance, index = search(query, bank)
    assert torch.equal(distance, torch.zeros_like(distance))
    assert torch.equal(bank[index], query)
    assert int(index.max()) < len(bank) // 2, "the bank holds each row twice, and the lower index is expected"


def test_ties_go_to_the_lowest_index(search, sample):
    query, bank = sample("identical_bank")
    assert search(query, bank)[1].tolist() == [0] * len(query)
    query, bank = sample("grid")
    squared = naive_squared(query, bank)
    assert ((squared == squared.min(1, keepdims=True)).sum(1) > 1).mean() > 0.5, "the sample has few ties"
    assert search(query, bank)[1].tolist() == squared.argmin(1).tolist()


@pytest.mark.parametrize("name", ["overflow_float32", "overflow_float64"])
def test_a_distance_beyond_float32_is_infinite_and_its_row_is_in_the_bank(search, sample, name):
    query, bank = sample(name)
    distance, index = search(query, bank)
    same = (query[:, None] == bank[None]).all(-1).any(1)
    assert torch.equal(distance == 0, same)
    assert torch.equal(torch.isinf(distance), ~same)
    assert 0 <= int(index.min()) <= int(index.max()) < len(bank)


def test_empty_query_gives_empty_results(search, device):
    distance, index = search(torch.empty(0, 5, device=device), torch.ones(3, 5, device=device))
    assert distance.shape == index.shape == (0,)
    assert (distance.dtype, index.dtype) == (torch.float32, torch.int64)


def test_inputs_are_left_alone(search, sample):
    for name in ("random", "float64", "transposed"):
        query, bank = sample(name)
        before = query.clone(), bank.clone()
        search(query, bank)
        assert torch.equal(query, before[0])
        assert torch.equal(bank, before[1])


REDUCE = {
    "medium": lambda t: t.set_float32_matmul_precision("medium"),
    "high": lambda t: t.set_float32_matmul_precision("high"),
    "tf32": lambda t: setattr(t.backends.cuda.matmul, "allow_tf32", True),
    "fp32_precision_tf32": lambda t: setattr(t.backends.cuda.matmul, "fp32_precision", "tf32"),
    "mkldnn_bf16": lambda t: setattr(t.backends.mkldnn.matmul, "fp32_precision", "bf16"),
}


@pytest.mark.parametrize("switch", REDUCE)
def test_reduced_precision_products_change_nothing(search, sample, matmul_precision, switch):
    query, bank = sample("near_copies")
    before = search(query, bank)
    REDUCE[switch](matmul_precision)
    assert all(torch.equal(x, y) for x, y in zip(before, search(query, bank), strict=True))
    assert_nearest(query, bank, *search(query, bank))


@pytest.mark.parametrize("switch", REDUCE)
def test_the_filter_multiplies_in_float64_where_float32_products_are_reduced(
    sample, matmul_precision, recorder, switch
):
    # CPUs without reduced-precision units ignore the switches, so check the types of the products
    query, bank = sample("random")
    with recorder:
        MODULE._reference(query, bank)
    assert recorder.product_types == {torch.float32}
    recorder.product_types.clear()
    REDUCE[switch](matmul_precision)
    with recorder:
        MODULE._reference(query, bank)
    assert recorder.product_types == {torch.float64}


@pytest.mark.parametrize("name", ["float64", "float64_on_float32", "huge_1e18", "tiny_1e-30", "overflow_float32"])
def test_the_filter_multiplies_in_float64_where_float32_has_no_useful_bound(sample, recorder, name):
    with recorder:
        MODULE._reference(*sample(name))
    assert recorder.product_types == {torch.float64}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(search, sample, device, dtype):
    query, bank = sample("near_copies")
    with torch.autocast(device, dtype=dtype):
        assert (query @ bank.T).dtype == dtype, "autocast is on"
        distance, index = search(query, bank)
    assert_nearest(query, bank, distance, index)


@pytest.mark.parametrize("name", ["random", "identical_bank"])
def test_no_tensor_holds_all_pairs(monkeypatch, device, generator, recorder, name):
    n_query, n_bank, channels = 300, 400, 4
    query = torch.randn(n_query, channels, generator=generator).to(device)
    bank = torch.randn(n_bank, channels, generator=generator).to(device)
    if name == "identical_bank":
        bank = bank[:1].repeat(n_bank, 1)  # no pair can be ruled out
    constants = {"_QUERY_BLOCK": 64, "_BANK_BLOCK": 50, "_PILE_LIMIT": 1000, "_REFINE_ELEMENTS": 4000}
    for constant, value in constants.items():
        monkeypatch.setattr(MODULE, constant, value)
    with recorder:
        result = MODULE._reference(query, bank)
    assert_nearest(query, bank, *result)
    block = 64 * 50
    assert block <= recorder.largest < n_query * n_bank / 10
    # two numbers (row and column) for each pair of the pile and of the block that exceeded its limit
    assert recorder.largest <= max(2 * block + constants["_PILE_LIMIT"], constants["_REFINE_ELEMENTS"])


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_gpu_memory_stays_far_below_all_pairs(device, generator):
    query = torch.randn(20_000, 8, generator=generator).to(device)
    bank = torch.randn(100_000, 8, generator=generator).to(device)
    min_distance(query[:10], bank[:10])
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    min_distance(query, bank)
    assert torch.cuda.max_memory_allocated() - before < len(query) * len(bank) * 4 / 8


def rows(n=3, channels=2, **kwargs):
    return torch.ones(n, channels, **kwargs)


REJECTED = {
    "query_rank_1": (lambda: (torch.ones(2), rows()), r"query must be a matrix of rows \[N, C\], got shape \(2,\)"),
    "bank_rank_3": (lambda: (rows(), torch.ones(1, 3, 2)), r"bank must be a matrix of rows .*\(1, 3, 2\)"),
    "query_int": (lambda: (rows(dtype=torch.int32), rows()), "query must be a floating-point tensor, got torch.int32"),
    "bank_int": (lambda: (rows(), rows(dtype=torch.int64)), "bank must be a floating-point tensor, got torch.int64"),
    "bank_bool": (lambda: (rows(), rows(dtype=torch.bool)), "bank must be a floating-point tensor, got torch.bool"),
    "query_complex": (lambda: (rows(dtype=torch.complex64), rows()), "floating-point tensor, got torch.complex64"),
    "width": (lambda: (rows(channels=4), rows(channels=5)), "same number of channels .* got 4 and 5"),
    "no_channels": (lambda: (rows(channels=0), rows(channels=0)), r"same number of channels \(at least 1\)"),
    "bank_device": (lambda: (rows(), rows(device="meta")), "query is on cpu but bank on meta; move one"),
    "query_device": (lambda: (rows(device="meta"), rows()), "query is on meta but bank on cpu; move one"),
    "empty_bank": (lambda: (rows(), rows(0)), "the bank is empty"),
}


@pytest.mark.parametrize("case", REJECTED)
def test_every_argument_check_says_what_came(case):
    arguments, message = REJECTED[case]
    with pytest.raises(ValueError, match="min_distance: .*" + message):
        min_distance(*arguments())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["query", "bank"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_nan_and_inf_are_errors(search, device, dtype, where, bad):
    matrices = {"query": torch.ones(5, 3, dtype=dtype), "bank": torch.ones(7, 3, dtype=dtype)}
    matrices[where][2, 1] = bad
    matrices[where][4, 0] = bad
    with pytest.raises(ValueError, match=f"{where} holds NaN or Inf in 2 of {len(matrices[where])} rows"):
        search(matrices["query"].to(device), matrices["bank"].to(device))


def test_a_broken_bank_is_an_error_for_an_empty_query_too(search, device):
    with pytest.raises(ValueError, match="bank holds NaN or Inf"):
        search(torch.empty(0, 1, device=device), torch.full((1, 1), torch.nan, device=device))


@pytest.mark.parametrize("argument", ["query", "bank"])
def test_backward_says_why_there_is_none(device, argument):
    query, bank = rows(device=device), rows(4, device=device)
    {"query": query, "bank": bank}[argument].requires_grad_()
    distance, index = min_distance(query, bank)
    assert not index.requires_grad
    with pytest.raises(
        RuntimeError, match=r"min_distance has no gradient: the index of the nearest row is not differentiable\. Detach"
    ):
        distance.sum().backward()


def test_opcheck(searched):
    torch.library.opcheck(torch.ops.monai_wscxr.min_distance.default, searched)


def test_opcheck_of_an_empty_query(device):
    torch.library.opcheck(
        torch.ops.monai_wscxr.min_distance.default, (torch.empty(0, 3, device=device), rows(4, 3, device=device))
    )


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(device, generator, compile_counted, dynamic):
    compiled, counter = compile_counted(lambda query, bank: min_distance(query * 2, bank)[0] + 1)
    for n_query, n_bank in ((5, 7), (9, 30), (12, 4)):
        query = torch.randn(n_query, 6, generator=generator).to(device)
        bank = torch.randn(n_bank, 6, generator=generator).to(device)
        if dynamic:
            torch._dynamo.mark_dynamic(query, 0)
            torch._dynamo.mark_dynamic(bank, 0)
        assert torch.equal(compiled(query, bank), min_distance(query * 2, bank)[0] + 1)
    assert counter.frame_count == 1 if dynamic else counter.frame_count <= 2


class Search(torch.nn.Module):
    def forward(self, query, bank):
        return min_distance(query, bank)


def test_exports_with_free_sizes(device, generator):
    query, bank = torch.randn(5, 6, generator=generator).to(device), torch.randn(7, 6, generator=generator).to(device)
    free = {"query": {0: torch.export.Dim("n")}, "bank": {0: torch.export.Dim("m")}}
    program = torch.export.export(Search(), (query, bank), dynamic_shapes=free)
    for n_query, n_bank in ((5, 7), (3, 4), (1, 1)):
        got = program.module()(query[:n_query], bank[:n_bank])
        assert all(map(torch.equal, got, min_distance(query[:n_query], bank[:n_bank])))


@pytest.mark.parametrize("operator", ["min_distance", "mine_top_r", "mixup"])
def test_backend_says_which_code_runs_and_why(monkeypatch, operator):
    assert operator in OPERATORS
    for kernel, extension, name, reason in (
        (True, object(), "compiled", "a compiled CPU kernel is registered"),
        (False, object(), "reference", f"the extension contains no CPU kernel for {operator}"),
        (False, None, "reference", _library.EXTENSION_STATE),
    ):
        monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda *_, has=kernel: has)
        monkeypatch.setattr(_library, "EXTENSION", extension)
        assert backend(operator, torch.device("cpu")) == _library.Backend(name, reason)


@pytest.mark.parametrize("operator", ["min_distance", "mine_top_r", "mixup"])
def test_without_an_extension_the_reference_runs(device, operator):
    if _library.EXTENSION is not None:
        pytest.skip(f"the extension is {_library.EXTENSION_STATE}")
    assert backend(operator, device).name == "reference"
    assert re.search("not built|cannot be loaded", backend(operator, device).reason)


def test_unknown_operator_is_an_error():
    with pytest.raises(ValueError, match=r"unknown operator 'min_distances': the operators are .*min_distance"):
        backend("min_distances")


def test_a_compiled_kernel_takes_precedence_and_backend_sees_it(monkeypatch):
    library = torch.library.Library("monai_wscxr_scratch", "DEF")
    monkeypatch.setattr(_library, "_LIBRARY", library)
    monkeypatch.setattr(_library, "NAMESPACE", "monai_wscxr_scratch")
    monkeypatch.setattr(_library, "OPERATORS", [])
    _library.define("twice", "(Tensor x) -> Tensor", lambda x: 2 * x, torch.empty_like)
    operator = torch.ops.monai_wscxr_scratch.twice
    assert _library.OPERATORS == ["twice"]
    assert backend("twice").name == "reference"
    assert operator(torch.ones(1)).item() == 2
    kernel = torch.library.Library("monai_wscxr_scratch", "IMPL")
    kernel.impl("twice", lambda x: 2 * x + 0.5, "CPU")
    try:
        assert backend("twice") == _library.Backend("compiled", "a compiled CPU kernel is registered")
        assert backend("twice", "cuda").name == "reference"
        assert operator(torch.ones(1)).item() == 2.5
        assert operator(torch.ones(3, device="meta")).shape == (3,)
    finally:
        kernel._destroy()
        library._destroy()


def test_an_extension_that_is_missing_or_broken_is_told_apart(monkeypatch):
    assert _library._extension("_no_such") == (None, "the extension module monai_wscxr._no_such was not built")

    def broken(name):
        raise ImportError("libcudart.so.99: cannot open shared object file")

    monkeypatch.setattr(_library.importlib, "import_module", broken)
    module, state = _library._extension("_C")
    assert module is None
    assert state == (
        "the extension module monai_wscxr._C was built but cannot be loaded: "
        "libcudart.so.99: cannot open shared object file"
    )
