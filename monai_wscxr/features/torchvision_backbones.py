"""Backbones of torchvision: classification networks cut at the nodes of their graph."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torchvision
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from monai_wscxr.errors import InputError
from monai_wscxr.features.backbones import IMAGENET_MEAN, IMAGENET_STD, Backbone, BackboneSpec
from monai_wscxr.features.weights_formats import download_explained, load_into, read_state


def model_names() -> list[str]:
    """Return the names of torchvision's classification models."""
    return torchvision.models.list_models(module=torchvision.models)


def torchvision_backbone(name: str, spec: BackboneSpec, layers: tuple[str, ...] | None, weights: str) -> Backbone:
    """Build a backbone of torchvision; the arguments are those of `create_backbone`, with the model that the name means."""
    mean, std = spec.normalisation or (IMAGENET_MEAN, IMAGENET_STD)
    if weights == "default":
        with download_explained(name):
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


class _NodeBody(nn.Module):
    """A torchvision extractor whose dictionary of maps becomes a list in the order of the layers."""

    def __init__(self, extractor: nn.Module, nodes: Sequence[str]) -> None:
        super().__init__()
        self.extractor = extractor
        self.nodes = list(nodes)

    def forward(self, image: Tensor) -> list[Tensor]:
        maps: dict[str, Tensor] = self.extractor(image)
        return [maps[node] for node in self.nodes]
