"""mine_top_r beside its eager peers. Not collected by default; run

    python -m pytest tests/benchmarks/bench_mine_top_r.py --benchmark-enable

`MONAI_WSCXR_BENCH=full` in front of it takes banks of the size that training uses.
"""

import os

import pytest
import torch

from monai_wscxr.ops import backend, mine_top_r

SIZES = {"small": [(784, 8192, 320)], "full": [(12_544, 50_000, 320), (12_544, 200_000, 320)]}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
CHUNK = 1024
R = 0.2


def cdist_sort(query, bank):
    distance, index = torch.cdist(query, bank).amin(dim=1).topk(int(R * len(query)))
    return index, distance


def chunked_expansion(query, bank):
    norms = bank.square().sum(dim=1)
    parts = [
        torch.addmm(norms, rows, bank.T, alpha=-2).amin(dim=1) + rows.square().sum(dim=1) for rows in query.split(CHUNK)
    ]
    squared, index = torch.cat(parts).topk(int(R * len(query)))
    return index, squared.clamp_min(0).sqrt()


MINERS = {
    "operator": lambda query, bank: mine_top_r(query, bank, R),
    "cdist_sort": cdist_sort,
    "chunked_expansion": chunked_expansion,
}


@pytest.mark.parametrize("name", MINERS)
@pytest.mark.parametrize(("n_query", "n_bank", "channels"), SIZES[os.environ.get("MONAI_WSCXR_BENCH", "small")])
@pytest.mark.parametrize("device", DEVICES)
def test_mine_top_r(benchmark, device, n_query, n_bank, channels, name):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and torch sees none")
    g = torch.Generator().manual_seed(0)
    query, bank = (torch.relu(torch.randn(n, channels, generator=g)).to(device) for n in (n_query, n_bank))

    def mine():
        result = MINERS[name](query, bank)
        if device == "cuda":
            torch.cuda.synchronize()
        return result

    benchmark.group = f"mine_top_r {device} {n_query} x {n_bank} x {channels}"
    benchmark.extra_info["backend"] = backend("mine_top_r", device).name if name == "operator" else "eager"
    index, distance = benchmark(mine)
    assert index.shape == distance.shape == (int(R * n_query),)
