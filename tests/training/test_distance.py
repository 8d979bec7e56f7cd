"""The weight of the distance to the normals: its definition, its limits, and the handler that sets it."""

from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine

from monai_wscxr.bank import FeatureBank
from monai_wscxr.errors import InputError
from monai_wscxr.model import Discriminator, anomaly_score
from monai_wscxr.training import DistanceHandler, distance_weight

IMAGES, GRID, CHANNELS = 300, (2, 3), 5  # more than the 256 images that are scored at a time


@pytest.fixture
def bank():
    rows = torch.randn(IMAGES, 6, CHANNELS, generator=torch.Generator().manual_seed(1))
    return FeatureBank.from_images(rows, [str(n) for n in range(IMAGES)], GRID)


@pytest.fixture
def discriminator():
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return Discriminator(CHANNELS, depth=2, width=4).train()


@pytest.mark.parametrize("score_share", [0.0, 0.5])
def test_the_weight_is_the_ratio_of_the_spreads(bank, discriminator, score_share):
    before = {key: value.clone() for key, value in discriminator.state_dict().items()}
    found = distance_weight(discriminator, bank, 4, 0.6, score_share)
    assert all(torch.equal(before[key], value) for key, value in discriminator.state_dict().items())
    assert discriminator.training
    discriminator.eval()
    with torch.no_grad():
        learned = anomaly_score(discriminator(bank.images), score_share)[:, 0].astype(float).std()
    distance = anomaly_score(bank.images.square().mean(1, keepdim=True), score_share)[:, 0].astype(float).std()
    assert found == pytest.approx(float(0.6 / 4 * learned / distance), rel=1e-6)
    assert distance_weight(discriminator, bank, 8, 0.6, score_share) == pytest.approx(found / 2)


def test_the_discriminators_own_weight_plays_no_part(bank, discriminator):
    found = distance_weight(discriminator, bank, 1, 1.0, 0.25)
    discriminator.distance_weight.fill_(7.0)
    assert distance_weight(discriminator, bank, 1, 1.0, 0.25) == found
    assert float(discriminator.distance_weight) == 7.0


def test_no_share_and_equal_images_give_no_weight(bank, discriminator):
    assert distance_weight(discriminator, bank, 1, 0.0, 0.25) == 0.0
    same = FeatureBank.from_images(torch.ones(3, 6, CHANNELS), ["a", "b", "c"], GRID)
    assert distance_weight(discriminator, same, 1, 1.0, 0.25) == 0.0


def test_the_handler_sets_the_weight_and_measures_the_spread_once(bank, discriminator, monkeypatch):
    engine = Engine(lambda engine, batch: None)
    handler = DistanceHandler(discriminator, 0.6, 0.25)
    with pytest.raises(RuntimeError, match="attach MiningHandler before"):
        handler(engine)
    engine.state.banks = SimpleNamespace(normal=bank, abnormal=SimpleNamespace(files=("a", "b")))
    handler(engine)
    expected = distance_weight(discriminator, bank, 2, 0.6, 0.25)
    assert float(discriminator.distance_weight) == pytest.approx(expected)
    monkeypatch.setattr("monai_wscxr.training.epoch_handlers.distance_spread", None)
    handler(engine)  # a second epoch
    assert float(discriminator.distance_weight) == pytest.approx(expected)


@pytest.mark.parametrize("share", [-0.1, float("inf"), float("nan")])
def test_a_share_out_of_range_is_refused(discriminator, share):
    with pytest.raises(InputError, match="distance_share must be 0"):
        DistanceHandler(discriminator, share)
