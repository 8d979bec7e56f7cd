"""Eq. 1 to 3 against plain loops in float64."""

import math

import pytest
import torch
from torch import nn

from monai_wscxr.errors import InputError
from monai_wscxr.features.patches import PatchFeatures, to_rows


class Maps(nn.Module):
    """Stands in for a backbone and returns given maps."""

    def __init__(self, *maps):
        super().__init__()
        self.maps = list(maps)
        self.channels = [m.shape[1] for m in maps]

    def forward(self, image):
        return self.maps


def naive_aggregate(phi, p):
    """Eq. 1 and 2: mean over the p x p neighbourhood, zeros beyond the border."""
    b, c, h, w = phi.shape
    values = phi.double().tolist()
    out = torch.zeros(b, c, h, w, dtype=torch.float64)
    reach = p // 2
    for i in range(b):
        for j in range(c):
            for y in range(h):
                for x in range(w):
                    terms = [
                        values[i][j][y + dy][x + dx]
                        for dy in range(-reach, reach + 1)
                        for dx in range(-reach, reach + 1)
                        if 0 <= y + dy < h and 0 <= x + dx < w
                    ]
                    out[i, j, y, x] = math.fsum(terms) / p**2
    return out


def naive_bilinear(m, height, width):
    """Bilinear upsampling with half-pixel centres; beyond the outermost centres the border value holds."""
    b, c, h, w = m.shape
    values = m.double()
    out = torch.zeros(b, c, height, width, dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            v = min(max((y + 0.5) * h / height - 0.5, 0), h - 1)
            u = min(max((x + 0.5) * w / width - 0.5, 0), w - 1)
            y0, x0 = int(v), int(u)
            y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
            top = values[:, :, y0, x0] * (1 - u + x0) + values[:, :, y0, x1] * (u - x0)
            bottom = values[:, :, y1, x0] * (1 - u + x0) + values[:, :, y1, x1] * (u - x0)
            out[:, :, y, x] = top * (1 - v + y0) + bottom * (v - y0)
    return out


def naive_area(m, height, width):
    """Adaptive average pooling: cell i is the mean of rows floor(i H/h) to ceil((i+1) H/h), the same for columns."""
    h, w = m.shape[2:]
    out = torch.zeros(*m.shape[:2], height, width, dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            rows = slice(y * h // height, -(-(y + 1) * h // height))
            columns = slice(x * w // width, -(-(x + 1) * w // width))
            out[:, :, y, x] = m[:, :, rows, columns].double().mean(dim=(2, 3))
    return out


def naive_channels(m, k):
    """Adaptive average pooling over channels: bin i is the mean of channels floor(i C/k) to ceil((i+1) C/k)."""
    c = m.shape[1]
    bins = [m[:, i * c // k : -(-(i + 1) * c // k)].double().mean(1) for i in range(k)]
    return torch.stack(bins, dim=1)


def samples():
    g = torch.Generator().manual_seed(0)
    normal = torch.randn(2, 3, 6, 9, generator=g)
    return {
        "random": normal,
        "tied": torch.randint(0, 2, (2, 3, 6, 9), generator=g).float(),
        "constant": torch.full((1, 2, 5, 5), 3.7),
        "huge": 1e30 * normal,
        "tiny": 1e-30 * normal,
        "border": torch.zeros(1, 1, 4, 4).index_put((torch.tensor(0),) * 4, torch.tensor(1.0)),
        "smaller than the window": torch.randn(1, 2, 2, 3, generator=g),
        "one patch": torch.randn(2, 4, 1, 1, generator=g),
    }


def close(result, expected, relative=1e-5):
    assert result.shape == expected.shape
    scale = float(expected.abs().max())
    assert float((result.double() - expected).abs().max()) <= relative * scale
    return True


@pytest.mark.parametrize("p", [1, 3, 5, 7])
@pytest.mark.parametrize("name", samples())
def test_aggregation_is_the_mean_with_zeros_beyond_the_border(name, p):
    phi = samples()[name]
    result = PatchFeatures(Maps(phi), neighbourhood=p)(torch.zeros(1))
    assert close(result, naive_aggregate(phi, p))


def test_border_of_a_constant_map_fades_as_published():
    phi = torch.ones(1, 1, 8, 8)
    result = PatchFeatures(Maps(phi), neighbourhood=5)(torch.zeros(1))
    assert float(result[0, 0, 0, 0]) == pytest.approx(9 / 25)
    assert float(result[0, 0, 0, 4]) == pytest.approx(15 / 25)
    assert float(result[0, 0, 4, 4]) == pytest.approx(1)


@pytest.mark.parametrize("finest", [0, 1, 2])
@pytest.mark.parametrize("scale", [1.0, 1e30, 1e-30])
def test_layers_are_upsampled_to_the_finest_map_and_concatenated_in_order(finest, scale):
    g = torch.Generator().manual_seed(finest)
    sizes = [(2, 3), (4, 5)]
    sizes.insert(finest, (7, 9))
    maps = [scale * torch.randn(2, 2 + i, *size, generator=g) for i, size in enumerate(sizes)]
    features = PatchFeatures(Maps(*maps), neighbourhood=1)
    expected = torch.cat([naive_bilinear(m, 7, 9) for m in maps], dim=1)
    assert features.channels == 2 + 3 + 4
    assert close(features(torch.zeros(1)), expected)


@pytest.mark.parametrize("coarsest", [0, 1, 2])
@pytest.mark.parametrize("scale", [1.0, 1e30, 1e-30])
def test_layers_are_averaged_down_to_the_coarsest_map_where_asked(coarsest, scale):
    g = torch.Generator().manual_seed(coarsest)
    sizes = [(7, 9), (4, 6)]
    sizes.insert(coarsest, (2, 3))
    maps = [scale * torch.randn(2, 2 + i, *size, generator=g) for i, size in enumerate(sizes)]
    features = PatchFeatures(Maps(*maps), neighbourhood=3, align_to="coarsest")
    phi = torch.cat([naive_area(m, 2, 3) for m in maps], dim=1)
    assert close(features(torch.zeros(1)), naive_aggregate(phi, 3))


@pytest.mark.parametrize("align_to", ["", "Finest", "coarse", None])
def test_other_resolutions_are_refused(align_to):
    with pytest.raises(InputError, match="align_to must be 'finest'"):
        PatchFeatures(Maps(torch.zeros(1, 1, 2, 2)), align_to=align_to)


@pytest.mark.parametrize("k", [1, 3, 5, 8])
def test_aligned_channels_are_adaptive_means_over_channels(k):
    g = torch.Generator().manual_seed(k)
    maps = [torch.randn(2, 5, 4, 6, generator=g), torch.randn(2, 7, 2, 3, generator=g)]
    features = PatchFeatures(Maps(*maps), neighbourhood=3, aligned_channels=k)
    phi = torch.cat([naive_channels(naive_bilinear(m, 4, 6), k) for m in maps], dim=1)
    assert features.channels == 2 * k
    assert close(features(torch.zeros(1)), naive_aggregate(phi, 3))


def test_rows_run_over_image_then_y_then_x():
    features = torch.randn(2, 5, 3, 4)
    rows = to_rows(features)
    assert rows.shape == (2 * 3 * 4, 5)
    for b in range(2):
        for y in range(3):
            for x in range(4):
                assert torch.equal(rows[(b * 3 + y) * 4 + x], features[b, :, y, x])


def test_grid_is_the_size_of_the_patch_map(make_features):
    for layers, image_size in ((("3",), 64), (("2", "3"), 100)):
        features = make_features(layers)
        assert features.grid(image_size) == features(torch.zeros(1, 3, image_size, image_size)).shape[2:]
    assert make_features(("3",)).grid(64) == (4, 4)


@pytest.mark.parametrize("p", [0, -1, -3, 2, 4])
def test_even_or_non_positive_neighbourhood_is_refused(p):
    with pytest.raises(InputError, match=f"odd and at least 1.*got {p}"):
        PatchFeatures(Maps(torch.zeros(1, 1, 2, 2)), neighbourhood=p)


@pytest.mark.parametrize("channels", [0, -4])
def test_aligned_channels_below_one_are_refused(channels):
    with pytest.raises(InputError, match="aligned_channels must be at least 1"):
        PatchFeatures(Maps(torch.zeros(1, 1, 2, 2)), aligned_channels=channels)
