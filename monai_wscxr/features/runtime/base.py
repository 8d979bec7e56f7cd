"""What the libraries that execute the frozen network have in common."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from monai_wscxr.errors import InputError
from monai_wscxr.features.patches import PatchFeatures

RUNTIMES = ("auto", "torch", "openvino", "onnxruntime")
PRECISIONS = ("float32", "bfloat16")


class RuntimeUnusableError(InputError):
    """A runtime is not installed, does not take the network, or computes something else than torch."""


class Runtime(Protocol):
    """The frozen network, executed by a library.

    Attributes:
        name: one of `RUNTIMES` but "auto".
        version: version of the library.
    """

    name: str
    version: str

    def __call__(self, image: Tensor) -> Tensor:
        """Return the joined layers phi(x) [B, C, h, w], float32, of images [B, 3 or 1, H, W]; threads may call it at a time."""


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
