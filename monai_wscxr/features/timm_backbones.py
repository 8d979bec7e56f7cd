"""Backbones of timm: the stages of convolutional networks, and the blocks of vision transformers."""

from __future__ import annotations

import re
import sys
from typing import Any

import timm
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from monai_wscxr.errors import InputError
from monai_wscxr.features.backbones import IMAGENET_MEAN, IMAGENET_STD, Backbone, BackboneSpec
from monai_wscxr.features.tokens import ChannelsFirst, RotaryTokenMaps, TokenMaps
from monai_wscxr.features.weights_formats import download_explained, from_transformers, load_into, read_state

_SWIN_MODULES = ("timm.models.swin_transformer", "timm.models.swin_transformer_v2")
_TOKEN_MODULES = ("timm.models.vision_transformer", "timm.models.deit", "timm.models.eva")


def model_names() -> list[str]:
    """Return the names of timm's models."""
    return timm.list_models()


def is_model(model: str) -> bool:
    """Tell whether timm has a model."""
    return bool(timm.is_model(model))


def timm_backbone(name: str, spec: BackboneSpec, layers: tuple[str, ...] | None, weights: str) -> Backbone:
    """Build a backbone of timm; the arguments are those of `create_backbone`, with the model that the name means."""
    if timm.model_entrypoint(spec.model).__module__ in _TOKEN_MODULES:
        return _token_backbone(name, spec, layers, weights)
    return _convolutional_backbone(name, spec, layers, weights)


def _convolutional_backbone(name: str, spec: BackboneSpec, layers: tuple[str, ...] | None, weights: str) -> Backbone:
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
    if weights == "default":
        with download_explained(name):
            body = timm.create_model(model, pretrained=True, **options)
    else:
        body = timm.create_model(model, pretrained=False, **options)
    if weights not in ("default", "none"):
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


def _token_backbone(name: str, spec: BackboneSpec, layers: tuple[str, ...] | None, weights: str) -> Backbone:
    """Build a vision transformer whose tokens are maps.

    With `dynamic_img_size` timm resamples position embeddings to the size of each image, so the network is the same for
    every size and an artefact needs to know none.
    """
    options: dict[str, Any] = {"num_classes": 0, "dynamic_img_size": True}
    net: Any
    if weights == "default":
        with download_explained(name):
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
