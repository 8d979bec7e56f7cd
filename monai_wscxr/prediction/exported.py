"""Exported models: a folder that predicts without torch and MONAI.

It holds `network.onnx`, from images to patch scores and image features; `artefact.json`, the description of the model as the
training wrote it; and `export.json` with the SHA-256 of both. Nothing in it is a pickle. `export` writes such folders.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_wscxr.errors import InputError
from monai_wscxr.features.runtime.base import RuntimeUnusableError
from monai_wscxr.features.runtime.sessions import OnnxSession, OpenVINOSession, Session
from monai_wscxr.model.artefact_schema import OtherFormatError, parse_artefact
from monai_wscxr.model.description import ARTEFACT, ARTEFACT_FORMAT, EXPORT, EXPORTED_NETWORK, ModelDescription
from monai_wscxr.system.regular_files import read_regular
from monai_wscxr.system.strict_json import integer, number, parse_json, record, text
from monai_wscxr.system.threads import usable_cores

EXPORT_FORMAT = 1
RUNTIMES = ("onnxruntime", "openvino")
"""Libraries that execute exported models, in the order in which "auto" tries them (docs/runtimes.md says why)."""
_LARGEST_FILE = 2 << 30  # bytes; no ONNX file is larger
_LARGEST_LIST = 1 << 20
_AGAIN = "copy the folder again, or export the model again"

_DIGEST = text(64, "[0-9a-f]{64}", "a SHA-256 digest of 64 hexadecimal digits")
_EXPORT = record(
    {
        "format": integer(1, 1 << 16),
        "code_version": text(64),
        "files": record({ARTEFACT: _DIGEST, EXPORTED_NETWORK: _DIGEST}),
        "image": record({"channels": integer(1, 3), "size": integer(32, 4096)}),
        "grid": record({"rows": integer(1, 4096), "columns": integer(1, 4096)}),
        "channels": integer(1, 1 << 16),
        "difference": number(0, 1),
    }
)


class ExportedNetwork:
    """An exported model, see `Network`; images pass one by one, on as many threads as there are cores.

    Args:
        folder: the exported model.
        device: "cpu", or None for the same.
        runtime: "auto", "onnxruntime" or "openvino".

    Raises:
        InputError: when a file is missing, damaged or of another version, or no runtime is installed.
    """

    device = "cpu"

    def __init__(self, folder: str | Path, device: str | None = None, runtime: str = "auto") -> None:
        check_options(device, runtime)
        self.model, self._about, network = read_exported(Path(folder))
        self._threads = usable_cores()
        self._session = _open(Path(folder) / EXPORTED_NETWORK, network, runtime, self._threads)
        image = self._about["image"]
        wanted = (1, image["channels"], image["size"], image["size"])
        if self._session.shape != wanted:
            raise InputError(
                f"{folder} is damaged: its network takes images {self._session.shape}, not {wanted}; {_AGAIN}"
            )

    def __call__(self, images: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return patch scores [B, 1, h, w] and image features [B, C] of images [B, 3 or 1, S, S]."""
        parts = [images[n : n + 1] for n in range(len(images))]
        if len(parts) == 1:
            found = [self._session(parts[0])]
        else:
            with ThreadPoolExecutor(self._threads) as pool:
                found = list(pool.map(self._session, parts))
        scores, features = (np.concatenate(outputs) for outputs in zip(*found, strict=True))
        grid = self._about["grid"]
        if scores.shape[1:] != (1, grid["rows"], grid["columns"]) or features.shape[1:] != (self._about["channels"],):
            raise InputError(
                f"{self.model.folder} is damaged: its network has other results than {EXPORT} says; {_AGAIN}"
            )
        return scores, features

    def record(self) -> dict[str, Any]:
        """Return what executes the network."""
        found = {"name": self._session.name, "version": self._session.version, "precision": "float32"}
        return {**found, "difference": self._about["difference"]}


def check_options(device: str | None, runtime: str) -> None:
    """Check device and runtime for an exported model.

    Raises:
        InputError: when it cannot use one of them.
    """
    if device not in (None, "cpu"):
        raise InputError(f"exported models run on a CPU: --device {device} needs the output folder of the training")
    if runtime not in ("auto", *RUNTIMES):
        raise InputError(
            f"exported models run with {' or '.join(RUNTIMES)}: --runtime {runtime} needs the output folder of the training"
        )


def read_exported(folder: Path) -> tuple[ModelDescription, dict[str, Any], bytes]:
    """Read an exported model and check every file.

    Returns:
        description of the model, content of `export.json`, and the ONNX file.

    Raises:
        InputError: when a file is missing, damaged, altered, or of another version.
    """
    try:
        about = parse_json(read_regular(folder / EXPORT, _LARGEST_LIST))
        version = about.get("format") if isinstance(about, dict) else None
        if type(version) is int and version != EXPORT_FORMAT:
            raise InputError(
                f"{folder / EXPORT} has format {version}, this version of monai_wscxr reads format {EXPORT_FORMAT}; export "
                "the model again with this version"
            )
        _EXPORT(about, "")
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / EXPORT} is damaged ({error}); {_AGAIN}") from error
    contents = {}
    for name, digest in about["files"].items():
        try:
            contents[name] = read_regular(folder / name, _LARGEST_FILE)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{folder / name} cannot be read ({reason}); {_AGAIN}") from error
        if hashlib.sha256(contents[name]).hexdigest() != digest:
            raise InputError(f"{folder / name} is not the file that was exported (its SHA-256 is another); {_AGAIN}")
    try:
        artefact = parse_artefact(contents[ARTEFACT], ARTEFACT_FORMAT)
    except OtherFormatError as error:
        raise InputError(
            f"{folder / ARTEFACT} has format {error.version}, this version of monai_wscxr reads format {ARTEFACT_FORMAT}; it "
            f"was written by version {error.code_version}. Export the model again with this version"
        ) from error
    except ValueError as error:
        raise InputError(f"{folder / ARTEFACT} is damaged ({error}); {_AGAIN}") from error
    model = ModelDescription.from_artefact(artefact, folder, about["channels"])
    image = {"channels": len(model.preprocessing.mean), "size": model.preprocessing.image_size}
    if about["image"] != image:
        raise InputError(f"{folder / EXPORT} and {ARTEFACT} there contradict each other about the image; {_AGAIN}")
    return model, about, contents[EXPORTED_NETWORK]


def _open(path: Path, network: bytes, runtime: str, streams: int) -> Session:
    """Open a network with a runtime, or with the first that is installed."""
    openers: dict[str, Callable[[], Session]] = {
        "onnxruntime": lambda: OnnxSession(network),
        "openvino": lambda: OpenVINOSession((network,), streams=streams),
    }
    for name in RUNTIMES if runtime == "auto" else (runtime,):
        try:
            return openers[name]()
        except RuntimeUnusableError:
            if runtime != "auto":
                raise
        except Exception as error:  # the libraries raise errors of their own types
            reason = str(error).strip().partition("\n")[0][:160]
            raise InputError(f"the runtime {name} does not take {path} ({reason}); update it, or {_AGAIN}") from error
    raise InputError(
        "exported models need a runtime, and none is installed: pip install 'monai-wscxr[runtime]' (ONNX Runtime), or "
        "'monai-wscxr[openvino]'"
    )
