"""The CUDA operators compared with alternatives and with the throughput of the same GPU. Not collected by default; run

    make gpu-check        (tests marked gpu, then this benchmark; results in benchmark_gpu.json)
    python -m pytest tests/benchmarks/bench_gpu.py --benchmark-enable --benchmark-json=benchmark_gpu.json

Every test times its methods alternately, round by round, with a synchronisation before and after, together with a 16-bit
matrix product or a plain copy for reference. Medians and ratios are in `extra_info`; the figures of pytest-benchmark itself
are those of the operator alone. `MONAI_WSCXR_BENCH=full` uses the sizes of docs/performance.md, `huge` also a bank of 10
million rows.
"""

import datetime
import os
import statistics
import subprocess
import time

import pytest
import torch

from monai_wscxr import ops
from monai_wscxr.ops import min_distance, mine_top_r, mixup

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none"),
]
LEVEL = os.environ.get("MONAI_WSCXR_BENCH", "small")
SEARCHES = [(1024, 32_768, 1024)]
MIXES = [(100_000, 20_000, 1024)]
if LEVEL in ("full", "huge"):
    SEARCHES += [(12_288, 86_336, 1024), (4096, 300_000, 512), (12_544, 200_000, 320)]
    MIXES += [(1_000_000, 200_000, 1024)]
if LEVEL == "huge":
    SEARCHES += [(65_536, 10_000_000, 1024)]
KERNELS = ["portable", "int8", "hopper", "hopper-int8"]
ROUNDS = 7
LARGEST_MATRIX = 1 << 33  # largest distance matrix for torch.cdist, in bytes


def driver():
    """Return the version of the NVIDIA driver, or why it is unknown."""
    try:
        found = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        return found.stdout.splitlines()[0].strip()
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        return f"unknown ({error})"


