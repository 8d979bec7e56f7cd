"""The opinion of the regions: which patches lie where, the discriminant, and its contributions."""

import numpy as np
import pytest
import torch

from monai_wscxr.model import Discriminator
from monai_wscxr.model.regions import REGIONS, RegionHead, region_means, region_shares


def test_patches_lie_in_the_regions_of_their_centres():
    shares = region_shares(10, 10).reshape(2, 3, 10, 10)
    inside = shares > 0
    rows = [{0, 1, 2, 3}, {3, 4, 5, 6}, {6, 7, 8, 9}]
    columns = [{3, 4, 5, 6}, {0, 1, 2, 7, 8, 9}]
    for c in range(2):
        for b in range(3):
            y, x = np.nonzero(inside[c, b].numpy())
            assert (set(y.tolist()), set(x.tolist())) == (rows[b], columns[c])
            assert inside[c, b].sum() == len(rows[b]) * len(columns[c])
    assert torch.equal(shares, shares.flip(-1))  # left and right count alike


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (2, 2), (3, 4), (5, 5), (7, 11), (40, 32)])
def test_shares_of_any_grid_sum_to_one(grid):
    shares = region_shares(*grid)
    assert shares.shape == (REGIONS, grid[0] * grid[1])
    assert bool((shares >= 0).all())
    torch.testing.assert_close(shares.sum(1), torch.ones(REGIONS))


def test_contributions_average_to_the_opinion():
    head = RegionHead(5)
    for part in (head.centre, head.direction):
        part.copy_(torch.randn(6, 5, generator=torch.Generator().manual_seed(1)))
    head.weight.fill_(2.5)
    features = torch.randn(3, 5, 7, 9, generator=torch.Generator().manual_seed(0))
    opinion = 2.5 * ((region_means(features) - head.centre.flatten()) @ head.direction.flatten())
    assert head(features).shape == (3, 7, 9)
    torch.testing.assert_close(head(features).mean((1, 2)), opinion, rtol=1e-4, atol=1e-5)
    manual = torch.stack([features[:, :, :3, 3:6].mean((2, 3)), features[:, :, 2:5, 3:6].mean((2, 3))], 1)
    torch.testing.assert_close(region_means(features).reshape(3, 6, 5)[:, :2], manual)


@pytest.mark.parametrize(("normals", "nuisance"), [(9, 6.0), (60, 6.0), (60, 0.0)])
def test_the_direction_is_that_of_the_full_covariance(normals, nuisance):
    rng = np.random.default_rng(3)
    channels = 4
    n, a, m = (rng.normal(size=(count, 6 * channels)) * 3 + 1 for count in (normals, 5, 14))
    head = RegionHead(channels)
    head.fit(torch.tensor(n), torch.tensor(a + 1), torch.tensor(m), 0.3, nuisance)
    spread = n.std(0)
    z, difference = (n - n.mean(0)) / spread, ((a + 1).mean(0) - n.mean(0)) / spread
    covariance = z.T @ z / normals + nuisance * (m / spread).T @ (m / spread) / 14
    covariance = 0.7 * covariance + 0.3 * np.trace(covariance) / (6 * channels) * np.eye(6 * channels)
    expected = np.linalg.solve(covariance, difference) / spread
    expected /= ((n - n.mean(0)) @ expected).std()
    np.testing.assert_allclose(head.direction.flatten().numpy(), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(head.centre.flatten().numpy(), n.mean(0), rtol=1e-5)


def test_equal_normals_give_no_opinion_but_finite_numbers():
    head = RegionHead(2)
    head.fit(torch.ones(4, 12), torch.ones(2, 12))
    assert torch.equal(head.direction, torch.zeros(6, 2))
    head.fit(torch.ones(4, 12), torch.full((2, 12), 2.0))
    assert bool(torch.isfinite(head.direction).all())


def test_an_opinion_acts_on_pictures_in_evaluation_mode_alone():
    discriminator = Discriminator(3).eval()
    maps, rows = torch.randn(2, 3, 4, 4), torch.randn(5, 3)
    before, rows_before = discriminator(maps), discriminator(rows)
    discriminator.regions.direction.fill_(1.0)
    assert torch.equal(discriminator(maps), before)  # no weight yet
    discriminator.regions.weight.fill_(2.0)
    torch.testing.assert_close(discriminator(maps), before + discriminator.regions(maps)[:, None])
    assert not torch.allclose(discriminator(maps), before)
    assert torch.equal(discriminator(rows), rows_before)
    assert torch.equal(discriminator.train()(maps), before)
