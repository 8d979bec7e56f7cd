"""PNG and JPEG bytes: every pixel, or nearly every pixel, comes back."""

import io

import numpy as np
import pytest
from PIL import Image

from monai_wscxr.data.encoding import encode_jpeg, encode_png


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 3)])
def test_png_returns_every_pixel(shape, quick):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode_png(array, quick)))), array)


def test_jpeg_returns_nearly_every_pixel_and_the_colour_of_thin_lines():
    array = np.full((32, 32, 3), 60, dtype=np.uint8)
    array[:, 15] = (255, 40, 40)
    back = np.asarray(Image.open(io.BytesIO(encode_jpeg(array, quality=95))), dtype=int)
    assert back.shape == array.shape
    assert abs(back - array).max() < 30  # with colour at half resolution the line is 80 off


def test_encoders_reject_floats_odd_shapes_and_qualities():
    with pytest.raises(ValueError, match="uint8"):
        encode_png(np.zeros((4, 4)))
    with pytest.raises(ValueError, match="uint8"):
        encode_jpeg(np.zeros((4, 4, 4), dtype=np.uint8))
    with pytest.raises(ValueError, match="quality"):
        encode_jpeg(np.zeros((4, 4), dtype=np.uint8), quality=0)
