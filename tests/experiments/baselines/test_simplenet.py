"""SimpleNet: its loss computed by hand, its parts, and that it learns to detect features off the normal ones."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from monai_wscxr.bank.feature_bank import FeatureBank
from monai_wscxr.errors import InputError
from monai_wscxr.experiments.baselines.simplenet import SimpleNet, build, feature_scale, truncated_l1
from monai_wscxr.model.networks import Discriminator


def plane(n, seed, off=0.0):
    """Make images whose patches lie on a plane in eight dimensions, or at the distance `off` from it."""
    g = torch.Generator().manual_seed(seed)
    features = torch.zeros(n, 6, 8)
    features[..., :2] = torch.randn(n, 6, 2, generator=g)
    features[..., 5] += off
    return FeatureBank.from_images(features, [f"{i}.png" for i in range(n)], (2, 3))


def test_the_loss_is_the_published_one():
    normal, noisy = torch.tensor([-2.0, -0.5, 0.0, 1.0]), torch.tensor([2.0, 0.5, 0.0])
    # publication: max(0, 0.5 - D(q)) + max(0, 0.5 + D(q-)) with D = -score
    expected = (0 + 0 + 0.5 + 1.5) / 4 + (0 + 0 + 0.5) / 3
    assert float(truncated_l1(normal, noisy, 0.5)) == pytest.approx(expected)


def test_its_parts_are_the_published_ones():
    adaptor, discriminator = build(30)
    assert adaptor.bias.shape == (30,)
    assert adaptor.weight.shape == (30, 30)
    kinds = [type(layer).__name__ for layer in discriminator.layers]
    assert kinds == ["Linear", "BatchNorm1d", "LeakyReLU", "Linear"]
    assert discriminator.layers[0].out_features == 20


def test_it_finds_what_lies_off_the_normal_features():
    method = SimpleNet(epochs=60, noise=1.0, state_every=20, adaptor_rate=1e-3, discriminator_rate=2e-3)
    method.fit(plane(40, 0))
    normal, abnormal = method.scores(plane(50, 1)), method.scores(plane(50, 2, off=3.0))
    assert len(normal) == 3
    assert abnormal[-1].median() > normal[-1].max()


@pytest.mark.parametrize("shown", [True, False])
def test_its_epochs_are_shown_if_those_of_the_extractor_are(capsys, shown):
    SimpleNet(epochs=3).fit(plane(10, 0), SimpleNamespace(progress=shown))
    assert ("training SimpleNet: 3 of 3 epochs" in capsys.readouterr().err) == shown


def test_the_same_seed_gives_the_same_scores_and_leaves_the_global_stream_alone():
    state = torch.random.get_rng_state()
    found = []
    for seed in (0, 0, 1):
        method = SimpleNet(epochs=2, seed=seed)
        method.fit(plane(20, 0))
        found.append(method.scores(plane(5, 1))[-1])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_noise_has_the_unit_of_the_channels():
    bank = plane(40, 0)
    rows = bank.rows.double().numpy()
    expected = np.sqrt(np.mean([np.var(rows[:, channel]) for channel in range(8)]))
    assert feature_scale(bank.rows) == pytest.approx(expected, rel=1e-6)
    found = {}
    for times in (1, 10):
        scaled = FeatureBank.from_images(times * bank.images.permute(0, 2, 3, 1).flatten(1, 2), bank.files, bank.grid)
        method = SimpleNet(epochs=1, noise=0.5)
        method.fit(scaled)
        found[times] = method.sigma
    assert found[1] == pytest.approx(0.5 * expected)
    assert found[10] == pytest.approx(5 * expected)


def test_negatives_are_the_adapted_features_with_that_noise(monkeypatch):
    """What enters the discriminator: adapted rows, and as many with Gaussian noise of the standard deviation sigma."""
    seen = []
    forward = Discriminator.forward
    monkeypatch.setattr(
        Discriminator, "forward", lambda self, rows: (seen.append(rows.detach()), forward(self, rows))[1]
    )
    method = SimpleNet(epochs=1, noise=0.5, images_per_batch=200)
    method.fit(plane(200, 0))
    normal, noisy = seen[0].chunk(2)
    assert len(normal) == 1200
    assert (noisy - normal).std(dim=0).tolist() == pytest.approx([method.sigma] * 8, rel=0.1)


def test_its_optimisers_are_the_published_ones(monkeypatch):
    made = {}
    for name in ("AdamW", "Adam"):
        original = getattr(torch.optim, name)

        def create(parameters, rate, original=original, name=name, **options):
            made[name] = original(list(parameters), rate, **options)
            return made[name]

        monkeypatch.setattr(torch.optim, name, create)
    SimpleNet(epochs=1).fit(plane(10, 0))
    groups = {name: optimizer.param_groups[0] for name, optimizer in made.items()}
    assert [(groups[name]["lr"], groups[name]["weight_decay"]) for name in ("AdamW", "Adam")] == [
        (1e-4, 1e-2),
        (2e-4, 1e-5),
    ]
    assert [len(groups[name]["params"]) for name in ("AdamW", "Adam")] == [2, 5]


def test_states_are_kept_every_few_passes_and_end_with_the_trained_model():
    method = SimpleNet(epochs=5, state_every=2)
    method.fit(plane(10, 0))
    assert len(method.states) == 3
    assert (method.learned.cost.epochs, method.learned.cost.steps, method.learned.cost.images) == (5, 10, 50)
    last = {k: v.clone() for k, v in method.network.state_dict().items()}
    method.scores(plane(3, 1))
    assert all(torch.equal(last[k], v) for k, v in method.network.state_dict().items())


@pytest.mark.parametrize("options", [{"epochs": 0}, {"noise": 0}, {"images_per_batch": 0}, {"adaptor_rate": 0}])
def test_options_out_of_range(options):
    with pytest.raises(InputError, match="SimpleNet"):
        SimpleNet(**options)


def test_its_map_holds_the_patch_scores_behind_the_image_score():
    method, bank = SimpleNet(epochs=2), plane(5, 1)
    method.fit(plane(20, 0))
    maps = method.maps(bank)
    assert maps.shape == (5, 1, 2, 3)
    assert torch.equal(maps.flatten(1).amax(1), method.scores(bank)[-1])
