"""Run the frozen network with OpenVINO, each image on one thread."""

from __future__ import annotations

import sys
import tempfile
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from monai_wscxr.features.runtime.base import RuntimeUnusableError

_TELEMETRY = "openvino_telemetry"
# The first inference of a process builds OpenVINO's table of types, which takes and releases Python's lock. Two threads that do
# so at once may wait for each other forever, so every runtime makes one inference before threads get it.
_first_inference = threading.Lock()
_HINTS = {"float32": "f32", "bfloat16": "bf16"}


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry.

    The import alone would report the installation to Google Analytics and create ~/intel; a missing telemetry package is an
    intended case of OpenVINO's.

    Raises:
        RuntimeUnusableError: when it is not installed.
    """
    blocked = "openvino" not in sys.modules and _TELEMETRY not in sys.modules
    if blocked:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # what Python itself writes for "not there"
    try:
        import openvino
    except ImportError as error:
        raise RuntimeUnusableError(
            "the runtime openvino is not installed: pip install 'monai-wscxr[openvino]', or choose --runtime auto or torch"
        ) from error
    finally:
        if blocked:
            del sys.modules[_TELEMETRY]
    return openvino


class OpenVINORuntime:
    """A converted network that OpenVINO executes, see `Runtime`.

    There are as many streams of one thread as torch has threads, and threads are not bound to cores: several processes on a
    machine would be bound to the same ones. Buffers are kept for as many images as were in flight at a time.

    Args:
        files: the converted network, as of `convert`.
        precision: "float32", or "bfloat16" where the processor has it.
        threads: streams, at least 1; None takes torch's number of threads.

    Raises:
        RuntimeUnusableError: when OpenVINO is not installed, or the processor lacks the precision.
    """

    name = "openvino"

    def __init__(self, files: Mapping[str, bytes], precision: str = "float32", threads: int | None = None) -> None:
        openvino = import_openvino()
        self.version = self.installed_version()
        streams = torch.get_num_threads() if threads is None else threads
        core = openvino.Core()
        if precision == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise RuntimeUnusableError(
                "this processor has no bfloat16 instructions that the runtime openvino uses; choose --precision float32"
            )
        model = core.read_model(files["network.xml"], files["network.bin"])
        self.shape = tuple(model.input(0).shape)
        self._compiled = core.compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": _HINTS[precision],
                "NUM_STREAMS": streams,
                "INFERENCE_NUM_THREADS": streams,
                "ENABLE_CPU_PINNING": False,
            },
        )
        self._idle: deque[Any] = deque()  # requests, which hold the buffers; append and pop are atomic
        with _first_inference:
            self._one(torch.zeros(1, *self.shape[1:]))

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
        return torch.cat([self._one(part) for part in image.float().contiguous().split(1)])

    def _one(self, image: Tensor) -> Tensor:
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        try:
            found = request.infer([image.numpy()], share_inputs=True, share_outputs=True)[0]
            return torch.from_numpy(np.array(found))  # a copy, because the next image overwrites the buffer
        finally:
            self._idle.append(request)


def _reason(error: Exception) -> str:
    """Return the last informative line of an error of torch or OpenVINO, shortened."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:160]
