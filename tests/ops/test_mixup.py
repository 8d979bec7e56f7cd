"""mixup: the random stream against published values and Python integers, the mixing against float64, the gradients."""

import importlib

import numpy as np
import pytest
import torch
from scipy import stats

from monai_wscxr import ops
from monai_wscxr.ops import backend, mixup

MODULE = importlib.import_module("monai_wscxr.ops.mixup")
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
WORD = 2**32

# Random123 (D. E. Shaw Research), kat_vectors: philox4x32, 10 rounds: counter, key, answer
KNOWN_ANSWERS = {
    "zeros": ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    "ones": ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    "pi": ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
}


def words(text):
    return [int(word, 16) for word in text.split()]


def naive_philox(counter, key):
    """Compute Philox4x32-10 with Python integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c[0], WORD)
        high1, low1 = divmod(0xCD9E8D57 * c[2], WORD)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) % WORD, (k[1] + 0xBB67AE85) % WORD]
    return c


def naive_draw(row, m, seed, alpha_min, alpha_max):
    """Compute (source, alpha) of one row with Python integers and separately rounded float32 operations."""
    w = naive_philox([row % WORD, row // WORD, 0, 0], [seed % WORD, seed // WORD])
    source = (w[1] * WORD + w[0]) * m >> 64
    uniform = np.float32(w[2] >> 8) * np.float32(2.0**-24)
    low, high = np.float32(alpha_min), np.float32(alpha_max)
    return source, min(np.float32(low + np.float32(np.float32(high - low) * uniform)), high)


def patches(g, n, m, channels=3, dtype=torch.float32, device="cpu"):
    pair = (torch.randn(n, channels, generator=g), torch.randn(m, channels, generator=g) + 2)
    return tuple(rows.to(device, dtype) for rows in pair)


def drawn(n, m, *args, device="cpu"):
    """Return source and alpha of a call with n normal and m abnormal rows."""
    return mixup(torch.zeros(n, 1, device=device), torch.zeros(m, 1, device=device), *args)[1:]


@pytest.mark.parametrize("name", KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(device, name):
    counter, key, answer = map(words, KNOWN_ANSWERS[name])
    assert naive_philox(counter, key) == answer
    got = MODULE.philox_rounds(tuple(torch.tensor([word], device=device) for word in counter), *key)
    assert [int(word) for word in got] == answer


def test_philox_splits_counter_and_seed_into_words(device):
    counter, seed = [0, 1, WORD - 1, WORD, 2**62 + 12345], 0x7654321089ABCDEF
    got = torch.stack(MODULE.philox(torch.tensor(counter, device=device), seed), dim=1)
    assert got.tolist() == [naive_philox([c % WORD, c // WORD, 0, 0], [seed % WORD, seed // WORD]) for c in counter]


STREAMS = {  # seed, offset, m, alpha_min, alpha_max
    "start": (0, 0, 7, 0.1, 1.0),
    "seed": (12345, 0, 1000, 0.1, 1.0),
    "seed_beyond_32_bits": (2**62 + 2**33 + 5, 17, 1000, 0.3, 0.7),
    "largest_seed": (2**63 - 1, 3, 12_544, 0.0, 1.0),
    "offset": (1, 99_991, 5, 0.1, 0.9),
    "offset_across_32_bits": (1, 2**32 - 9, 50, 0.1, 1.0),
    "offset_beyond_32_bits": (1, 2**40 + 3, 50, 0.1, 1.0),
    "largest_offset": (9, 2**63 - 20, 50, 0.1, 1.0),
    "one_abnormal_row": (4, 0, 1, 0.1, 1.0),
    "narrow": (4, 0, 9, 0.25, 0.2500001),
}


@pytest.mark.parametrize("name", STREAMS)
def test_source_and_alpha_equal_plain_integers_bit_for_bit(device, name):
    seed, offset, m, alpha_min, alpha_max = STREAMS[name]
    source, alpha = drawn(20, m, seed, offset, alpha_min, alpha_max, device=device)
    assert (source.dtype, alpha.dtype) == (torch.int64, torch.float32)
    expected = [naive_draw(offset + i, m, seed, alpha_min, alpha_max) for i in range(20)]
    assert source.tolist() == [s for s, _ in expected]
    assert alpha.cpu().numpy().tobytes() == np.array([a for _, a in expected], dtype=np.float32).tobytes()


@pytest.mark.parametrize("n", [1, 2, 3, 1000, 2**31, WORD - 1, WORD, WORD + 1, 3 * 2**33 + 7, 2**40 - 1, 2**40])
def test_index_below_n_is_the_high_half_of_a_128_bit_product(device, n):
    g = torch.Generator().manual_seed(n % 1000)
    corners = [0, 1, 2**31, WORD - 1]
    low = torch.cat([torch.tensor(corners).repeat(4), torch.randint(WORD, (500,), generator=g)]).to(device)
    high = torch.cat([torch.tensor(corners).repeat_interleave(4), torch.randint(WORD, (500,), generator=g)]).to(device)
    pairs = zip(low.tolist(), high.tolist(), strict=True)
    assert MODULE._below(low, high, n).tolist() == [(h * WORD + l_) * n >> 64 for l_, h in pairs]


def test_row_depends_on_seed_and_place_in_the_stream_alone(device, generator):
    normal, abnormal = patches(generator, 100, 30, device=device)
    whole = mixup(normal, abnormal, 5, 2**32 - 50)
    for sizes in ([1, 99], [50, 50], [33, 0, 33, 34], [1] * 100):
        pieces, start = [], 0
        for size in sizes:
            pieces.append(mixup(normal[start : start + size], abnormal, 5, 2**32 - 50 + start))
            start += size
        assert all(torch.equal(x, torch.cat(parts)) for x, parts in zip(whole, zip(*pieces, strict=True), strict=True))


def test_values_types_and_widths_do_not_move_the_stream(device, generator):
    source, alpha = drawn(40, 9, 3, 8, device=device)
    for dtype in DTYPES:
        _, s, a = mixup(*patches(generator, 40, 9, 6, dtype, device), 3, 8)
        assert torch.equal(s, source)
        assert torch.equal(a, alpha)


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_gpu_draws_the_same_bits_as_the_cpu(device):
    for seed, offset in ((0, 0), (2**62 + 1, 2**32 - 1000)):
        on_cpu, on_gpu = drawn(100_003, 12_544, seed, offset), drawn(100_003, 12_544, seed, offset, device=device)
        assert all(torch.equal(x, y.cpu()) for x, y in zip(on_cpu, on_gpu, strict=True))


def test_other_seeds_and_offsets_are_other_draws(device):
    base = drawn(1000, 1000, 1, 0, device=device)
    for seed, offset in ((2, 0), (1 + WORD, 0), (1, 1000), (1, WORD)):
        other = drawn(1000, 1000, seed, offset, device=device)
        assert (base[0] == other[0]).float().mean() < 0.01
        assert (base[1] == other[1]).float().mean() < 0.01


@pytest.mark.parametrize(
    ("low", "high"), [(0.1, 1.0), (0.0, 1.0), (0.0, 0.0), (0.3, 0.3), (1.0, 1.0), (0.7, 0.7000001)]
)
def test_alpha_lies_in_its_range(device, low, high):
    alpha = drawn(20_000, 1, 6, 0, low, high, device=device)[1].cpu().numpy()
    assert alpha.min() >= np.float32(low)
    assert alpha.max() <= np.float32(high)
    if low == high:
        assert (alpha == np.float32(low)).all()
    else:
        assert alpha.min() < alpha.max()


def test_source_is_uniform_and_alpha_too_and_neither_tells_the_other(device):
    n, m = 200_000, 50
    source, alpha = (x.cpu().numpy() for x in drawn(n, m, 2024, 0, 0.1, 1.0, device=device))
    assert stats.chisquare(np.bincount(source, minlength=m)).pvalue > 1e-3
    assert stats.kstest(alpha.astype(np.float64), stats.uniform(0.1, 0.9).cdf).pvalue > 1e-3
    cells, _, _ = np.histogram2d(source, alpha, bins=[m, 10])
    assert stats.chi2_contingency(cells).pvalue > 1e-3
    pairs, _, _ = np.histogram2d(source[:-1], source[1:], bins=[m, m])
    assert stats.chi2_contingency(pairs).pvalue > 1e-3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["dense", "transposed", "strided", "expanded"])
def test_mixed_is_the_weighted_sum_of_its_two_rows(device, generator, dtype, layout):
    normal, abnormal = patches(generator, 60, 60, 60, dtype, device)
    if layout == "transposed":
        normal, abnormal = normal.T, abnormal.T
    elif layout == "strided":
        normal, abnormal = normal[::2, ::3], abnormal[1::3, ::3]
    elif layout == "expanded":
        normal, abnormal = normal[:1].expand(9, -1), abnormal[:1].expand(4, -1)
    mixed, source, alpha = mixup(normal, abnormal, 11, 4)
    assert (mixed.dtype, mixed.device, mixed.shape) == (dtype, normal.device, normal.shape)
    weight = alpha.double()[:, None]
    parts = weight * abnormal.double()[source], (1 - weight) * normal.double()
    # 1 - alpha, product and sum are rounded once each on both sides; half precision is rounded once more
    unit = torch.finfo(dtype if dtype == torch.float64 else torch.float32).eps / 2
    tolerance = 3.01 * (unit + 2.0**-53) * (parts[0].abs() + parts[1].abs())
    if dtype in (torch.float16, torch.bfloat16):
        half = torch.finfo(dtype)
        tolerance += 1.001 * half.eps / 2 * sum(parts).abs() + half.smallest_normal * half.eps
    assert ((mixed.double() - sum(parts)).abs() <= tolerance).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_alpha_1_gives_the_abnormal_row_and_alpha_0_the_normal_one(device, generator, dtype):
    normal, abnormal = patches(generator, 20, 6, 5, dtype, device)
    mixed, source, _ = mixup(normal, abnormal, 0, 0, 1.0, 1.0)
    assert torch.equal(mixed, abnormal[source])
    assert torch.equal(mixup(normal, abnormal, 0, 0, 0.0, 0.0)[0], normal)


def test_no_normal_row_gives_empty_results(device):
    mixed, source, alpha = mixup(torch.empty(0, 4, device=device), torch.ones(3, 4, device=device), 1)
    assert (mixed.shape, source.shape, alpha.shape) == ((0, 4), (0,), (0,))
    assert (mixed.dtype, source.dtype, alpha.dtype) == (torch.float32, torch.int64, torch.float32)


def test_inputs_are_left_alone_and_the_generator_of_torch_too(device, generator):
    normal, abnormal = patches(generator, 20, 6, device=device)
    before = normal.clone(), abnormal.clone(), torch.get_rng_state()
    mixup(normal, abnormal, 1, 0, 1.0, 1.0)[0].zero_()
    assert all(map(torch.equal, before, (normal, abnormal, torch.get_rng_state())))


@pytest.mark.parametrize("asked", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("m", [1, 3, 20])
def test_gradients(device, generator, asked, m):
    normal, abnormal = patches(generator, 8, m, 2, torch.float64, device)
    normal.requires_grad_(asked[0])
    abnormal.requires_grad_(asked[1])
    # m = 1 and 3: several rows share an abnormal row; m = 20: some abnormal rows are not drawn
    assert torch.autograd.gradcheck(lambda n, a: mixup(n, a, 3, 5, 0.2, 0.9)[0], (normal, abnormal))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_come_in_the_type_of_the_inputs_and_equal_those_of_plain_torch(device, generator, dtype):
    normal, abnormal = (rows.requires_grad_() for rows in patches(generator, 40, 30, 4, dtype, device))
    mixed, source, alpha = mixup(normal, abnormal, 1)
    assert not source.requires_grad
    assert not alpha.requires_grad
    upstream = torch.randn(mixed.shape, generator=generator).to(device, dtype)
    got = torch.autograd.grad(mixed, (normal, abnormal), upstream)
    n, a = (rows.detach().double().requires_grad_() for rows in (normal, abnormal))
    weight = alpha.double()[:, None]
    expected = torch.autograd.grad(weight * a[source] + (1 - weight) * n, (n, a), upstream.double())
    for gradient, true in zip(got, expected, strict=True):
        assert gradient.dtype == dtype
        tolerance = 8 * torch.finfo(dtype).eps
        torch.testing.assert_close(gradient.double(), true, rtol=tolerance, atol=tolerance)


ROWS = torch.ones(3, 2)
REJECTED = {
    "normal_rank": ((torch.ones(2), ROWS, 0), r"normal must be \[N, C\] floating point, got \(2,\) torch.float32"),
    "abnormal_rank": ((ROWS, torch.ones(1, 3, 2), 0), r"abnormal must be \[N, C\] floating point, got \(1, 3, 2\)"),
    "normal_int": ((ROWS.int(), ROWS, 0), r"normal must be .* floating point, got \(3, 2\) torch.int32"),
    "abnormal_bool": ((ROWS, ROWS.bool(), 0), r"abnormal must be .* got \(3, 2\) torch.bool"),
    "width": ((ROWS, torch.ones(3, 5), 0), "must agree in channels, type and device, got 2 .* and 5 "),
    "dtype": ((ROWS, ROWS.double(), 0), "must agree in .* got 2 torch.float32 cpu and 2 torch.float64 cpu"),
    "device": ((ROWS, ROWS.to("meta"), 0), "must agree in .* got 2 torch.float32 cpu and 2 torch.float32 meta"),
    "no_abnormal": ((ROWS, ROWS[:0], 0), "there is no abnormal row to mix in; mine at least one"),
    "alpha_min_negative": ((ROWS, ROWS, 0, 0, -0.1, 1.0), "need 0 <= alpha_min <= alpha_max <= 1, got -0.1 and 1.0"),
    "alpha_max_above_1": ((ROWS, ROWS, 0, 0, 0.1, 1.1), "need 0 <= alpha_min <= alpha_max <= 1, got 0.1 and 1.1"),
    "alpha_reversed": ((ROWS, ROWS, 0, 0, 0.6, 0.5), "need 0 <= alpha_min <= alpha_max <= 1, got 0.6 and 0.5"),
    "alpha_min_nan": ((ROWS, ROWS, 0, 0, float("nan"), 1.0), "got nan and 1.0"),
    "alpha_max_nan": ((ROWS, ROWS, 0, 0, 0.1, float("nan")), "got 0.1 and nan"),
    "seed_negative": ((ROWS, ROWS, -1), r"seed and offset must lie in \[0, 2\^63\), got -1 and 0"),
    "seed_too_large": ((ROWS, ROWS, 2**63), rf"seed and offset must lie in .* got {2**63} and 0"),
    "offset_negative": ((ROWS, ROWS, 0, -1), "seed and offset must lie in .* got 0 and -1"),
    "offset_too_large": ((ROWS, ROWS, 0, 2**63), rf"seed and offset must lie in .* got 0 and {2**63}"),
}


@pytest.mark.parametrize("case", REJECTED)
def test_every_argument_check_says_what_came(case):
    arguments, message = REJECTED[case]
    with pytest.raises(ValueError, match="mixup: .*" + message):
        mixup(*arguments)


SAMPLES = {  # n, m, channels, dtype, view of both, arguments
    "float32": (6, 5, 4, torch.float32, lambda x: x, (1, 0, 0.1, 1.0)),
    "float64": (6, 5, 4, torch.float64, lambda x: x, (2**62, 2**33, 0.0, 0.5)),
    "float16": (6, 5, 4, torch.float16, lambda x: x, (1, 0, 0.1, 1.0)),
    "bfloat16": (6, 5, 4, torch.bfloat16, lambda x: x, (1, 0, 0.1, 1.0)),
    "transposed": (4, 4, 9, torch.float32, lambda x: x.T, (1, 0, 0.1, 1.0)),
    "strided": (12, 10, 8, torch.float32, lambda x: x[::2, ::2], (1, 0, 0.1, 1.0)),
    "expanded": (1, 1, 5, torch.float32, lambda x: x.expand(4, -1), (1, 0, 0.1, 1.0)),
    "one_row": (1, 1, 1, torch.float32, lambda x: x, (1, 0, 0.3, 0.3)),
    "no_normal": (0, 3, 4, torch.float32, lambda x: x, (1, 0, 0.1, 1.0)),
}


@pytest.mark.parametrize("asked", [(False, False), (True, True), (True, False), (False, True)])
@pytest.mark.parametrize("name", SAMPLES)
def test_opcheck(device, generator, name, asked):
    n, m, channels, dtype, view, arguments = SAMPLES[name]
    rows = [view(x).detach() for x in patches(generator, n, m, channels, dtype, device)]
    pair = tuple(x.requires_grad_(need) for x, need in zip(rows, asked, strict=True))
    torch.library.opcheck(torch.ops.monai_wscxr.mixup.default, (*pair, *arguments))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph_with_its_gradient(device, generator, compile_counted, dynamic):
    def mix(normal, abnormal):
        return mixup(normal * 2, abnormal, 3, 2**33, 0.2, 0.8)

    compiled, counter = compile_counted(mix)
    for n, m in ((5, 7), (9, 30), (12, 4)):
        normal, abnormal = (x.requires_grad_() for x in patches(generator, n, m, device=device))
        if dynamic:
            torch._dynamo.mark_dynamic(normal, 0)
            torch._dynamo.mark_dynamic(abnormal, 0)
        got, expected = compiled(normal, abnormal), mix(normal, abnormal)
        assert all(map(torch.equal, got, expected))
        gradients = [torch.autograd.grad(x[0].square().sum(), (normal, abnormal)) for x in (got, expected)]
        for x, y in zip(*gradients, strict=True):
            torch.testing.assert_close(x, y)
    assert counter.frame_count == 1 if dynamic else counter.frame_count <= 2


class Mix(torch.nn.Module):
    def forward(self, normal, abnormal):
        return mixup(normal, abnormal, 3, 5)


def test_exports_with_free_sizes(device, generator):
    normal, abnormal = patches(generator, 6, 5, device=device)
    free = {"normal": {0: torch.export.Dim("n")}, "abnormal": {0: torch.export.Dim("m")}}
    program = torch.export.export(Mix(), (normal, abnormal), dynamic_shapes=free)
    for n, m in ((6, 5), (2, 3), (1, 1)):
        assert all(map(torch.equal, program.module()(normal[:n], abnormal[:m]), mixup(normal[:n], abnormal[:m], 3, 5)))


def test_autocast_changes_nothing(device, generator):
    normal, abnormal = patches(generator, 20, 6, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        got = mixup(normal, abnormal, 1)
    assert got[0].dtype == torch.float32
    assert all(map(torch.equal, got, mixup(normal, abnormal, 1)))


@pytest.mark.skipif(backend("mixup").name == "reference", reason="no compiled kernel for the CPU")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("rows", "channels"), [(0, 3), (1, 1), (37, 5), (700, 320)])
def test_the_compiled_kernel_gives_the_bits_of_the_reference(dtype, rows, channels, generator):
    normal = torch.randn(channels, rows, generator=generator).to(dtype).T  # not contiguous
    abnormal = torch.randn(19, 2 * channels, generator=generator).to(dtype)[:, ::2]
    arguments = (normal, abnormal, 2**62 + 5, 2**33 + 1, 0.1, 0.9)
    compiled, reference = torch.ops.monai_wscxr.mixup(*arguments), MODULE._reference(*arguments)
    assert all(map(torch.equal, compiled, reference))


SPECIAL = [0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-45, -1e-40, 6e-8, 65_504.0, 65_520.0, 3.3895e38, 1.0, -1.5]


@pytest.mark.parametrize("name", ops.EXTENSION.available_search_kernels() if ops.EXTENSION else [])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 7, 8, 9, 15, 16, 17, 33, 320])
def test_every_instruction_set_gives_the_bits_of_the_reference(kernels, name, dtype, channels, generator):
    kernels(name)
    pairs = [patches(generator, 50, 9, channels)]
    pairs.append(
        [torch.tensor(SPECIAL)[torch.randint(len(SPECIAL), (n, channels), generator=generator)] for n in (50, 9)]
    )
    for normal, abnormal in pairs:
        arguments = (normal.to(dtype), abnormal.to(dtype), 3, 2**33 + 1, 0.1, 0.9)
        got, expected = mixup(*arguments), MODULE._reference(*arguments)
        for x, y in zip(got, expected, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "channels"), [(0, 3), (37, 5), (300, 328), (9000, 1000)])
def test_out_takes_the_same_bits(device, dtype, rows, channels, generator):
    # 9000 x 1000 numbers bypass the caches, in those rows whose start is aligned
    normal, abnormal = patches(generator, rows, 19, channels, dtype, device)
    out = torch.full_like(normal, torch.nan)
    arguments = (normal, abnormal, 5, 2**33 + 1, 0.1, 0.9)
    got, expected = mixup(*arguments, out=out), MODULE._reference(*arguments)
    assert got[0] is out
    assert all(map(torch.equal, got, expected))


def test_out_compiles_as_one_graph(device, generator, compile_counted):
    normal, abnormal = patches(generator, 20, 6, device=device)

    def mix(normal, abnormal, out):
        return mixup(normal, abnormal, 3, out=out)[1:]

    compiled, counter = compile_counted(mix)
    out = torch.empty_like(normal)
    assert all(map(torch.equal, compiled(normal, abnormal, out), mixup(normal, abnormal, 3)[1:]))
    assert torch.equal(out, mixup(normal, abnormal, 3)[0])
    assert counter.frame_count == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck_of_out(device, generator, dtype):
    normal, abnormal = patches(generator, 6, 5, 4, dtype, device)
    arguments = (normal, abnormal, 1, 0, 0.1, 1.0, torch.empty_like(normal))
    torch.library.opcheck(torch.ops.monai_wscxr.mixup_into.default, arguments)


OUTS = {
    "shape": (lambda n: torch.empty(4, 2), r"out must be contiguous, \(3, 2\) torch.float32 on cpu .* got \(4, 2\)"),
    "type": (lambda n: n.double(), "got .* torch.float64"),
    "layout": (lambda n: torch.empty(2, 3).T, "out must be contiguous"),
    "gradient": (lambda n: torch.empty(3, 2, requires_grad=True), "out has no gradient; detach the rows"),
}


@pytest.mark.parametrize("case", OUTS)
def test_an_out_that_does_not_fit_is_refused(case):
    make, message = OUTS[case]
    with pytest.raises(ValueError, match="mixup: .*" + message):
        mixup(ROWS, ROWS, 0, out=make(ROWS))
