"""mixup, forward and with its gradient, beside eager mixing. Not collected by default; run

    python -m pytest tests/benchmarks/bench_mixup.py --benchmark-enable

`MONAI_WSCXR_BENCH=full` in front of it takes the size of a training bank.
"""

import os

import pytest
import torch

from monai_wscxr.ops import backend, mixup

SIZES = {"small": [(4096, 1024, 320)], "full": [(50_000, 10_000, 320), (200_000, 40_000, 320)]}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def eager(normal, abnormal):
    source = torch.randint(len(abnormal), (len(normal),), device=normal.device)
    alpha = torch.empty(len(normal), 1, device=normal.device).uniform_(0.1, 1.0)
    return alpha * abnormal[source] + (1 - alpha) * normal


MIXERS = {"operator": lambda normal, abnormal: mixup(normal, abnormal, seed=0)[0], "eager": eager}


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize(("n", "m", "channels"), SIZES[os.environ.get("MONAI_WSCXR_BENCH", "small")])
@pytest.mark.parametrize("device", DEVICES)
def test_mixup(benchmark, device, n, m, channels, gradient, name):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and torch sees none")
    g = torch.Generator().manual_seed(0)
    normal, abnormal = (torch.randn(rows, channels, generator=g).to(device) for rows in (n, m))
    pair = (normal.requires_grad_(gradient), abnormal.requires_grad_(gradient))
    upstream = torch.ones_like(normal)

    def mix():
        mixed = MIXERS[name](*pair)
        if gradient:
            torch.autograd.grad(mixed, pair, upstream)
        if device == "cuda":
            torch.cuda.synchronize()
        return mixed

    benchmark.group = f"mixup {device} {n} + {m} x {channels} {'backward' if gradient else 'forward'}"
    benchmark.extra_info["backend"] = backend("mixup", device).name if name == "operator" else "eager"
    assert benchmark(mix).shape == (n, channels)
