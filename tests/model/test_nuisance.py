"""Within-class covariance normalisation: the covariance of alterations, and its effect on the whitening."""

import numpy as np
import pytest
import torch

from monai_wscxr.data.preprocessing import Preprocessing
from monai_wscxr.features.copies import ALTERED, copy_features
from monai_wscxr.features.extraction import PatchExtractor
from monai_wscxr.model.nuisance import nuisance_covariance, nuisance_of
from monai_wscxr.model.regions import region_means
from monai_wscxr.model.whitening import NormalWhitening


def rows(n=500, channels=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, channels, generator=g) @ torch.randn(channels, channels, generator=g) + 3


def test_directions_of_alterations_count_less():
    x = rows()
    moved = torch.tensor([0.0, 0, 5, 0, 0, 0]) * torch.randn(500, 1, generator=torch.Generator().manual_seed(1))
    nuisance = nuisance_covariance(x, x + moved, part=7)
    y = moved.double().numpy()
    np.testing.assert_allclose(nuisance.numpy(), y.T @ y / len(y), atol=1e-4)
    whitening = NormalWhitening(6)
    whitening.fit(x, 0.1, 4 * nuisance)
    z = x.double().numpy()
    total = np.cov(z.T, bias=True) + 4 * nuisance.numpy()
    total += 0.1 * np.trace(total) / 6 * np.eye(6)
    w = whitening.matrix.double().numpy()
    np.testing.assert_allclose(w @ total @ w, np.eye(6), atol=2e-4)
    plain = NormalWhitening(6)
    plain.fit(x, 0.1)
    movement, before = ((f(x + moved) - f(x)).square().sum(1).mean() for f in (whitening, plain))
    assert movement < 0.3 * before


def test_rows_that_do_not_match_are_refused():
    x = rows()
    for copies in (x[:-1], x[:, :-1]):
        with pytest.raises(ValueError, match="must have one shape"):
            nuisance_covariance(x, copies)
    with pytest.raises(ValueError, match="not be empty"):
        nuisance_covariance(x[:0], x[:0])


@pytest.fixture
def extractor(make_features, tmp_path):
    features = make_features()
    preprocessing = Preprocessing(64, features.backbone.mean, features.backbone.std, intensity="standardised")
    return PatchExtractor(features, preprocessing, cache=tmp_path / "cache", progress=False)


def test_the_covariance_of_a_bank_is_that_of_the_chosen_images(extractor, normal_items):
    bank = extractor.bank(normal_items[:5])
    chosen = sorted(range(5), key=lambda n: extractor.digests[bank.files[n]])[:3]
    made = copy_features(extractor, list(bank.files), ALTERED, 2).double()
    own = bank.images.flatten(2).transpose(1, 2).double()
    moved = torch.cat([made[2 * n + c] - own[n] for n in chosen for c in range(2)])
    found = nuisance_of(extractor, bank, 3, 2)
    torch.testing.assert_close(found.covariance, moved.T @ moved / len(moved), rtol=1e-4, atol=1e-9)
    maps = moved.reshape(6, 4, 4, -1).permute(0, 3, 1, 2)  # three images, two copies each
    torch.testing.assert_close(found.regions.double(), region_means(maps), rtol=1e-4, atol=1e-6)
    again = nuisance_of(extractor, extractor.bank_on_disk(normal_items[:5]), 3, 2)
    assert torch.equal(again.covariance, found.covariance)
    assert torch.equal(again.regions, found.regions)
