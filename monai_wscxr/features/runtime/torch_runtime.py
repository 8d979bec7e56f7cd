"""Run the frozen network with torch: batch normalisations folded, in the wanted precision, compiled if wanted."""

from __future__ import annotations

import copy
import logging
import shutil

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from monai_wscxr.errors import InputError
from monai_wscxr.features.backbones import Backbone
from monai_wscxr.features.parallel import one_thread
from monai_wscxr.features.patches import PatchFeatures

logger = logging.getLogger(__name__)

_FOLDED_ERROR = 1e-4  # relative; folding is exact up to rounding, so a larger difference means that it does not apply


class JoinedLayers(nn.Module):
    """The part of the patch features that a runtime executes: the backbone, and its layers joined to phi(x) (before Eq. 1).

    Args:
        features: patch features.
    """

    def __init__(self, features: PatchFeatures) -> None:
        super().__init__()
        self.features = features

    def forward(self, image: Tensor) -> Tensor:
        """Return phi(x) [B, C, h, w] of images [B, 3 or 1, H, W]."""
        return self.features.align(self.features.backbone(image))


class TorchRuntime(nn.Module):
    """A copy of a network that torch executes, see `Runtime`.

    Batch normalisations that directly follow a convolution are folded into it, which saves a pass over memory for each.

    Args:
        network: images [B, 3, H, W] float32 to a tensor; in evaluation mode.
        precision: type of the weights and the arithmetic, "float32" or "bfloat16"; results are float32 either way.
        compiled: compile with torch.compile. That takes a minute or more, and on a CPU it needs a C++ compiler.

    Attributes:
        network: the copy.
        folded: number of batch normalisations that were folded.

    Raises:
        InputError: when there is no C++ compiler.
    """

    name = "torch"
    version = str(torch.__version__)

    def __init__(self, network: nn.Module, precision: str = "float32", compiled: bool = False) -> None:
        super().__init__()
        device = next(network.parameters()).device
        if compiled and device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
            raise InputError(
                "compiling the network for a CPU needs a C++ compiler at run time and there is none: install one "
                "(Debian: apt install g++) or leave compile_network off"
            )
        with one_thread():
            network, self.folded = fold_normalisations(network)
        self.dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        network = network.to(self.dtype)
        self.network = network
        self._run = torch.compile(network) if compiled else network

    def forward(self, image: Tensor) -> Tensor:
        """Return the network's result, float32."""
        if image.device.type == "cpu":
            image = image.contiguous(memory_format=torch.channels_last)
        return self._run(image.to(self.dtype)).float()


def fold_normalisations(network: nn.Module) -> tuple[nn.Module, int]:
    """Copy a network and fold its batch normalisations into the convolutions before them.

    A normalisation is folded when its input is the very tensor that a convolution returned; a pass over a random image
    shows which ones. If the result then differs by more than rounding, because the output of a convolution has another use,
    nothing is folded.

    Args:
        network: images [B, 3, H, W] to a tensor.

    Returns:
        The copy, in evaluation mode, and the number of normalisations folded.
    """
    plain = copy.deepcopy(network).eval()
    folded = copy.deepcopy(plain)
    parameter = next(folded.parameters(), None)
    if parameter is None or parameter.dtype != torch.float32:
        return plain, 0
    backbone = next((module for module in folded.modules() if isinstance(module, Backbone)), None)
    shape = (1, 3, 96, 96) if backbone is None else backbone.example_shape()
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(parameter.device)
    pairs = _convolution_pairs(folded, image)
    names = {module: name for name, module in folded.named_modules()}
    for convolution, norm in pairs:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        weight, bias = fuse_conv_bn_weights(
            convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        convolution.weight, convolution.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)
        parent, _, leaf = names[norm].rpartition(".")
        # timm's normalisation modules include the activation that follows
        setattr(folded.get_submodule(parent), leaf, getattr(norm, "act", nn.Identity()))
    with torch.inference_mode():
        expected, got = plain(image), folded(image)
    error = float((got - expected).norm() / expected.norm().clamp(min=torch.finfo(torch.float32).tiny))
    if not error <= _FOLDED_ERROR:
        logger.info("normalisations are not folded: the result would differ by %.1e", error)
        return plain, 0
    return folded, len(pairs)


def _convolution_pairs(network: nn.Module, image: Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Return each convolution with the normalisation that takes its output, where both are called once."""
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # keeps the tensors, so that none of their ids is used again
    pairs: dict[nn.Conv2d, nn.BatchNorm2d] = {}
    calls: dict[nn.Module, int] = {}

    def note(module: nn.Module, _: object, result: Tensor) -> None:
        calls[module] = calls.get(module, 0) + 1
        made[id(result)] = (module, result)  # type: ignore[assignment]

    def pair(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls[module] = calls.get(module, 0) + 1
        if id(inputs[0]) in made:
            pairs[made[id(inputs[0])][0]] = module  # type: ignore[assignment]

    hooks = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(note))
        elif isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            hooks.append(module.register_forward_pre_hook(pair))
    with torch.inference_mode():
        network(image)
    for hook in hooks:
        hook.remove()
    return [(c, n) for c, n in pairs.items() if calls[c] == calls[n] == 1]
