"""DDAD against its description: sizes, discrepancies, defects, the focal loss, and what a training leaves."""

import numpy as np
import pytest
import torch
from torch import nn

from monai_wscxr.errors import InputError
from monai_wscxr.experiments.baselines import image_training
from monai_wscxr.experiments.baselines.ddad import (
    Ddad,
    Defects,
    autoencoder,
    discrepancies,
    focal_loss,
    refinement_network,
)
from monai_wscxr.experiments.baselines.images import GreyImages, Place


@pytest.fixture(autouse=True)
def _seeded_and_single_threaded():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def images(n, size=32, seed=0):
    """Smooth grey images."""
    coarse = torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    pixels = nn.functional.interpolate(coarse, (size, size), mode="bilinear").mul(255).to(torch.uint8)
    return GreyImages([f"{i}.png" for i in range(n)], pixels)


def method(**options):
    return Ddad(**{"epochs": 2, "members": 2, "processes": 1, **options})


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_it_has_the_published_size():
    network = autoencoder()
    assert count(network) == 4_487_248
    assert count(refinement_network()) == 152_834
    assert network(torch.rand(2, 1, 64, 64)).shape == (2, 1, 64, 64)
    assert not any(isinstance(layer, (nn.Sigmoid, nn.Tanh)) for layer in network)
    assert refinement_network()(torch.rand(1, 2, 64, 64)).shape == (1, 2, 64, 64)
    with pytest.raises(InputError, match="multiple of 16"):
        autoencoder(40)


