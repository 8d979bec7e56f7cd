"""Maps relative to normals at the same place, and their peaks, line and file."""

import numpy as np
import pytest
import torch

from monai_wscxr.errors import InputError
from monai_wscxr.model.calibration import calibrate
from monai_wscxr.model.local_map import _WHOLE, LocalMap
from monai_wscxr.model.predictions import map_peaks, shown_maps


@pytest.fixture
def normals():
    generator = torch.Generator().manual_seed(0)
    place = torch.linspace(-3, 3, 20).reshape(4, 5)
    return place + (1 + place.abs()) * torch.randn(200, 1, 4, 5, generator=generator)


def test_a_place_is_compared_with_itself_and_with_the_other_side(normals):
    local = LocalMap.measure(normals)
    np.testing.assert_allclose(local.mean, normals[:, 0].mean(0), rtol=1e-4, atol=1e-5)
    variance = normals[:, 0].var(0, correction=0)
    np.testing.assert_allclose(local.spread, (0.5 * variance + 0.5 * variance.mean()).sqrt(), rtol=1e-5)
    scores = local.mean.copy()[None, None]
    usual = local(scores)[0, 0]
    weight = np.outer(np.sin(np.pi * (np.arange(4) + 0.5) / 4), np.sin(np.pi * (np.arange(5) + 0.5) / 5))
    np.testing.assert_allclose(usual, weight, rtol=1e-5)  # an unremarkable picture shows the prior alone
    scores[0, 0, 1, 1] += 2 * local.spread[1, 1]
    found = local(scores)[0, 0]
    whole = _WHOLE * 2 / 20  # of the picture's mean
    assert float(found[1, 1] - usual[1, 1]) == pytest.approx((2 + whole) * float(weight[1, 1]), rel=1e-4)
    assert float(found[1, 3] - usual[1, 3]) == pytest.approx((-1 + whole) * float(weight[1, 3]), rel=1e-4)
    usual = usual + whole * weight
    found[1, 1], found[1, 3] = usual[1, 1], usual[1, 3]
    np.testing.assert_allclose(found, usual, rtol=1e-5)


def test_few_or_equal_normals_give_none(normals):
    assert LocalMap.measure(normals[:7]) is None
    assert LocalMap.measure(torch.ones(50, 1, 4, 5)) is None
    assert LocalMap.measure(normals[:8]) is not None


def test_the_line_is_what_few_maps_of_normals_reach_anywhere(normals):
    local = LocalMap.measure(normals)
    peaks = map_peaks(normals, 40, 2.0, local)
    assert peaks == pytest.approx([float(shown_maps(n[None], 40, 2.0, local).max()) for n in normals], rel=1e-5)
    calibration = calibrate([float(n) for n in range(200)], (), 0.05, normal_peaks=peaks)
    assert sum(peak > calibration.map_line for peak in peaks) == 9  # floor(0.05 * 201) - 1
    assert calibration.colour_scale.threshold == calibration.map_line
    assert calibration.colour_low < calibration.map_line < calibration.colour_high


def test_written_and_read(normals):
    local = LocalMap.measure(normals)
    again = LocalMap.from_dict(local.to_dict())
    assert np.array_equal(again.mean, local.mean)
    assert np.array_equal(again.spread, local.spread)
    for values in (
        {"mean": [[1.0]], "spread": [[0.0]]},
        {"mean": [[1.0]], "spread": [[1.0, 1.0]]},
        {"mean": [[1.0], [1.0, 2.0]], "spread": [[1.0], [1.0, 2.0]]},
        {"mean": [1.0], "spread": [1.0]},
    ):
        with pytest.raises(InputError, match="reference of the maps is damaged"):
            LocalMap.from_dict(values)
    with pytest.raises(InputError, match="maps of this model have"):
        local(np.zeros((1, 1, 5, 5), np.float32))
