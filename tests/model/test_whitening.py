"""Whitening by the covariance of the normal bank, against plain formulas in float64, and its purpose."""

import math

import numpy as np
import pytest
import torch

from monai_wscxr.errors import InputError
from monai_wscxr.model.losses import HingeLoss
from monai_wscxr.model.mixing import MixingInferer, PatchBatches, prepare_patch_batch
from monai_wscxr.model.networks import Discriminator
from monai_wscxr.model.whitening import Moments, NormalWhitening


def rows(n=500, channels=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, channels, generator=g) @ torch.randn(channels, channels, generator=g) + 3


@pytest.mark.parametrize("shrinkage", [1e-3, 0.1, 1.0, 100.0])
@pytest.mark.parametrize("part", [7, 8192])
def test_matrix_is_the_inverse_root_of_the_shrunken_covariance(shrinkage, part):
    x = rows()
    whitening = NormalWhitening(6)
    whitening.fit(x, shrinkage, part=part)
    y = x.double().numpy()
    covariance = (y - y.mean(0)).T @ (y - y.mean(0)) / len(y)
    shrunken = covariance + shrinkage * np.trace(covariance) / 6 * np.eye(6)
    w = whitening.matrix.double().numpy()
    np.testing.assert_allclose(w @ shrunken @ w, np.eye(6), atol=2e-4)
    np.testing.assert_allclose(whitening.mean.numpy(), y.mean(0), rtol=1e-5)
    z = whitening(x).double().numpy()
    centred = y - y.mean(0)
    mahalanobis = np.einsum("ni,ij,nj->n", centred, np.linalg.inv(shrunken), centred)
    np.testing.assert_allclose((z**2).sum(1), mahalanobis, rtol=1e-3)


def test_maps_and_rows_alike_and_inactive_changes_nothing():
    whitening = NormalWhitening(6)
    whitening.fit(rows(), 1.0)
    maps = torch.randn(2, 6, 3, 4)
    by_rows = whitening(maps.permute(0, 2, 3, 1).reshape(-1, 6)).reshape(2, 3, 4, 6).permute(0, 3, 1, 2)
    torch.testing.assert_close(whitening(maps), by_rows, rtol=0, atol=1e-5)
    idle = NormalWhitening(6, active=False)
    idle.fit(rows(), 1.0)
    assert idle(maps) is maps
    assert not any(v.numel() for v in idle.state_dict().values())


def test_whitening_in_place_and_into_other_memory_is_the_formula(monkeypatch):
    x = rows()
    whitening = NormalWhitening(6)
    whitening.fit(x, 1.0)
    expected = (x.double() - whitening.mean.double()) @ whitening.matrix.double()
    monkeypatch.setattr("monai_wscxr.model.whitening._PART_NUMBERS", 6 * 37)  # several parts, the last one smaller
    out = torch.full_like(x, math.nan)
    whitening.into(x, out)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    whitening.into(x, x)
    assert torch.equal(x, out)
    idle = NormalWhitening(6, active=False)
    idle.into(x + 1, out)
    assert torch.equal(out, x + 1)
    whitening.into(x[:0], out[:0])


@pytest.mark.parametrize("first", [1e4, -3e5])
def test_a_first_part_far_from_the_rest_does_not_spoil_the_covariance(first):
    """The pass is centred on the mean of the first part; if that is an outlier, its rows dominate the covariance."""
    x = rows(4000)
    x[:10] += first
    y = x.double()
    expected = torch.cov(y.T, correction=0)
    whitening = NormalWhitening(6)
    whitening.fit(x, 1e-3, part=10)
    w = whitening.matrix.double()
    shrunken = expected + 1e-3 * expected.trace() / 6 * torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(w @ shrunken @ w, torch.eye(6, dtype=torch.float64), rtol=0, atol=2e-3)
    torch.testing.assert_close(whitening.mean.double(), y.mean(0), rtol=1e-5, atol=1e-2)


def test_repeated_fit_gives_equal_bits_and_wide_banks_work():
    one, two = NormalWhitening(20), NormalWhitening(20)
    few = rows(5, 20)  # fewer rows than channels: the covariance is singular
    one.fit(few, 0.5)
    two.fit(few, 0.5)
    assert torch.equal(one.matrix, two.matrix)
    assert torch.isfinite(one(few)).all()


