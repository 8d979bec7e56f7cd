"""A network prepared for torch gives the results of the original one."""

import shutil

import pytest
import torch
from torch import nn

from monai_wscxr.errors import InputError
from monai_wscxr.features.runtime.torch_runtime import TorchRuntime, fold_normalisations


def trained_norms(network, seed=0):
    """Fill normalisations with values as after a training; folding fresh ones would change nothing."""
    g = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=g))
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=g))
            module.weight.data.copy_(torch.randn(module.num_features, generator=g))
            module.bias.data.copy_(torch.randn(module.num_features, generator=g))
    return network.eval().requires_grad_(False)


class Twice(nn.Module):
    """The output of a convolution has two uses, one of them a normalisation."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, image):
        x = self.conv(image)
        return x + self.norm(x)


class Shared(nn.Module):
    """One convolution is followed by two normalisations."""

    def __init__(self):
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, image):
        return self.second(self.conv(self.first(self.conv(image))))


def relative(got, expected):
    return float((got.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 4])
def test_folded_network_is_the_network(bias, groups):
    network = trained_norms(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=bias),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 8, 3, groups=groups, bias=bias),
            nn.BatchNorm2d(8),
        )
    )
    before = {key: value.clone() for key, value in network.state_dict().items()}
    folded, count = fold_normalisations(network)
    assert count == 2  # not the one that follows an activation
    image = torch.randn(2, 3, 40, 50)
    assert relative(folded(image), network.double()(image.double())) < 1e-6
    assert sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules()) == 1
    network.float()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("network", [Twice, Shared])
def test_where_folding_would_change_the_result_nothing_is_folded(network):
    network = trained_norms(network())
    folded, count = fold_normalisations(network)
    assert count == 0
    image = torch.randn(2, 3, 40, 50)
    assert torch.equal(folded(image), network(image))


def test_features_of_a_backbone_stay_the_same(make_features):
    features = make_features()
    trained_norms(features)
    runtime = TorchRuntime(features)
    assert runtime.folded > 0
    image = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert relative(runtime(image), features(image)) < 1e-5


def test_bfloat16_is_near_and_comes_back_as_float32(make_features):
    features = make_features()
    image = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        got, expected = TorchRuntime(features, "bfloat16")(image), features(image)
    assert got.dtype == torch.float32
    assert 1e-5 < relative(got, expected) < 0.1
    assert next(features.parameters()).dtype == torch.float32


def test_compiling_without_a_compiler_is_refused(make_features, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(InputError, match=r"needs a C\+\+ compiler at run time .* leave compile_network off"):
        TorchRuntime(make_features(), compiled=True)