def test_discrepancies_against_naive_ones():
    unknown, normative = torch.rand(3, 2, 1, 4, 4), torch.rand(3, 2, 1, 4, 4)
    found = discrepancies(unknown, normative)
    a, b = unknown.double().numpy(), normative.double().numpy()
    np.testing.assert_allclose(found["inter"].numpy(), np.abs(a.mean(0) - b.mean(0)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["intra"].numpy(), np.sqrt(((b - b.mean(0)) ** 2).sum(0) / 2), rtol=1e-5)
    assert set(discrepancies(None, normative)) == {"intra"}


def test_the_focal_loss_against_a_naive_one():
    logits, target = torch.randn(2, 2, 3, 3), (torch.rand(2, 1, 3, 3) > 0.5).float()
    z, t = logits.double().numpy(), target.double().numpy()[:, 0]
    p = np.exp(z[:, 1]) / np.exp(z).sum(1)
    one = np.where(t == 1, 1 - 1e-5, 1e-5)
    right = one * p + (1 - one) * (1 - p)
    assert focal_loss(logits, target).item() == pytest.approx(np.mean((1 - right) ** 2 * -np.log(right)), rel=1e-4)


def test_defects():
    normal = images(6, 64)
    add, touched, widths, centres = Defects(normal), 0, [], []
    for number in range(300):
        image = normal.floats()[number % 6]
        made = add(image, torch.Generator().manual_seed(number))
        again = add(image, torch.Generator().manual_seed(number))
        assert torch.equal(made["image"], again["image"])
        inside = made["target"] > 0
        assert torch.equal(made["image"][~inside], image[~inside])
        if inside.any():
            touched += 1
            rows = inside[0].any(1).nonzero()[:, 0]
            widths.append(len(rows))
            centres.append(float(rows.float().mean()))
            assert not torch.equal(made["image"], image)
            assert inside[0][rows[0] : rows[-1] + 1].any(0).sum() * len(rows) == inside.sum()  # a rectangle
    assert 120 < touched < 180
    assert 6 <= min(widths) < 9
    assert 22 < max(widths) <= 24
    assert min(centres) < 12
    assert max(centres) > 51


def test_what_a_training_leaves(tmp_path):
    normal, abnormal = images(70), images(3, seed=1)
    made = method()
    made.fit_images(normal, abnormal)
    assert made.learned.cost.epochs == 2
    assert made.learned.cost.steps == 2 * 2 * 2  # one whole batch per epoch: the rest is left out
    assert made.learned.cost.images == 64 * 8
    assert "4 autoencoders" in made.learned.network
    [scores], maps = made.image_scores(abnormal), made.image_maps(abnormal)
    assert maps.shape == (3, 32, 32)
    torch.testing.assert_close(scores, maps.mean((1, 2)))
    for number in range(3):  # independent of the neighbours
        alone = GreyImages(["one"], abnormal.pixels[number : number + 1])
        torch.testing.assert_close(made.image_scores(alone)[0][0], scores[number], rtol=1e-4, atol=1e-6)
    # the map by hand
    centred = abnormal.floats() * 2 - 1
    a, b = (torch.stack([net(centred) for net in nets]).mean(0) for nets in (made.unknown, made.normative))
    torch.testing.assert_close(maps, (a - b).abs()[:, 0], rtol=1e-4, atol=1e-6)


def test_each_score_is_what_it_says():
    normal, abnormal = images(64), images(2, seed=1)
    centred = abnormal.floats() * 2 - 1
    made = method(score="intra")
    made.fit_images(normal)
    assert made.unknown == []
    both = torch.stack([net(centred) for net in made.normative])
    torch.testing.assert_close(made.image_maps(abnormal), both.std(0)[:, 0], rtol=1e-4, atol=1e-6)
    made.score = "reconstruction"
    expected = (centred - both.mean(0)).square()[:, 0]
    torch.testing.assert_close(made.image_maps(abnormal), expected, rtol=1e-4, atol=1e-6)
    made = method(score="refined", epochs=1, refinement_epochs=1)
    made.fit_images(normal, abnormal)
    assert made.learned.cost.steps == 4 + 8
    maps = made.image_maps(abnormal)
    assert 0 < maps.min() < maps.max() < 1
    for score in ("inter", "refined"):
        with pytest.raises(InputError, match="needs abnormal"):
            method(score=score).fit_images(normal)


def test_module_a_sees_normals_once_or_twice(monkeypatch):
    normal, abnormal, seen = images(4), images(2, seed=1), []

    def note(train, tasks, *_):
        seen.append([len(task.pixels) for task in tasks])
        raise KeyboardInterrupt

    monkeypatch.setattr("monai_wscxr.experiments.baselines.ddad.train_side_by_side", note)
    for unlabelled in ("once", "paper"):
        with pytest.raises(KeyboardInterrupt):
            method(unlabelled=unlabelled).fit_images(normal, abnormal)
    assert seen == [[4, 4, 6, 6], [4, 4, 10, 10]]


def test_module_b_is_trained_once_for_all_k(tmp_path):
    normal, place = images(64), Place(tmp_path / "k1", tmp_path / "shared")
    other = Place(tmp_path / "k2", tmp_path / "shared")
    for folder in ("k1", "k2", "shared"):
        (tmp_path / folder).mkdir()
    first, second, alone = method(), method(), method()
    first.fit_images(normal, images(3, seed=1), place)
    assert sorted(path.name for path in (tmp_path / "shared").iterdir()) == ["normative_0.pt", "normative_1.pt"]
    before = [path.read_bytes() for path in sorted((tmp_path / "shared").iterdir())]
    second.fit_images(normal, images(5, seed=2), other)
    assert [path.read_bytes() for path in sorted((tmp_path / "shared").iterdir())] == before
    alone.fit_images(normal, images(5, seed=2))
    found = [made.image_scores(normal)[0] for made in (second, alone)]
    assert torch.equal(found[0], found[1])
    assert second.learned.cost.steps == alone.learned.cost.steps
    assert not torch.equal(first.image_scores(normal)[0], found[0])


def test_a_killed_training_ends_at_the_same_networks(tmp_path, monkeypatch):
    monkeypatch.setattr(image_training, "SAVE_SECONDS", 0.0)
    normal, abnormal, steps = images(64), images(3, seed=1), []

    def stop(self, n=1):
        steps.append(n)
        if len(steps) == 8:  # in the third network
            raise KeyboardInterrupt

    made, whole = method(epochs=3), method(epochs=3)
    with monkeypatch.context() as patch:
        patch.setattr("monai_wscxr.system.progress.PlainBar.update", stop)
        with pytest.raises(KeyboardInterrupt):
            made.fit_images(normal, abnormal, Place(tmp_path))
    made.fit_images(normal, abnormal, Place(tmp_path))
    whole.fit_images(normal, abnormal)
    assert torch.equal(made.image_maps(abnormal), whole.image_maps(abnormal))
    assert made.learned.cost.steps == whole.learned.cost.steps == 12


def test_it_learns_one_batch_by_heart():
    errors = []
    for epochs in (1, 80):
        made = method(score="reconstruction", epochs=epochs)
        made.fit_images(images(8))
        errors.append(float(made.image_scores(images(8))[0].mean()))
    assert errors[1] < 0.2 * errors[0], errors


@pytest.mark.parametrize(
    "options", [{"score": "outer"}, {"epochs": 0}, {"members": 1}, {"unlabelled": "thrice"}, {"precision": "float16"}]
)
def test_options_out_of_range(options):
    with pytest.raises(InputError, match=r"DDAD|training_precision"):
        Ddad(**options)
