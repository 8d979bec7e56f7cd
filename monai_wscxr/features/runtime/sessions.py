"""Networks in files, executed by OpenVINO or ONNX Runtime on arrays, each image on one thread. Nothing here needs torch."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from monai_wscxr.features.runtime.base import RuntimeUnusableError

_TELEMETRY = "openvino_telemetry"
# The first inference of a process builds OpenVINO's table of types, which takes and releases Python's lock. Two threads that do
# so at once may wait for each other forever, so every session makes one inference before threads get it.
_first_inference = threading.Lock()
_HINTS = {"float32": "f32", "bfloat16": "bf16"}


class Session(Protocol):
    """A network in files that a library executes.

    Attributes:
        name: one of `RUNTIMES`.
        version: version of the library.
        shape: of an image, [1, channels, S, S].
    """

    name: str
    version: str
    shape: tuple[int, ...]

    def __call__(self, image: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Return all outputs for one image [1, channels, S, S]; threads may call it at a time."""


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
            "the runtime openvino is not installed: pip install 'monai-wscxr[openvino]', or choose another with --runtime"
        ) from error
    finally:
        if blocked:
            del sys.modules[_TELEMETRY]
    return openvino


def import_onnxruntime() -> Any:
    """Import ONNX Runtime with its telemetry switched off.

    Raises:
        RuntimeUnusableError: when it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeUnusableError(
            "the runtime onnxruntime is not installed: pip install 'monai-wscxr[runtime]', or choose another with --runtime"
        ) from error
    if hasattr(onnxruntime, "disable_telemetry_events"):
        onnxruntime.disable_telemetry_events()
    return onnxruntime


class OnnxSession:
    """A network that ONNX Runtime executes, see `Session`; each call computes on the thread of its caller.

    Args:
        network: ONNX file.

    Raises:
        RuntimeUnusableError: when ONNX Runtime is not installed.
    """

    name = "onnxruntime"

    def __init__(self, network: bytes) -> None:
        onnxruntime = import_onnxruntime()
        self.version = str(onnxruntime.__version__)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
        [self._input] = self._session.get_inputs()
        self.shape = tuple(self._input.shape)

    def __call__(self, image: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Return all outputs for one image [1, channels, S, S]."""
        found: list[NDArray[np.float32]] = self._session.run(None, {self._input.name: image})
        return found


class OpenVINOSession:
    """A network that OpenVINO executes, see `Session`.

    There are as many streams of one thread as given, not bound to cores: several processes on a machine would be bound to the
    same ones. Buffers are kept for as many images as were in flight at a time.

    Args:
        files: an ONNX file, or the two files of OpenVINO's format: XML and weights.
        precision: "float32", or "bfloat16" where the processor has it.
        streams: at least 1.

    Raises:
        RuntimeUnusableError: when OpenVINO is not installed, or the processor lacks the precision.
    """

    name = "openvino"

    def __init__(self, files: Sequence[bytes], precision: str = "float32", streams: int = 1) -> None:
        openvino = import_openvino()
        self.version = str(openvino.get_version()).partition("-")[0]
        core = openvino.Core()
        if precision == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise RuntimeUnusableError(
                "this processor has no bfloat16 instructions that the runtime openvino uses; choose --precision float32"
            )
        model = core.read_model(*files)
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
            self(np.zeros((1, *self.shape[1:]), np.float32))

    def __call__(self, image: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Return all outputs for one image [1, channels, S, S]."""
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        try:
            found = request.infer([image], share_inputs=True, share_outputs=True)
            return [np.array(found[n]) for n in range(len(found))]  # copies: the next image overwrites the buffers
        finally:
            self._idle.append(request)
