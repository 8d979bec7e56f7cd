"""CutPaste on a frozen network: its density separates unseen images."""

import numpy as np
import pytest
import torch

from monai_wscxr.bank.feature_bank import FeatureBank
from monai_wscxr.data.preprocessing import Preprocessing
from monai_wscxr.errors import InputError
from monai_wscxr.experiments.baselines.cutpaste_reduced import CutPasteReduced, pooled
from monai_wscxr.features.copies import Alteration, copy_features
from monai_wscxr.features.extraction import PatchExtractor


@pytest.fixture
def extractor(make_features, tmp_path):
    features = make_features()
    preprocessing = Preprocessing(64, features.backbone.mean, features.backbone.std)
    return PatchExtractor(features, preprocessing, cache=tmp_path / "cache", progress=False)


def test_untouched_and_pasted_images_are_prepared_alike(make_features, normal_items):
    """Pasted images differ from normal ones by the paste alone: intensities are standardised after pasting."""
    features = make_features()
    preprocessing = Preprocessing(64, features.backbone.mean, features.backbone.std, intensity="standardised")
    extractor = PatchExtractor(features, preprocessing, cache=False, progress=False)
    normal = extractor.bank(normal_items[:4])
    untouched = Alteration("untouched", 1, lambda image, seed: image)
    torch.testing.assert_close(copy_features(extractor, normal.files, untouched, 1, pooled=True)[:, 0], pooled(normal))


def test_the_score_is_the_mahalanobis_distance_of_the_hidden_layer(extractor, normal_items):
    method = CutPasteReduced(steps=20, widths=(16, 6))
    normal = extractor.bank(normal_items)
    method.fit(normal, extractor)
    hidden = method.head[:-1](method._standard(pooled(normal))).detach().double().numpy()
    centre, precision = method.density.location_, np.linalg.inv(method.density.covariance_)
    expected = [float(np.sqrt((row - centre) @ precision @ (row - centre))) for row in hidden]
    assert method.scores(normal)[0].tolist() == pytest.approx(expected, rel=1e-3)


def test_far_images_score_higher(extractor, normal_items):
    method = CutPasteReduced(steps=50)
    normal = extractor.bank(normal_items)
    method.fit(normal, extractor)
    spread = normal.rows.std(dim=0)
    far = FeatureBank(normal.rows + 6 * spread, normal.files, normal.file_index, normal.position, normal.grid)
    assert method.scores(far)[0].min() > method.scores(normal)[0].max()


@pytest.mark.parametrize(
    "options", [{"pasted_copies": 0}, {"steps": 0}, {"batch_size": 1}, {"rate": 0}, {"widths": (0,)}]
)
def test_options_out_of_range(options):
    with pytest.raises(InputError, match="CutPasteReduced"):
        CutPasteReduced(**options)
