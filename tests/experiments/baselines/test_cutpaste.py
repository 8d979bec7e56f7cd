"""CutPaste and AnatPaste in full: the network, its training and its density, each against something simpler."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.covariance import LedoitWolf

from monai_wscxr.data.phantom import make_phantom
from monai_wscxr.errors import InputError
from monai_wscxr.experiments.baselines import image_training
from monai_wscxr.experiments.baselines.anatpaste import AnatPaste
from monai_wscxr.experiments.baselines.cutpaste import CutPaste, GaussianDensity, PasteNet, prepare_kinds
from monai_wscxr.experiments.baselines.images import GreyImages, Place

SMALL = {"steps": 6, "batch_size": 4}


@pytest.fixture(scope="module")
def phantoms():
    """Eight normal phantoms of 32 x 32."""
    pixels = [np.asarray(make_phantom(number, size=64).image)[::2, ::2] for number in range(8)]
    images = torch.from_numpy(np.stack(pixels).astype(np.float32) * 255).round().to(torch.uint8)[:, None]
    return GreyImages([f"{number}.png" for number in range(8)], images)


def test_the_network_is_resnet18_with_a_head():
    network = PasteNet(3)
    assert sum(p.numel() for p in network.trunk.parameters()) == 11_176_512
    assert [tuple(layer.weight.shape) for layer in network.head if isinstance(layer, torch.nn.Linear)] == [
        (512, 512),
        (128, 512),
        (3, 128),
    ]
    assert network(torch.rand(2, 1, 32, 32)).shape == (2, 3)
    deviation = network.trunk.layer4[1].conv2.weight.detach().std()
    assert deviation == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.05)  # random: no weights of ImageNet


def test_images_are_prepared_as_published():
    """Three equal channels, normalised by ImageNet's figures."""
    network = PasteNet(2)
    seen = []
    network.trunk.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image = torch.rand(1, 1, 32, 32)
    network(image.expand(2, 1, 32, 32))
    expected = [(image[0, 0] - m) / s for m, s in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)]
    torch.testing.assert_close(seen[0][0].contiguous(), torch.stack(expected))


@pytest.mark.parametrize(("method", "kinds"), [(CutPaste, 3), (AnatPaste, 2)])
def test_every_image_enters_a_step_once_in_every_kind(method, kinds, phantoms):
    made = method(**SMALL)
    made.network = PasteNet(kinds)
    batch = next(iter(made.training(made.prepare(phantoms), Place()).batches))
    assert batch["image"].shape == (4, kinds, 1, 32, 32)
    images, target = prepare_kinds(batch)
    assert images.shape == (4 * kinds, 1, 32, 32)
    assert target.tolist() == [*range(kinds)] * 4
    for number, place in enumerate(batch["index"].tolist()):
        untouched = images[number * kinds]
        original = phantoms.floats(torch.tensor([place]))[0]
        assert np.corrcoef(untouched.flatten(), original.flatten())[0, 1] > 0.999  # but for the jitter
        for kind in range(1, kinds):
            changed = (images[number * kinds + kind] - untouched).abs() > 1e-6
            assert 0 < changed.float().mean() < 0.3


class Fixed(CutPaste):
    """CutPaste with the same defects in every pass."""

    def variants(self, image, generator):
        return super().variants(image, torch.Generator().manual_seed(int(1e6 * image.sum()) % 1000))


def test_one_batch_can_be_learned_by_heart(phantoms):
    few = GreyImages(phantoms.files[:3], phantoms.pixels[:3])
    method = Fixed(steps=40, batch_size=3)
    method.fit_images(few, None, Place())
    images, target = prepare_kinds(next(iter(method.training(few, Place()).batches)))
    method.network.train()  # by the statistics of this batch, which is all that was seen
    with torch.no_grad():
        loss = F.cross_entropy(method.network(images), target)
    assert loss < 0.4 < 0.8 < F.cross_entropy(PasteNet(3)(images), target)


def test_the_schedule_is_a_cosine_to_zero_over_all_steps(phantoms):
    method = CutPaste(**SMALL)
    method.network = PasteNet(3)
    training = method.training(phantoms, Place())
    optimizer = training.parts["optimizer"]
    rates = []
    training.run(lambda: rates.append(optimizer.param_groups[0]["lr"]))
    # the rate of each step; the schedule is stepped behind it
    assert rates == pytest.approx([0.03 * (1 + np.cos(np.pi * n / 6)) / 2 for n in range(1, 7)], abs=1e-9)
    assert [group[name] for group in optimizer.param_groups for name in ("momentum", "weight_decay")] == [0.9, 3e-5]


