"""What synthetic opacities do to features: changes of the copied images, and the direction made of them."""

import torch

from monai_wscxr.data import Preprocessing
from monai_wscxr.features import PatchExtractor
from monai_wscxr.features.copies import OPACITIES, copied_images, copy_features
from monai_wscxr.model import NormalWhitening
from monai_wscxr.model.opacity import opacity_changes, opacity_directions


def test_changes_are_copies_minus_their_originals(make_features, normal_items, tmp_path):
    features = make_features()
    preprocessing = Preprocessing(64, features.backbone.mean, features.backbone.std)
    extractor = PatchExtractor(features, preprocessing, cache=tmp_path, progress=False)
    bank = extractor.bank(normal_items[:6])
    found = opacity_changes(extractor, bank, 4, 2)
    chosen = copied_images(extractor, bank.files, 4)
    images = bank.rows.reshape(6, 16, -1)
    expected = copy_features(extractor, [bank.files[n] for n in chosen], OPACITIES, 2)
    expected = expected - images[chosen].repeat_interleave(2, 0)
    torch.testing.assert_close(found, expected)
    assert found.abs().amax((1, 2)).min() > 0
    assert torch.equal(opacity_changes(extractor, extractor.bank_on_disk(normal_items[:6]), 4, 2), found)


def test_direction_is_the_mean_of_the_patches_that_change_most():
    whitening = NormalWhitening(2)
    whitening.matrix.copy_(torch.diag(torch.tensor([1.0, 10.0])))
    changes = torch.zeros(2, 8, 2)
    changes[0, 1], changes[0, 6] = (
        torch.tensor([3.0, 0.0]),
        torch.tensor([0.0, 1.0]),
    )  # lengths 3 and 10 after whitening
    changes[0, 2] = torch.tensor([2.0, 0.0])  # the third of eight patches: no more in the quarter
    changes[1, 0], changes[1, 7] = torch.tensor([1.0, 0.0]), torch.tensor([0.0, -0.4])
    expected = torch.tensor([3.0 + 1.0, 10.0 - 4.0]) / 4
    torch.testing.assert_close(opacity_directions(changes, whitening, 1.0)[0], expected)


def test_direction_for_maps_is_fishers_with_less_shrinkage():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(500, 4, generator=generator) @ torch.randn(4, 4, generator=generator)
    whitening = NormalWhitening(4)
    whitening.fit(rows, 1.0)
    changes = torch.randn(3, 20, 4, generator=generator)
    size = (changes @ whitening.matrix).norm(dim=2)
    change = torch.stack([c[s.topk(2).indices] for c, s in zip(changes, size, strict=True)]).mean((0, 1))
    covariance = torch.cov(rows.T.double(), correction=0)
    shrunken = covariance + 0.1 * covariance.diagonal().mean() * torch.eye(4, dtype=torch.float64)
    expected = torch.linalg.solve(shrunken, change.double())
    found = opacity_directions(changes, whitening, 1.0)[1]
    torch.testing.assert_close(found.double() @ whitening.matrix.double(), expected, rtol=1e-3, atol=1e-5)


def test_direction_for_maps_keeps_a_shrinkage_that_is_small():
    whitening = NormalWhitening(3)
    whitening.fit(torch.randn(200, 3, generator=torch.Generator().manual_seed(0)), 0.05)
    changes = torch.randn(2, 10, 3, generator=torch.Generator().manual_seed(1))
    moved = changes @ whitening.matrix
    expected = torch.stack([m[m.norm(dim=1).argmax()] for m in moved]).mean(0)
    torch.testing.assert_close(opacity_directions(changes, whitening, 0.05)[1], expected)