def test_what_cannot_be_whitened_is_refused():
    for shrinkage in (0, -1, math.nan, math.inf):
        with pytest.raises(InputError, match="shrinkage must be greater than 0"):
            NormalWhitening(6).fit(rows(), shrinkage)
    with pytest.raises(InputError, match="all patches of the normal bank are equal"):
        NormalWhitening(6).fit(torch.ones(9, 6), 1.0)
    with pytest.raises(InputError, match="at least one channel"):
        NormalWhitening(0)


def test_first_steps_from_zero_follow_fishers_direction():
    normal, abnormal = rows(4000), rows(40, seed=0) + torch.tensor([1.0, 0, 0, -2.0, 0, 0])
    whitening = NormalWhitening(6)
    whitening.fit(normal, 0.3)
    net = Discriminator(6, zero_start=True)
    assert net(whitening(normal)).eq(0.5).all()
    batches, inferer = PatchBatches(400), MixingInferer(0)
    batches.fill(whitening(normal))
    inferer.fill(whitening(abnormal))
    optimizer = torch.optim.SGD(net.parameters(), 1e-4)
    for batch in batches:
        inputs, target, _, keywords = prepare_patch_batch(batch)
        HingeLoss()(inferer(inputs, net, **keywords), target).backward()
        optimizer.step()
        optimizer.zero_grad()
    learned = whitening.matrix @ net.layers[-1].weight[0].detach()
    x, y = normal.double().numpy(), abnormal.double().numpy()
    covariance = np.cov(x.T, bias=True)
    fisher = np.linalg.solve(covariance + 0.3 * np.trace(covariance) / 6 * np.eye(6), y.mean(0) - x.mean(0))
    cosine = learned.numpy() @ fisher / np.linalg.norm(learned) / np.linalg.norm(fisher)
    assert cosine > 0.98


def covariance_of(x):
    y = x.double() - x.double().mean(0)
    return y.T @ y / len(y)


def test_aligned_scores_follow_fishers_discriminant_with_both_covariances_added():
    source, site = rows(4000, seed=1), 3 * rows(4000, seed=2)[:, [2, 0, 1, 5, 3, 4]] - 7
    whitening = NormalWhitening(6)
    whitening.fit(source, 0.5)
    own = torch.linalg.inv(whitening.matrix.double())
    own = own @ own  # the shrunken covariance of the training
    w = torch.randn(6, generator=torch.Generator().manual_seed(3)).double()
    difference = own @ (whitening.matrix.double() @ w)  # what w stands for
    whitening.align(Moments.of(site), whitening.colouring())
    expected = 2 * torch.linalg.solve(own + covariance_of(site), difference)
    torch.testing.assert_close(whitening.matrix.double() @ w, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(whitening(site).mean(0), torch.zeros(6), atol=1e-4, rtol=0)


def test_aligned_with_its_own_covariance_only_the_mean_moves():
    x = rows(5000)
    whitening = NormalWhitening(6)
    whitening.fit(x, 1e-9)  # no shrinkage: the site's covariance is the same
    matrix = whitening.matrix.clone()
    whitening.align(Moments.of(x + 4), whitening.colouring())
    torch.testing.assert_close(whitening.matrix, matrix, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(whitening.mean, x.mean(0) + 4, rtol=1e-4, atol=1e-4)


def test_alignment_needs_an_active_whitening_and_rows_that_differ():
    with pytest.raises(InputError, match="not whitened"):
        NormalWhitening(6, active=False).colouring()
    whitening = NormalWhitening(6)
    whitening.fit(rows(), 1.0)
    with pytest.raises(InputError, match="images blank"):
        whitening.align(Moments.of(torch.full((50, 6), 0.3)), whitening.colouring())


def test_moments_without_a_part_are_those_of_the_rest():
    x = rows(300) + 20
    rest = Moments.of(x).without(Moments.of(x[40:90]))
    expected = Moments.of(torch.cat([x[:40], x[90:]]))
    assert rest.rows == expected.rows == 250
    torch.testing.assert_close(rest.total, expected.total, rtol=1e-12, atol=0)
    torch.testing.assert_close(rest.products, expected.products, rtol=1e-12, atol=0)