@pytest.fixture(scope="module")
def machine():
    return {
        "gpu": torch.cuda.get_device_name(),
        "compute_capability": ".".join(map(str, torch.cuda.get_device_capability())),
        "driver": driver(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "extension": ops.CUDA_EXTENSION.build_info() if ops.CUDA_EXTENSION else ops.CUDA_EXTENSION_STATE,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def seconds(work):
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turns(methods):
    """Return the median seconds of each method over rounds in which every method runs once, after a warm-up."""
    for work in methods.values():
        work()
    times = {name: [] for name in methods}
    for round_ in range(ROUNDS):
        names = list(methods)
        for name in names[round_ % len(names) :] + names[: round_ % len(names)]:
            times[name].append(seconds(methods[name]))
    return {name: statistics.median(values) for name, values in times.items()}


def with_kernel(name, work):
    """Return a function that calls `work` with MONAI_WSCXR_CUDA_KERNEL=name."""

    def run():
        before = os.environ.get("MONAI_WSCXR_CUDA_KERNEL")
        os.environ["MONAI_WSCXR_CUDA_KERNEL"] = name
        try:
            return work()
        finally:
            if before is None:
                del os.environ["MONAI_WSCXR_CUDA_KERNEL"]
            else:
                os.environ["MONAI_WSCXR_CUDA_KERNEL"] = before

    return run


def runnable_kernels():
    hopper = ops.CUDA_EXTENSION.build_info()["hopper_kernel"] == "built" and torch.cuda.get_device_capability() == (
        9,
        0,
    )
    return [name for name in KERNELS if hopper or not name.startswith("hopper")]


def features(n, channels, seed, dtype=torch.float32):
    """Return rows like patch features: non-negative, along a few directions, with noise; created in pieces."""
    g = torch.Generator("cuda").manual_seed(seed)
    directions = torch.randn(48, channels, generator=torch.Generator("cuda").manual_seed(1), device="cuda")
    rows = torch.empty(n, channels, device="cuda", dtype=dtype)
    for piece in rows.split(1 << 18):
        latent = torch.randn(len(piece), 48, generator=g, device="cuda")
        noise = torch.randn(piece.shape, generator=g, device="cuda")
        piece.copy_(torch.relu(latent @ directions + noise))
    return rows


def matmul_only(query, bank):
    """Return a function that only computes the products of a search, in half precision: an upper limit of the speed."""
    q, block = query.half(), bank[: 1 << 17].half()
    out = torch.empty(min(len(q), 8192), len(block), device="cuda", dtype=torch.float16)

    def run():
        for start in range(0, len(bank), len(block)):
            columns = min(len(block), len(bank) - start)
            for rows in q.split(len(out)):
                torch.mm(rows, block[:columns].T, out=out[: len(rows), :columns] if columns == len(block) else None)

    return run


def chunked_expansion(query, bank):
    least = torch.full((len(query),), torch.inf, device="cuda")
    for block in bank.split(1 << 16):
        block = block.float()
        norms = block.square().sum(1)
        for start in range(0, len(query), 4096):
            rows = query[start : start + 4096]
            squared = torch.addmm(norms, rows, block.T, alpha=-2).amin(1) + rows.square().sum(1)
            least[start : start + 4096] = torch.minimum(least[start : start + 4096], squared)
    return least.clamp_min_(0).sqrt_()


def peak_bytes(work):
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize(("n_query", "n_bank", "channels"), SEARCHES)
def test_min_distance(benchmark, machine, n_query, n_bank, channels):
    bank_type = torch.float16 if n_bank * channels > 1 << 32 else torch.float32
    query, bank = features(n_query, channels, 2), features(n_bank, channels, 3, bank_type)
    methods = {f"operator {name}": with_kernel(name, lambda: min_distance(query, bank)) for name in runnable_kernels()}
    methods["mine_top_r 0.05"] = lambda: mine_top_r(query, bank, 0.05)
    methods["fp16 matmul, nothing else"] = matmul_only(query, bank)
    methods["chunked expansion (inexact)"] = lambda: chunked_expansion(query, bank)
    if 4 * n_query * n_bank <= LARGEST_MATRIX:
        methods["torch.cdist + min (inexact)"] = lambda: torch.cdist(query, bank.float()).min(1)
    median = in_turns(methods)

    counted = {}
    ops.CUDA_EXTENSION.count_exact_distances(True)
    try:
        for name in runnable_kernels():
            with_kernel(name, lambda: min_distance(query, bank))()
            found = ops.CUDA_EXTENSION.search_statistics()
            counted[name] = {key: value / n_query for key, value in found.items()}
    finally:
        ops.CUDA_EXTENSION.count_exact_distances(False)

    matmul = median["fp16 matmul, nothing else"]
    benchmark.group = f"gpu min_distance {n_query} x {n_bank} x {channels}"
    benchmark.extra_info.update(
        machine=machine,
        median_seconds=median,
        pairs_per_second={name: n_query * n_bank / t for name, t in median.items()},
        share_of_fp16_matmul={name: matmul / t for name, t in median.items()},
        fp16_matmul_tflops=2e-12 * n_query * n_bank * channels / matmul,
        exact_distances_per_query=counted,
        peak_bytes=peak_bytes(lambda: min_distance(query, bank)),
    )
    distance, _ = benchmark.pedantic(lambda: min_distance(query, bank), setup=torch.cuda.synchronize, rounds=3)
    assert bool(torch.isfinite(distance).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("n", "m", "channels"), MIXES)
def test_mixup(benchmark, machine, n, m, channels, dtype):
    normal, abnormal = (torch.randn(rows, channels, device="cuda", dtype=dtype) for rows in (n, m))
    target = torch.empty_like(normal)

    def eager():
        source = torch.randint(m, (n,), device="cuda")
        alpha = torch.empty(n, 1, device="cuda", dtype=dtype).uniform_(0.1, 1.0)
        return alpha * abnormal[source] + (1 - alpha) * normal

    median = in_turns(
        {"operator": lambda: mixup(normal, abnormal, 0), "eager": eager, "copy": lambda: target.copy_(normal)}
    )
    size = normal.numel() * normal.element_size()
    # the operator reads two rows and writes one, the copy reads one and writes one
    rate = {"operator": 3 * size / median["operator"], "copy": 2 * size / median["copy"]}
    benchmark.group = f"gpu mixup {n} + {m} x {channels} {dtype}"
    benchmark.extra_info.update(
        machine=machine,
        median_seconds=median,
        bytes_per_second=rate,
        share_of_copy_rate=rate["operator"] / rate["copy"],
        speedup_over_eager=median["eager"] / median["operator"],
    )
    mixed, _, _ = benchmark.pedantic(lambda: mixup(normal, abnormal, 0), setup=torch.cuda.synchronize, rounds=3)
    assert mixed.shape == normal.shape
