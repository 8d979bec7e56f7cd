"""Anomaly scores and maps of images, from their patch scores."""

import math
import time

import numpy as np
import pytest
from scipy import ndimage

from monai_wscxr.model.scores import anomaly_map, anomaly_score


def naive_map(scores, size, sigma):
    """Upsample and smooth one [h, w] list of lists in float64 loops: bilinear, then a Gaussian with mirrored borders."""
    h, w = len(scores), len(scores[0])
    height, width = size

    def sample(y, x):
        v = min(max((y + 0.5) * h / height - 0.5, 0), h - 1)
        u = min(max((x + 0.5) * w / width - 0.5, 0), w - 1)
        y0, x0 = int(v), int(u)
        y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
        top = scores[y0][x0] * (1 - u + x0) + scores[y0][x1] * (u - x0)
        bottom = scores[y1][x0] * (1 - u + x0) + scores[y1][x1] * (u - x0)
        return top * (1 - v + y0) + bottom * (v - y0)

    def mirror(i, n):  # ... 2 1 | 0 1 2 ... n-1 | n-2 n-3 ...
        i = abs(i)
        return 2 * (n - 1) - i if i > n - 1 else i

    up = [[sample(y, x) for x in range(width)] for y in range(height)]
    radius = min(math.ceil(4 * sigma), min(size) - 1)
    if sigma == 0 or radius < 1:
        return up
    weights = [math.exp(-(d**2) / (2 * sigma**2)) for d in range(-radius, radius + 1)]
    total = math.fsum(weights)
    rows = [
        [
            sum(weights[d + radius] * up[y][mirror(x + d, width)] for d in range(-radius, radius + 1)) / total
            for x in range(width)
        ]
        for y in range(height)
    ]
    return [
        [
            sum(weights[d + radius] * rows[mirror(y + d, height)][x] for d in range(-radius, radius + 1)) / total
            for x in range(width)
        ]
        for y in range(height)
    ]


def score_maps():
    generator = np.random.default_rng(0)
    normal = generator.standard_normal((2, 1, 3, 4), np.float32)
    corner = np.zeros((1, 1, 4, 4), np.float32)
    corner[0, 0, 0, 3] = 1
    return {
        "random": normal,
        "tied": generator.integers(0, 2, (1, 1, 4, 4)).astype(np.float32),
        "constant": np.full((1, 1, 3, 3), -2.3, np.float32),
        "huge": np.float32(1e30) * normal,
        "tiny": np.float32(1e-30) * normal,
        "corner": corner,
        "one patch": np.array([[[[1.7]]]], np.float32),
    }


@pytest.mark.parametrize(
    ("size", "sigma"), [((12, 12), 1.0), ((9, 14), 0.7), ((8, 8), 4.0), ((11, 13), 0.0), ((1, 6), 1.0)]
)
@pytest.mark.parametrize("name", score_maps())
def test_map_is_bilinear_then_gaussian_with_mirrored_borders(name, size, sigma):
    scores = score_maps()[name]
    result = anomaly_map(scores, size, sigma)
    expected = np.array([[naive_map(s[0].tolist(), size, sigma)] for s in scores.astype(np.float64)])
    assert result.shape == expected.shape
    assert result.dtype == np.float32
    assert np.abs(result - expected).max() <= 1e-5 * np.abs(scores).max()


def test_map_is_that_of_filtering_the_whole_picture():
    """The published steps, computed by scipy in float64, at the sizes of the default model."""
    scores = np.random.default_rng(1).standard_normal((3, 1, 10, 10), np.float32)
    result = anomaly_map(scores, (320, 320), 4.0)
    for given, found in zip(scores[:, 0].astype(np.float64), result[:, 0], strict=True):
        centre = np.clip((np.arange(320) + 0.5) * 10 / 320 - 0.5, 0, 9)
        large = ndimage.map_coordinates(given, np.meshgrid(centre, centre, indexing="ij"), order=1)
        expected = ndimage.gaussian_filter(large, 4.0, mode="mirror", radius=16)
        np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("sigma", [0.0, 0.5, 4.0, 50.0])
def test_constant_map_stays_constant_to_the_border(sigma):
    result = anomaly_map(np.full((1, 1, 2, 2), 5.0), (32, 32), sigma)
    assert np.abs(result - 5).max() < 1e-5


def test_published_size_and_width():
    scores = np.random.default_rng(0).standard_normal((1, 1, 8, 8), np.float32)
    result = anomaly_map(scores, (256, 256))
    assert result.shape == (1, 1, 256, 256)
    assert float(result.max()) < float(scores.max())
    assert np.array_equal(result, anomaly_map(scores, (256, 256), 4.0))


def test_score_is_the_maximum_before_upsampling():
    scores = np.random.default_rng(0).standard_normal((3, 2, 4, 5), np.float32)
    naive = [[max(v for row in image for v in row) for image in epochs] for epochs in scores.tolist()]
    assert anomaly_score(scores).tolist() == naive
    peak = np.zeros((1, 1, 4, 4))
    peak[0, 0, 1, 2] = 1
    assert anomaly_score(peak).tolist() == [[1.0]]
    assert float(anomaly_map(peak, (32, 32)).max()) < 0.9
    assert anomaly_score(np.full((1, 1, 2, 2), -3.0)).tolist() == [[-3.0]]


@pytest.mark.parametrize("share", [0.0, 0.05, 0.25, 0.5, 1.0])
def test_score_is_the_mean_of_the_highest_patches(share):
    scores = np.random.default_rng(0).standard_normal((3, 2, 4, 5), np.float32)
    count = max(1, round(share * 20))
    naive = [[sum(sorted(v for row in e for v in row)[-count:]) / count for e in image] for image in scores.tolist()]
    np.testing.assert_allclose(anomaly_score(scores, share), naive, rtol=1e-6, atol=1e-7)
    assert anomaly_score(np.full((1, 1, 1, 1), 2.5), share).tolist() == [[2.5]]


def test_maps_wake_no_further_threads():
    """They would wait for more work for 20 ms, at full load, which is longer than all else that a worker does for a picture."""
    scores = np.random.default_rng(0).standard_normal((1, 1, 10, 10), np.float32)
    anomaly_map(scores, (320, 320), 4.0)  # the matrices are kept
    time.sleep(0.1)
    began = time.process_time()
    for _ in range(10):
        anomaly_map(scores, (320, 320), 4.0)
        time.sleep(0.03)
    assert time.process_time() - began < 0.1
