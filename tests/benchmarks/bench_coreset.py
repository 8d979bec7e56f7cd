"""The coreset beside anomalib's KCenterGreedy, same projected rows, same start, same choice. Not collected by default; run

    python -m pytest tests/benchmarks/bench_coreset.py --benchmark-enable -s

`MONAI_WSCXR_BENCH=medium` or `full` in front of it takes 40,000 rows, or the bank of about 1,140 radiographs (minutes).
anomalib is no dependency: without it its part is skipped, visibly (`pip install --no-deps anomalib` and what its import asks
for, best into a folder of its own). It compares float32 distances, so at near-ties its choice may differ; the float64
distances then decide who is right.
"""

import os
import time

import pytest
import torch

from monai_wscxr.experiments.baselines.patchcore import project
from monai_wscxr.ops import backend, coreset

SIZES = {"small": (10_000, 1_000), "medium": (40_000, 4_000), "full": (73_000, 7_300)}
ROWS, COUNT = SIZES[os.environ.get("MONAI_WSCXR_BENCH", "small")]
START = 7


@pytest.fixture(scope="module")
def rows():
    g = torch.Generator().manual_seed(0)
    return project(torch.relu(torch.randn(ROWS, 320, generator=g)), seed=0)


def anomalib_choice(rows, monkeypatch):
    sampling = pytest.importorskip("anomalib.models.components.sampling.k_center_greedy", exc_type=ImportError)
    sampler = sampling.KCenterGreedy(rows, COUNT / ROWS)
    monkeypatch.setattr(sampler.model, "fit", lambda embedding: None)
    monkeypatch.setattr(sampler.model, "transform", lambda embedding: embedding)
    monkeypatch.setattr(torch, "randint", lambda **_: torch.tensor([START]))
    return sampler.select_coreset_idxs()


def test_operator(benchmark, rows):
    benchmark.extra_info["backend"] = backend("coreset").name
    assert len(benchmark.pedantic(coreset, (rows, COUNT, START), rounds=3)) == COUNT


def test_against_anomalib(rows, monkeypatch):
    began = time.perf_counter()
    ours = coreset(rows, COUNT, START).tolist()
    mine = time.perf_counter() - began
    began = time.perf_counter()
    theirs = anomalib_choice(rows, monkeypatch)
    peer = time.perf_counter() - began
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    print(
        f"\n{COUNT} of {ROWS} rows, {rows.shape[1]} dimensions, {torch.get_num_threads()} threads: coreset {mine:.2f} s, "
        f"anomalib {peer:.2f} s, {peer / mine:.1f} times; {same} of {COUNT} choices equal"
    )
    first = next((i for i in range(COUNT) if ours[i] != theirs[i]), None)
    if first is not None:
        candidates = rows[[ours[first], theirs[first]]].double()
        nearest = torch.cdist(
            candidates, rows[ours[:first]].double(), compute_mode="donot_use_mm_for_euclid_dist"
        ).amin(1)
        print(f"first difference at choice {first}: float64 radius {nearest[0]:.9f} here, {nearest[1]:.9f} anomalib")
        assert nearest[0] >= nearest[1]  # ours is the farther one
        assert nearest[0] - nearest[1] < 1e-5 * nearest[0]  # and the other a near-tie
    assert len(set(ours) & set(theirs)) > 0.99 * COUNT
    assert peer > mine
