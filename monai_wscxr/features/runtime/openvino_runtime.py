"""Run the frozen network with OpenVINO, each image on one thread."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from monai_wscxr.features.runtime.base import RuntimeUnusableError
from monai_wscxr.features.runtime.sessions import OpenVINOSession, import_openvino


class OpenVINORuntime:
    """A converted network that OpenVINO executes, see `Runtime`.

    Args:
        files: the converted network, as of `convert`.
        precision: "float32", or "bfloat16" where the processor has it.
        threads: streams, at least 1; None takes torch's number of threads.

    Raises:
        RuntimeUnusableError: when OpenVINO is not installed, or the processor lacks the precision.
    """

    name = "openvino"

    def __init__(self, files: Mapping[str, bytes], precision: str = "float32", threads: int | None = None) -> None:
        streams = torch.get_num_threads() if threads is None else threads
        self._session = OpenVINOSession((files["network.xml"], files["network.bin"]), precision, streams)
        self.version, self.shape = self._session.version, self._session.shape

    @staticmethod
    def installed_version() -> str:
        """Return the version of OpenVINO, or raise `RuntimeUnusableError` when it is not installed."""
        return str(import_openvino().get_version()).partition("-")[0]

    @staticmethod
    def machine() -> str:
        """Return what the arithmetic depends on: the build, the processor and its instructions."""
        openvino = import_openvino()
        core = openvino.Core()
        names = [core.get_property("CPU", "FULL_DEVICE_NAME"), *core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")]
        return " ".join([openvino.get_version(), *names])

    @staticmethod
    def convert(network: nn.Module, image: Tensor) -> dict[str, bytes]:
        """Return the files of a network that takes images of this shape.

        Raises:
            RuntimeUnusableError: when OpenVINO does not know one of its operations.
        """
        openvino = import_openvino()
        from openvino.frontend import FrontEndManager
        from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder
        from openvino.frontend.pytorch.torchdynamo.export_decompositions import ops_to_not_decompose
        from torch.export.decomp_utils import CustomDecompTable

        table = CustomDecompTable()
        for operation in ops_to_not_decompose():
            if operation in table:
                table.pop(operation)
        try:
            with torch.no_grad():
                exported = torch.export.export(network, (image,), strict=False).run_decompositions(table)
            decoder = TorchFXPythonDecoder(exported.module(), dynamic_shapes=False)  # must outlive the conversion
            frontend = FrontEndManager().load_by_framework("pytorch")
            model = frontend.convert(frontend.load(decoder))
            model.reshape(list(image.shape))
        except MemoryError:
            raise
        except Exception as error:  # torch and OpenVINO raise errors of many types for what they do not support
            raise RuntimeUnusableError(f"the runtime openvino does not take the network ({_reason(error)})") from error
        with tempfile.TemporaryDirectory() as folder:
            xml, weights = Path(folder, "network.xml"), Path(folder, "network.bin")
            openvino.serialize(model, str(xml), str(weights))
            return {"network.bin": weights.read_bytes(), "network.xml": xml.read_bytes()}

    def __call__(self, image: Tensor) -> Tensor:
        """Return phi(x) [B, C, h, w] of images [B, 3 or 1, H, W]; they pass one by one."""
        if tuple(image.shape[1:]) != self.shape[1:]:
            raise ValueError(f"the converted network takes images {self.shape[1:]}, got {tuple(image.shape[1:])}")
        parts = image.float().contiguous().split(1)
        return torch.cat([torch.from_numpy(self._session(part.numpy())[0]) for part in parts])


def _reason(error: Exception) -> str:
    """Return the last informative line of an error of torch or OpenVINO, shortened."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:160]
