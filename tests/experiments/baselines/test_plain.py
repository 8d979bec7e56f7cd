"""The plain rows of a comparison, against their formulas."""

import numpy as np
import pytest
import torch

from monai_wscxr.bank.feature_bank import FeatureBank
from monai_wscxr.data.split import training_split
from monai_wscxr.errors import InputError
from monai_wscxr.experiments.baselines.common import labelled_split
from monai_wscxr.experiments.baselines.plain import DiscriminantAnalysis, LogisticClassifier, NearestNormal


def bank(count, shift=0.0, seed=0):
    """Images of 2 x 2 patches with six channels of unequal spread; `shift` moves the second one."""
    rows = torch.randn(count, 4, 6, generator=torch.Generator().manual_seed(seed)) * torch.arange(1.0, 7.0) + 10
    rows[:, :, 1] += shift
    return FeatureBank.from_images(rows, [f"{seed}-{n}" for n in range(count)], (2, 2))


def standardised(images, normal):
    means, own = (b.rows.reshape(len(b.files), 4, 6).double().mean(1).numpy() for b in (images, normal))
    return (means - own.mean(0)) / own.std(0)


@pytest.mark.parametrize("method", [DiscriminantAnalysis, LogisticClassifier])
def test_classifiers_tell_the_shifted_channel(method):
    classifier = method()
    classifier.fit_labelled(bank(200), bank(8, 4.0, 1))
    (healthy,), (ill,) = classifier.scores(bank(50, 0.0, 2)), classifier.scores(bank(50, 4.0, 3))
    assert healthy.shape == (50,)
    assert healthy.dtype == torch.float32
    assert float((ill[:, None] > healthy).float().mean()) > 0.95


def test_discriminant_is_fishers_with_ledoit_and_wolfs_covariance():
    from sklearn.covariance import ledoit_wolf

    normal, abnormal, other = bank(60), bank(5, 3.0, 1), bank(7, 1.0, 2)
    classifier = DiscriminantAnalysis()
    classifier.fit_labelled(normal, abnormal)
    x, y = standardised(normal, normal), standardised(abnormal, normal)

    def covariance(values):  # scikit-learn shrinks the correlations of each class
        scale = values.std(0)
        return ledoit_wolf((values - values.mean(0)) / scale)[0] * np.outer(scale, scale)

    within = (len(x) * covariance(x) + len(y) * covariance(y)) / (len(x) + len(y))
    direction = np.linalg.solve(within, y.mean(0) - x.mean(0))
    expected = standardised(other, normal) @ direction
    found = classifier.scores(other)[0].double().numpy()
    np.testing.assert_allclose(found - found.mean(), expected - expected.mean(), rtol=1e-4, atol=1e-4)


def test_nearest_is_the_distance_to_the_nearest_mean():
    normal, other = bank(40), bank(9, 2.0, 1)
    method = NearestNormal()
    method.fit(normal)
    x, y = standardised(normal, normal), standardised(other, normal)
    expected = [min(float(np.linalg.norm(a - b)) for b in x) for a in y]
    torch.testing.assert_close(method.scores(other)[0], torch.tensor(expected), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(method.scores(normal)[0], torch.zeros(40), rtol=0, atol=1e-5)


def test_a_constant_channel_divides_by_nothing():
    normal = bank(10)
    normal.rows[:, 3] = 5.0
    method = NearestNormal()
    method.fit(normal)
    assert bool(torch.isfinite(method.scores(bank(3, seed=1))[0]).all())


def test_labelled_methods_learn_from_the_images_of_wscxr(phantoms):
    for seed in (0, 1):
        ours, theirs = training_split(phantoms, 1, 0.15, seed), labelled_split(phantoms, 1, 0.15, seed)
        assert [item["image"] for item in theirs.abnormal] == [item["image"] for item in ours.abnormal]
        assert [item["image"] for item in theirs.held_out] == [item["image"] for item in ours.held_out]
    with pytest.raises(InputError, match="needs abnormal training images"):
        labelled_split(phantoms, 0)
