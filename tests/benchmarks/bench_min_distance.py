"""min_distance beside its eager peers. Not collected by default; run

    python -m pytest tests/benchmarks/bench_min_distance.py --benchmark-enable

`MONAI_WSCXR_BENCH=full` in front of it takes banks of the size that training uses.
"""

import os

import pytest
import torch

from monai_wscxr.ops import backend, min_distance

SIZES = {"small": [(784, 8192, 320)], "full": [(12_544, 50_000, 320), (12_544, 200_000, 320), (12_544, 50_000, 1024)]}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
CHUNK = 1024


def cdist_min(query, bank):
    return torch.cdist(query, bank).min(dim=1)


def chunked_expansion(query, bank):
    norms = bank.square().sum(dim=1)
    parts = []
    for rows in query.split(CHUNK):
        squared = torch.addmm(norms, rows, bank.T, alpha=-2) + rows.square().sum(dim=1, keepdim=True)
        least, index = squared.min(dim=1)
        parts.append((least.clamp_min(0).sqrt(), index))
    distance, index = zip(*parts, strict=True)
    return torch.cat(distance), torch.cat(index)


SEARCHES = {"operator": min_distance, "cdist_min": cdist_min, "chunked_expansion": chunked_expansion}


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize(("n_query", "n_bank", "channels"), SIZES[os.environ.get("MONAI_WSCXR_BENCH", "small")])
@pytest.mark.parametrize("device", DEVICES)
def test_min_distance(benchmark, device, n_query, n_bank, channels, name):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and torch sees none")
    g = torch.Generator().manual_seed(0)
    query, bank = (torch.relu(torch.randn(n, channels, generator=g)).to(device) for n in (n_query, n_bank))

    def search():
        result = SEARCHES[name](query, bank)
        if device == "cuda":
            torch.cuda.synchronize()
        return result

    benchmark.group = f"min_distance {device} {n_query} x {n_bank} x {channels}"
    benchmark.extra_info["backend"] = backend("min_distance", device).name if name == "operator" else "eager"
    distance, index = benchmark(search)
    assert distance.shape == index.shape == (n_query,)
