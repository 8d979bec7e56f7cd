"""The package's own EfficientNet-Lite against timm's."""

import pytest
import timm
import torch

from monai_wscxr.errors import InputError
from monai_wscxr.features.backbones import create_backbone, weights_hash

LAYERS = [0, 1, 2, 3, 4]


@pytest.fixture(params=["0", "1", "2"])
def number(request):
    return request.param


def theirs(number, layers):
    return timm.create_model(f"tf_efficientnet_lite{number}", features_only=True, out_indices=layers).eval()


def seeded(state):
    """Return tensors like those of a state, with values that keep activations in range."""
    generator = torch.Generator().manual_seed(0)
    return {
        key: torch.rand(value.shape, generator=generator) + 0.5 if value.ndim == 1 else value
        for key, value in state.items()
    }


@pytest.mark.parametrize("layers", [[2, 3, 4], [4, 0], [1]])
def test_tensors_and_maps_equal_timms(number, layers):
    own = create_backbone(f"efficientnet_lite{number}", layers, "none")
    other = theirs(number, sorted(layers))
    assert own.body.state_dict().keys() == other.state_dict().keys()
    other.load_state_dict(seeded(other.state_dict()))
    own.body.load_state_dict(other.state_dict())
    assert weights_hash(own.body) == weights_hash(other)
    for size in (96, 101):
        image = torch.randn(2, 3, size, size + 14, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            expected = dict(zip(sorted(layers), other(image), strict=True))
            for layer, found in zip(layers, own(image), strict=True):
                assert torch.equal(found, expected[layer])


def test_normalisation_and_random_weights_are_timms(number):
    own = create_backbone(f"efficientnet_lite{number}", LAYERS, "none")
    config = timm.get_pretrained_cfg(f"tf_efficientnet_lite{number}")
    assert (own.mean, own.std) == (config.mean, config.std)
    for (key, value), other in zip(
        own.body.state_dict().items(), theirs(number, LAYERS).state_dict().values(), strict=True
    ):
        if value.ndim == 4 and value.numel() > 10_000:
            assert float(value.std()) == pytest.approx(float(other.std()), rel=0.05), key


def test_weights_of_a_file_and_files_of_other_networks(tmp_path):
    whole = timm.create_model("tf_efficientnet_lite0").state_dict()
    torch.save(whole, tmp_path / "whole.pt")
    own = create_backbone("efficientnet_lite0", ["4"], str(tmp_path / "whole.pt"))
    assert all(torch.equal(value, whole[key]) for key, value in own.body.state_dict().items())
    torch.save(timm.create_model("tf_efficientnet_lite2").state_dict(), tmp_path / "other.pt")
    with pytest.raises(InputError, match="efficientnet_lite0"):
        create_backbone("efficientnet_lite0", ["4"], str(tmp_path / "other.pt"))


def test_scripted_network_gives_the_same():
    own = create_backbone("efficientnet_lite0", [3, 2], "none")
    image = torch.rand(1, 3, 70, 64)
    for found, expected in zip(torch.jit.script(own)(image), own(image), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
