"""The check that an image shows a chest: measures, limits, storage."""

import math
import random

import numpy as np
import pytest
import torch

from monai_wscxr.data import Preprocessing
from monai_wscxr.data.counterexamples import CHEST_COUNTEREXAMPLES, OTHER_COUNTEREXAMPLES
from monai_wscxr.errors import InputError
from monai_wscxr.features import PatchExtractor, ThreadParallel
from monai_wscxr.model.chest_check import ChestCheck
from monai_wscxr.model.chest_fit import fit_chest_check, measure_chest_check
from monai_wscxr.model.networks import CheckedNet, Discriminator, WSCXRNet

NAMES = [*CHEST_COUNTEREXAMPLES, *OTHER_COUNTEREXAMPLES]


def normal_values(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def features():
    """Image features of normals, of held-out normals and of counterexamples, each kind shifted in a channel of its own."""
    kinds = {name: normal_values(6, 12, seed=9) + 8 * torch.eye(12)[n] for n, name in enumerate(NAMES)}
    return normal_values(60, 12), normal_values(15, 12, seed=1), kinds


def test_likeness_is_0_at_the_normals_and_1_at_the_kind(features):
    normal, held_out, kinds = features
    check = fit_chest_check(normal, held_out, kinds)
    assert np.abs(check.directions @ (normal.mean(0).numpy() - check.mean)).max() < 1e-5
    for number, kind in enumerate(kinds.values()):
        likeness = check.directions @ (kind.mean(0).numpy() - check.mean)
        assert likeness[number] == pytest.approx(1, abs=1e-5)
        assert np.abs(np.delete(likeness, number)).max() < 0.5
        assert check.excess(kind).min() > 1
    assert check.excess(held_out).max() < 1


def test_distance_finds_what_is_far_in_no_particular_direction(features):
    normal, held_out, kinds = features
    check = fit_chest_check(normal, held_out, kinds)
    far = 40 * normal_values(1, 12, seed=5)
    variance = normal.var(0)
    expected = [
        float(((x - normal.mean(0)).square() / (variance + variance.mean())).mean()) for x in (far[0], *held_out)
    ]
    limit = 11 * sorted(expected[1:])[7]  # the median of 15
    assert check.distance_limit == pytest.approx(limit, rel=1e-5)
    assert float(check.excess(far)[0]) >= expected[0] / limit - 1e-4 > 1
    refusal = check.refusals(far)[0]
    assert refusal.code == "unlike_a_chest"
    assert check.refusals(far, allow=["unlike_a_chest"]) == [None]
    assert check.refusals(held_out) == [None] * 15


def test_a_kind_that_features_do_not_tell_from_normals_is_left_out(features):
    normal, held_out, kinds = features
    kinds["gradient"] = normal[:6].clone()
    check = fit_chest_check(normal, held_out, kinds)
    assert math.isinf(check.likeness_limits[NAMES.index("gradient")])
    assert check.excess(held_out).max() < 1
    assert fit_chest_check(torch.ones(30, 12), held_out, kinds) is None


def test_stored_and_read_back(features):
    kinds = {**features[2], "gradient": features[0][:6]}
    check = fit_chest_check(*features[:2], kinds)
    values = check.to_dict()
    again = ChestCheck.from_dict(values)
    for name in ("mean", "variance", "directions", "likeness_limits"):
        assert np.array_equal(getattr(check, name), getattr(again, name))
    assert again.distance_limit == check.distance_limit
    broken = [
        {"mean": values["mean"][:-8]},
        {"mean": values["mean"][:-1] + "*"},
        {"channels": 11},
        {"channels": "12"},
        {"distance_limit": math.nan},
        {"distance_limit": -1.0},
        {"likeness_limits": [0.5]},
        {"likeness_limits": [-0.5] * 9},
        {"directions": 3},
    ]
    for change in broken:
        with pytest.raises(InputError, match="chest check is damaged"):
            ChestCheck.from_dict({**values, **change})


def test_checked_network_gives_scores_and_means_in_one_pass(make_features):
    features = make_features()
    network = WSCXRNet(features, Discriminator(features.channels)).eval()
    images = normal_values(3, 3, 64, 64)
    calls = []
    features.backbone.register_forward_hook(lambda *_: calls.append(1))
    scores, means = ThreadParallel(CheckedNet(network))(images)
    assert len(calls) == 3  # one for each image
    with torch.inference_mode():
        torch.testing.assert_close(scores, network(images), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(means, features(images).mean((2, 3)), rtol=1e-4, atol=1e-5)


def test_phantoms_pass_and_their_spoilt_copies_do_not(tmp_path):
    from monai_wscxr.data.phantom import write_phantoms
    from monai_wscxr.features.backbones import create_backbone
    from monai_wscxr.features.copies import Alteration, copy_features
    from monai_wscxr.features.patches import PatchFeatures

    write_phantoms(tmp_path / "data", 30, 1, 4, 2, size=96, progress=False)
    features = PatchFeatures(create_backbone("efficientnet_lite0"), 3, None, "coarsest")
    preprocessing = Preprocessing(96, features.backbone.mean, features.backbone.std, intensity="standardised")
    extractor = PatchExtractor(features, preprocessing, cache=tmp_path / "cache", progress=False)
    files = sorted(map(str, (tmp_path / "data/train/normal").iterdir()))

    def means(paths):
        return extractor.usable(paths)[1].mean(1)

    normal = means(files)
    assert measure_chest_check(extractor, files[:19], normal[:19], normal[24:]) is None  # too few
    check = measure_chest_check(extractor, files[:24], normal[:24], normal[24:])
    good = sorted(map(str, (tmp_path / "data/test").rglob("*.png")))
    assert check.refusals(means(good)) == [None] * len(good)
    for name, change in {**CHEST_COUNTEREXAMPLES, **OTHER_COUNTEREXAMPLES}.items():
        spoil = Alteration(f"test_{name}", 1, lambda image, seed, change=change: change(image, random.Random(seed)))
        spoilt = copy_features(extractor, good, spoil, 1, pooled=True)[:, 0]
        refused = sum(r is not None for r in check.refusals(spoilt))
        assert refused >= 0.9 * len(good), name
    _, again, _ = extractor.usable(files[:24])
    cached = measure_chest_check(extractor, files[:24], again.mean(1), normal[24:])
    assert cached.to_dict() == check.to_dict()
