"""Resizing by products of matrices: that of torch in float64, for every ratio and border."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from monai_wscxr.data.resizing import resize


@pytest.mark.parametrize(
    ("shape", "size"),
    [((200, 170), (32, 32)), ((30, 25), (32, 64)), ((32, 64), (32, 32)), ((1, 7), (3, 5)), ((701, 333), (56, 57))],
)
def test_it_is_that_of_torch_in_float64(shape, size):
    image = np.random.default_rng(0).random(shape, np.float32)
    exact = F.interpolate(torch.from_numpy(image).double()[None, None], size, mode="bilinear", antialias=True)[0, 0]
    found = resize(image, *size)
    assert found.shape == size
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_allclose(found, exact.numpy(), atol=3e-7)


def test_a_constant_image_stays_constant_and_a_size_that_fits_changes_nothing():
    image = np.full((91, 40), 0.3, np.float32)
    np.testing.assert_allclose(resize(image, 32, 32), 0.3, atol=1e-7)
    image = np.random.default_rng(0).random((32, 32), np.float32)
    assert np.array_equal(resize(image, 32, 32), image)
