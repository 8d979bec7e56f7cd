"""PatchCore against the formulas of its publication, evaluated image by image."""

import math

import numpy as np
import pytest
import torch

from monai_wscxr.bank.feature_bank import FeatureBank
from monai_wscxr.errors import InputError
from monai_wscxr.experiments.baselines.patchcore import PatchCore, project


def bank(n, channels=12, seed=0, grid=(3, 4)):
    features = torch.randn(n, grid[0] * grid[1], channels, generator=torch.Generator().manual_seed(seed))
    return FeatureBank.from_images(features, [f"{seed}-{i}.png" for i in range(n)], grid)


def by_hand(images, core, b):
    core, scores = core.double().numpy(), []
    for patches in images.rows.double().numpy().reshape(len(images.files), -1, images.rows.shape[1]):
        distance = np.linalg.norm(patches[:, None] - core[None], axis=2)
        worst = int(np.argmax(distance.min(axis=1)))
        nearest = int(np.argmin(distance[worst]))
        neighbours = np.argsort(np.linalg.norm(core - core[nearest], axis=1))[:b]
        assert nearest in neighbours
        weight = 1 - math.exp(distance[worst, nearest]) / np.exp(distance[worst, neighbours]).sum()
        scores.append(weight * distance[worst, nearest])
    return scores


@pytest.mark.parametrize("b", [2, 9])
def test_scores_follow_the_publication(b):
    method = PatchCore(share=0.25, neighbours=b)
    method.fit(bank(10))
    assert method.bank.shape == (30, 12)
    images = bank(6, seed=1)
    (scores,) = method.scores(images)
    assert scores.tolist() == pytest.approx(by_hand(images, method.bank, b), rel=1e-5)


def test_without_neighbours_it_is_the_largest_distance():
    method = PatchCore(share=1.0, neighbours=1)
    method.fit(bank(4))
    images = bank(3, seed=2)
    expected = torch.cdist(images.rows.double(), method.bank.double()).amin(dim=1).reshape(3, -1).amax(dim=1)
    torch.testing.assert_close(method.scores(images)[0].double(), expected)


def test_a_coreset_smaller_than_the_neighbourhood():
    method = PatchCore(share=0.02, neighbours=9)
    method.fit(bank(10))
    images = bank(4, seed=1)
    assert method.scores(images)[0].tolist() == pytest.approx(by_hand(images, method.bank, 2), rel=1e-5)


def test_far_features_give_finite_scores():
    method = PatchCore(share=0.5)
    method.fit(bank(4))
    images = bank(2, seed=1)
    far = FeatureBank.from_images(1e4 * images.rows.reshape(2, 12, 12), images.files, images.grid)
    assert torch.isfinite(method.scores(far)[0]).all()


def test_the_seed_decides_the_coreset():
    chosen = []
    for seed in (0, 0, 1):
        method = PatchCore(seed=seed)
        method.fit(bank(20))
        chosen.append(method.bank)
    assert torch.equal(chosen[0], chosen[1])
    assert not torch.equal(chosen[0], chosen[2])


def test_projection_keeps_distances_roughly_and_only_reduces():
    rows = torch.randn(500, 2000, generator=torch.Generator().manual_seed(0))
    projected = project(rows, seed=0)
    assert projected.shape[1] < 400
    ratio = torch.pdist(projected[:100]) / torch.pdist(rows[:100])
    assert 0.7 < ratio.min() < ratio.max() < 1.3
    few = rows[:, :50]
    assert project(few, seed=0) is few


@pytest.mark.parametrize("options", [{"share": 0}, {"share": 1.1}, {"neighbours": 0}])
def test_options_out_of_range(options):
    with pytest.raises(InputError, match="PatchCore"):
        PatchCore(**options)
