"""The share of synthetic opacities in the score: weighed against all other terms, less with more abnormal images."""

import math

import pytest
import torch

from monai_wscxr.bank import FeatureBank
from monai_wscxr.data import Preprocessing, training_split
from monai_wscxr.errors import InputError
from monai_wscxr.features import PatchExtractor
from monai_wscxr.model import Discriminator, NormalWhitening
from monai_wscxr.model.scores import anomaly_score
from monai_wscxr.training import BankOptions, NormalsOnlyHandler, OpacityHandler, prepare_banks
from monai_wscxr.training.distance import opacity_share, weigh_opacity, weigh_opacity_map


@pytest.fixture
def normal():
    rows = torch.randn(60, 20, 5, generator=torch.Generator().manual_seed(0))
    return FeatureBank.from_images(rows, [str(n) for n in range(60)], (4, 5))


@pytest.fixture
def discriminator():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = Discriminator(5)
    made.distance_weight.fill_(0.5)
    made.regions.direction.normal_(generator=torch.Generator().manual_seed(2))
    made.regions.weight.fill_(2.0)
    return made


@pytest.mark.parametrize("score_share", [1.0, 0.25])
def test_opacities_get_their_share_of_all_other_terms(normal, discriminator, score_share):
    direction = torch.tensor([1.0, -2.0, 0.0, 0.5, 3.0])
    discriminator.opacity.fill_(7.0)  # of an earlier epoch; must not count
    discriminator.train()
    weigh_opacity(discriminator, normal, direction, 0.3, score_share)
    assert discriminator.training
    found = discriminator.opacity.clone()
    torch.testing.assert_close(found / found[0], direction)
    hints = anomaly_score(torch.einsum("bchw,c->bhw", normal.images, found)[:, None], score_share)
    discriminator.opacity.zero_()
    with torch.inference_mode():
        others = anomaly_score(discriminator.eval()(normal.images), score_share)
    assert float(hints.std(correction=0)) == pytest.approx(0.3 * float(others.std(correction=0)), rel=1e-4)


def test_in_maps_they_vary_as_wanted_and_leave_the_mean_alone(normal, discriminator):
    direction = torch.tensor([1.0, -2.0, 0.0, 0.5, 3.0])
    discriminator.eval()
    with torch.inference_mode():
        before = discriminator(normal.images)
    discriminator.opacity_map.fill_(7.0)  # of an earlier epoch; must not count
    weigh_opacity_map(discriminator, normal, direction, 4.0)
    torch.testing.assert_close(discriminator.opacity_map / discriminator.opacity_map[0], direction)
    with torch.inference_mode():
        after = discriminator(normal.images)
    torch.testing.assert_close(after.mean((2, 3)), before.mean((2, 3)))
    local = (after - before)[:, 0]
    ratio = local.std(0, correction=0).mean() / before[:, 0].std(0, correction=0).mean()
    assert float(ratio) == pytest.approx(4.0, rel=1e-4)
    discriminator.train()
    assert torch.equal(
        discriminator(normal.images[:2]), discriminator.layers(normal.rows[:40])[:, 0].reshape(2, 1, 4, 5)
    )


def test_maps_of_scores_that_are_no_mean_stay_as_they_are(discriminator):
    assert OpacityHandler(discriminator, 0.3, 4.0, 1.0).map_weight == 4.0
    assert OpacityHandler(discriminator, 0.3, 4.0, 0.25).map_weight == 0.0
    assert NormalsOnlyHandler(discriminator, 0.3, 4.0, 0.25).map_weight == 0.0


def test_without_share_direction_or_spread_there_is_none(normal, discriminator):
    for direction, share in ((torch.ones(5), 0.0), (None, 0.3), (torch.zeros(5), 0.3)):
        discriminator.opacity.fill_(1.0)
        weigh_opacity(discriminator, normal, direction, share, 1.0)
        assert not discriminator.opacity.any()
        discriminator.opacity_map.fill_(1.0)
        weigh_opacity_map(discriminator, normal, direction, share)
        assert not discriminator.opacity_map.any()


def test_the_share_falls_with_the_abnormal_images_per_class():
    assert opacity_share(0.3, 2, 2) == pytest.approx(0.3)
    assert opacity_share(0.3, 64, 8) == pytest.approx(0.3 / 8)
    assert opacity_share(0.3, 5, 1) == pytest.approx(0.06)


@pytest.mark.parametrize("share", [-0.1, math.nan, math.inf])
def test_a_share_out_of_range_is_refused(discriminator, share):
    with pytest.raises(InputError, match="opacity_share must be 0"):
        OpacityHandler(discriminator, share)
    with pytest.raises(InputError, match="opacity_map must be 0"):
        OpacityHandler(discriminator, 0.3, share)


def test_banks_hold_a_direction_only_with_opacities_and_whitening(phantoms, make_features, tmp_path):
    features = make_features()
    preprocessing = Preprocessing(64, features.backbone.mean, features.backbone.std)
    extractor = PatchExtractor(features, preprocessing, cache=tmp_path, progress=False)
    split = training_split(phantoms, 1)

    def direction(active, opacities):
        whitening = NormalWhitening(features.channels, active)
        options = BankOptions(copied_normals=3, opacities=opacities)
        banks = prepare_banks(extractor, split, whitening, options)
        return banks.opacity, banks.opacity_map

    assert direction(True, 0) == direction(False, 1) == (None, None)
    for_scores, for_maps = direction(True, 1)
    assert for_scores.shape == for_maps.shape == (features.channels,)
    assert not torch.equal(for_scores, for_maps)
    with pytest.raises(InputError, match="opacities must be 0"):
        BankOptions(opacities=-1)
