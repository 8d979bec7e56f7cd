"""Overlays: one colour scale for all images, opacity, outlines, and encoded pictures."""

import numpy as np
import pytest

from monai_wscxr.model.calibration import ColourScale
from monai_wscxr.report.overlay import (
    colour_bar_symbol,
    colour_map,
    grey_levels,
    heatmap,
    outline,
    overlay,
    shrink,
)

SCALE = ColourScale(1.0, 3.0)


def luminance(rgb):
    linear = (np.asarray(rgb, dtype=float) / 255) ** 2.2
    return linear @ (0.2126, 0.7152, 0.0722)


def test_equal_values_have_equal_colours_in_different_images():
    image = np.full((2, 3), 0.4)
    quiet = np.array([[0.0, 1.5, 0.0], [0.0, 0.0, 0.0]])
    loud = np.array([[9.0, 1.5, 9.0], [9.0, 9.0, -5.0]])
    assert np.array_equal(overlay(image, quiet, SCALE)[0, 1], overlay(image, loud, SCALE)[0, 1])
    assert np.array_equal(heatmap(quiet, SCALE)[0, 1], heatmap(loud, SCALE)[0, 1])


def test_map_at_or_below_low_leaves_the_radiograph():
    image = np.linspace(0, 1, 256).reshape(16, 16)
    anomaly_map = np.linspace(-4, SCALE.low, 256).reshape(16, 16)
    expected = np.repeat(grey_levels(image)[..., None], 3, axis=2)
    assert np.array_equal(overlay(image, anomaly_map, SCALE), expected)


def test_opacity_grows_from_zero_to_alpha():
    values = np.linspace(SCALE.low - 1, SCALE.high + 1, 101)[None]
    black, white = (overlay(np.full((1, 101), level), values, SCALE, alpha=0.6).astype(float) for level in (0.0, 1.0))
    seen = 1 - (white - black).mean(axis=2)[0] / 255  # opacity of the overlay
    assert (np.diff(seen) >= -0.005).all()
    assert seen[0] == 0
    assert seen[50] == pytest.approx(0.3, abs=0.01)
    assert seen[-1] == pytest.approx(0.6, abs=0.01)
    assert np.array_equal(overlay(np.full((1, 101), 0.3), values, SCALE, alpha=0)[0, 0], np.full(3, round(0.3 * 255)))


def test_colours_grow_lighter_along_the_scale():
    colours = colour_map(np.linspace(0, 1, 65))
    assert colours.shape == (65, 3)
    assert colours.dtype == np.uint8
    assert (np.diff(luminance(colours)) > 0).all()


def test_colour_map_keeps_leading_shape_and_rejects_other_ranges():
    assert colour_map(np.zeros((2, 5, 4))).shape == (2, 5, 4, 3)
    for bad in (1.2, -0.1, np.nan):
        with pytest.raises(ValueError, match="colour_map"):
            colour_map(np.array([0.5, bad]))


@pytest.mark.parametrize(
    ("image", "anomaly_map", "alpha", "words"),
    [
        (np.zeros((4, 4)), np.zeros((4, 5)), 0.5, "same shape"),
        (np.zeros(4), np.zeros(4), 0.5, r"\[H, W\]"),
        (np.zeros((2, 2)), np.full((2, 2), np.nan), 0.5, "anomaly map must be finite"),
        (np.zeros((2, 2)), np.full((2, 2), np.inf), 0.5, "anomaly map must be finite"),
        (np.full((2, 2), np.nan), np.zeros((2, 2)), 0.5, "image must be finite"),
        (np.full((2, 2), 255.0), np.zeros((2, 2)), 0.5, r"image must lie in \[0, 1\]"),
        (np.zeros((2, 2)), np.zeros((2, 2)), 1.5, "alpha"),
    ],
)
def test_overlay_rejects(image, anomaly_map, alpha, words):
    with pytest.raises(ValueError, match=words):
        overlay(image, anomaly_map, SCALE, alpha)


def test_heatmap_rejects_nan():
    with pytest.raises(ValueError, match="finite"):
        heatmap(np.array([[np.nan]]), SCALE)


def test_outline_runs_outside_the_mask():
    mask = np.zeros((20, 20), dtype=bool)
    mask[8:12, 8:12] = True
    drawn = outline(np.full((20, 20), 0.5), mask)
    grey = np.full(3, 128)
    assert (drawn[mask] == grey).all()
    assert (drawn[7, 7:13] == drawn[7, 7]).all()
    assert not (drawn[7, 7] == grey).all()
    assert (drawn[:5] == grey).all()
    with pytest.raises(ValueError, match="same height and width"):
        outline(np.zeros((3, 3)), np.zeros((3, 4), dtype=bool))


def test_shrink_keeps_proportions_and_never_enlarges():
    assert shrink(np.ones((640, 320)), 320).shape == (320, 160)
    assert shrink(np.ones((1000, 1)), 100).shape == (100, 1)
    small = np.ones((10, 20))
    assert shrink(small, 20) is small
    assert np.allclose(shrink(np.arange(16.0).reshape(4, 4), 2), [[2.5, 4.5], [10.5, 12.5]])


@pytest.mark.parametrize(
    ("threshold", "words"), [(1.5, "line 1.5<"), (9.0, "9 (above the scale)"), (0.0, "0 (below the scale)")]
)
def test_colour_bar_marks_the_threshold(threshold, words):
    assert words in colour_bar_symbol(ColourScale(1.0, 3.0, threshold))
    assert ">line" not in colour_bar_symbol(ColourScale(1.0, 3.0))
