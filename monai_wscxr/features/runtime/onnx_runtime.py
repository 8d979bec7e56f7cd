"""Run the frozen network with ONNX Runtime, each image on one thread."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import platform
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from monai_wscxr.features.runtime.base import RuntimeUnusableError
from monai_wscxr.features.runtime.sessions import OnnxSession, import_onnxruntime

_CONVERTING = ("onnx", "onnxscript")


def check_converting() -> None:
    """Check that the packages are installed which convert a network to ONNX.

    Raises:
        RuntimeUnusableError: otherwise.
    """
    missing = [package for package in _CONVERTING if importlib.util.find_spec(package) is None]
    if missing:
        raise RuntimeUnusableError(
            f"conversion to ONNX needs packages that are not installed ({', '.join(missing)} missing): pip install "
            "'monai-wscxr[onnxruntime]'"
        )


def export_onnx(network: nn.Module, image: Tensor) -> bytes:
    """Return the ONNX file of a network that takes images of this shape.

    Raises:
        RuntimeUnusableError: when the packages that convert are not installed, or the network cannot be exported.
    """
    check_converting()
    try:
        with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
            program = torch.onnx.export(network, (image,), dynamo=True, verbose=False)
        assert program is not None
        return bytes(program.model_proto.SerializeToString())
    except MemoryError:
        raise
    except Exception as error:  # torch raises errors of many types for what it does not export
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:120]}"
        raise RuntimeUnusableError(f"the network cannot be converted to ONNX ({reason})") from error


class OnnxRuntime:
    """A converted network that ONNX Runtime executes, see `Runtime`.

    Args:
        files: the converted network, as of `convert`.
        precision: "float32" alone.
        threads: unused; each call computes on the thread of its caller.

    Raises:
        RuntimeUnusableError: when ONNX Runtime is not installed, or on another precision.
    """

    name = "onnxruntime"

    def __init__(self, files: Mapping[str, bytes], precision: str = "float32", threads: int | None = None) -> None:
        if precision != "float32":
            raise RuntimeUnusableError(
                f"the runtime onnxruntime computes in float32, not in {precision}; choose --runtime openvino or torch"
            )
        self._session = OnnxSession(files["network.onnx"])
        self.version, self.shape = self._session.version, self._session.shape

    @staticmethod
    def installed_version() -> str:
        """Return the version of ONNX Runtime, or raise `RuntimeUnusableError` when it is not installed."""
        check_converting()
        return str(import_onnxruntime().__version__)

    @staticmethod
    def machine() -> str:
        """Return what the arithmetic depends on, as far as Python knows it: the processor."""
        return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"

    @staticmethod
    def convert(network: nn.Module, image: Tensor) -> dict[str, bytes]:
        """Return the file of a network that takes images of this shape.

        Raises:
            RuntimeUnusableError: when it cannot be exported.
        """
        return {"network.onnx": export_onnx(network, image)}

    def __call__(self, image: Tensor) -> Tensor:
        """Return phi(x) [B, C, h, w] of images [B, 3 or 1, H, W]; they pass one by one."""
        if tuple(image.shape[1:]) != self.shape[1:]:
            raise ValueError(f"the converted network takes images {self.shape[1:]}, got {tuple(image.shape[1:])}")
        parts = image.float().contiguous().split(1)
        return torch.cat([torch.from_numpy(self._session(part.numpy())[0]) for part in parts])