def test_the_density_is_ledoits_and_wolfs():
    random = np.random.default_rng(0)
    rows = torch.from_numpy(random.standard_normal((30, 12)) * np.linspace(0.5, 2, 12) + 1).float()
    others = torch.from_numpy(random.standard_normal((5, 12)) + 1).float()
    normal, other = (F.normalize(x.double(), dim=1).numpy() for x in (rows, others))
    # Ledoit and Wolf 2004, term by term
    centred = normal - normal.mean(0)
    n, p = centred.shape
    sample = sum(np.outer(x, x) for x in centred) / n
    mean = np.trace(sample) / p
    spread = ((sample - mean * np.eye(p)) ** 2).sum() / p
    error = min(sum(((np.outer(x, x) - sample) ** 2).sum() for x in centred) / (n * n * p), spread)
    covariance = error / spread * mean * np.eye(p) + (1 - error / spread) * sample
    expected = [float(np.sqrt((x - normal.mean(0)) @ np.linalg.inv(covariance) @ (x - normal.mean(0)))) for x in other]
    found = GaussianDensity(rows).distance(others)
    assert found.tolist() == pytest.approx(expected, rel=1e-5)
    assert found.tolist() == pytest.approx(np.sqrt(LedoitWolf().fit(normal).mahalanobis(other)).tolist(), rel=1e-5)


def test_a_killed_training_ends_at_the_same_scores(phantoms, tmp_path, monkeypatch):
    monkeypatch.setattr(image_training, "SAVE_SECONDS", 0.0)
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    method, small = AnatPaste, {"steps": 6, "batch_size": 2}
    whole = method(**small)
    whole.fit_images(phantoms, None, Place(tmp_path / "whole"))
    assert (whole.learned.cost.steps, whole.learned.cost.epochs) == (6, 0)
    assert whole.learned.network == "ResNet-18 from scratch, 32 x 32"
    steps = []

    def stop(loss, target):
        steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return F.cross_entropy(loss, target)

    killed = method(**small)
    with monkeypatch.context() as patch:
        patch.setattr("monai_wscxr.experiments.baselines.cutpaste.nn.CrossEntropyLoss", lambda: stop)
        with pytest.raises(KeyboardInterrupt):
            killed.fit_images(phantoms, None, Place(tmp_path / "killed"))
    after = method(**small)
    after.fit_images(phantoms, None, Place(tmp_path / "killed"))
    assert after.learned.cost.steps == 6
    assert torch.equal(whole.image_scores(phantoms)[0], after.image_scores(phantoms)[0])


def test_scores_do_not_depend_on_other_images_or_the_global_stream(phantoms):
    state = torch.random.get_rng_state()
    found = []
    for seed in (0, 0, 1):
        method = CutPaste(**{**SMALL, "steps": 2}, seed=seed)
        method.fit_images(phantoms, None, Place())
        found.append(method.image_scores(phantoms)[0])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert torch.equal(state, torch.random.get_rng_state())
    alone = [float(method.image_scores(phantoms.of({file}))[0]) for file in phantoms.files]
    assert alone == pytest.approx(found[2].tolist(), rel=1e-4)


@pytest.mark.parametrize("method", [CutPaste, AnatPaste])
@pytest.mark.parametrize(
    "options", [{"steps": 0}, {"batch_size": 1}, {"rate": 0}, {"hidden": -1}, {"precision": "half"}]
)
def test_options_out_of_range(method, options):
    with pytest.raises(InputError, match=method.name):
        method(**options)


def test_bfloat16_is_for_training_alone():
    network = PasteNet(3, precision="bfloat16")
    seen = []
    network.trunk.layer1.register_forward_hook(lambda *given: seen.append(given[2].dtype))
    logits = network(torch.rand(2, 1, 32, 32))
    assert logits.dtype == torch.float32
    network.eval()
    network(torch.rand(2, 1, 32, 32))
    assert seen == [torch.bfloat16, torch.float32]
