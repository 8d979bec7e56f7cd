"""What the libraries that execute the frozen network have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from monai_wscxr.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

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
