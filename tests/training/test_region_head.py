"""The opinion of the regions in a training: its weight, its fit to banks, its handler."""

from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine

from monai_wscxr.bank import FeatureBank
from monai_wscxr.bank.feature_bank import spaced_maps
from monai_wscxr.errors import InputError
from monai_wscxr.model import Discriminator
from monai_wscxr.model.networks import image_scores
from monai_wscxr.model.regions import region_means
from monai_wscxr.training import RegionHandler
from monai_wscxr.training.distance import region_weight
from monai_wscxr.training.region_head import fit_regions

IMAGES, GRID, CHANNELS = 300, (4, 5), 5  # more than the 256 images whose maps are in memory at a time


def bank_of(images, seed, shift=0.0):
    rows = torch.randn(images, GRID[0] * GRID[1], CHANNELS, generator=torch.Generator().manual_seed(seed))
    rows[..., 0] += shift
    return FeatureBank.from_images(rows, [f"{seed}-{n}" for n in range(images)], GRID)


@pytest.fixture
def banks():
    moved = region_means(bank_of(40, 3).images) * 0.3
    return SimpleNamespace(normal=bank_of(IMAGES, 1), abnormal=bank_of(6, 2, 0.4), moved_regions=moved)


@pytest.fixture
def discriminator():
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return Discriminator(CHANNELS)


def test_opinions_have_their_share_of_the_scores(banks, discriminator):
    fit_regions(discriminator, banks, 0.7, 6.0)
    maps = banks.normal.images
    alone = image_scores(discriminator.eval(), maps, 1.0)[:, 0].double()
    weight = region_weight(discriminator, banks.normal, 3.0, 1.0)
    assert weight == pytest.approx(3 * float(alone.std(correction=0)), rel=1e-5)
    assert float(discriminator.regions.weight) == 0.0  # as before the call
    discriminator.regions.weight.fill_(weight)
    opinion = image_scores(discriminator, maps, 1.0)[:, 0].double() - alone
    assert float(opinion.std(correction=0)) == pytest.approx(weight, rel=1e-4)
    assert region_weight(discriminator, banks.normal, 3.0, 1.0) == pytest.approx(weight)  # its own weight plays no part
    assert region_weight(discriminator, banks.normal, 0.0, 1.0) == 0.0
    few = discriminator(banks.abnormal.images).mean() - discriminator(maps).mean()
    assert float(few.detach()) > 2 * weight  # these images differ by 0.4 in every patch


def test_the_handler_fits_when_training_starts_and_weighs_after_every_epoch(banks, discriminator):
    engine = Engine(lambda engine, batch: None)
    handler = RegionHandler(discriminator.train(), 3.0, score_share=1.0)
    with pytest.raises(RuntimeError, match="attach MiningHandler before"):
        handler.fit(engine)
    engine.state.banks = banks
    handler.attach(engine)
    engine.run([0])
    assert bool(discriminator.regions.direction.any())
    assert float(discriminator.regions.weight) == pytest.approx(region_weight(discriminator, banks.normal, 3.0, 1.0))
    off = Discriminator(CHANNELS)
    engine = Engine(lambda engine, batch: None)
    engine.state.banks = banks
    RegionHandler(off, 0.0).attach(engine)
    engine.run([0])
    assert not bool(off.regions.direction.any())
    assert float(off.regions.weight) == 0.0


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ((-1.0, 0.5, 1.0), "share"),
        ((1.0, 0.0, 1.0), "shrinkage"),
        ((1.0, 1.5, 1.0), "shrinkage"),
        ((1.0, 0.5, -1.0), "nuis"),
    ],
)
def test_options_out_of_range(discriminator, values, name):
    with pytest.raises(InputError, match=f"region_{name}"):
        RegionHandler(discriminator, *values)


def test_spaced_maps_are_those_of_evenly_spaced_images(banks):
    maps = banks.normal.images
    assert torch.equal(torch.cat(list(spaced_maps(banks.normal, IMAGES, 64))), maps)
    parts = list(spaced_maps(banks.normal, 100, 64))
    assert [len(part) for part in parts] == [64, 36]
    assert torch.equal(torch.cat(parts), maps[::3])
    assert torch.equal(torch.cat(list(spaced_maps(banks.normal, 299, 64))), maps[::2])
