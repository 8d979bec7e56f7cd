"""Converted networks: made once, checked against torch, timed, and kept on disk.

They lie in `<cache>/networks/<fingerprint>/`. The fingerprint covers weights, layers, size of the image, runtime with its
version, torch's version and the processor, so each of them means another conversion and another check. `record.json` holds the
result of the check and the checksums of the files, and is written last; a folder without it, or with other files, is empty.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monai_wscxr.errors import InputError
from monai_wscxr.features.backbones import Backbone, weights_hash
from monai_wscxr.features.patches import PatchFeatures
from monai_wscxr.features.runtime.base import Runtime, RuntimeUnusableError
from monai_wscxr.features.runtime.onnx_runtime import OnnxRuntime
from monai_wscxr.features.runtime.openvino_runtime import OpenVINORuntime
from monai_wscxr.features.runtime.torch_runtime import JoinedLayers, TorchRuntime
from monai_wscxr.system.atomic import write_together

logger = logging.getLogger(__name__)

CONVERTED: dict[str, type[OpenVINORuntime | OnnxRuntime]] = {"openvino": OpenVINORuntime, "onnxruntime": OnnxRuntime}
TOLERANCE = 1e-4  # largest relative difference from torch, root mean square over a layer; rounding makes 1e-6 to 1e-5
_FORMAT = 1
_RECORD = "record.json"
_TIMED = 5


@dataclass(frozen=True)
class Check:
    """What was measured when a network was converted.

    Attributes:
        difference: largest relative difference from torch in float32, root mean square over a layer of a picture.
        seconds, torch_seconds: processor seconds per image on one thread, of the runtime and of torch.
        folded: number of batch normalisations folded before the conversion.
        refused: why the runtime cannot be used, one sentence; "" when it can.
    """

    difference: float
    seconds: float
    torch_seconds: float
    folded: int
    refused: str = ""


def open_converted(
    name: str,
    features: PatchFeatures,
    image_size: int,
    precision: str,
    root: Path,
    threads: int | None = None,
) -> tuple[Runtime, Check]:
    """Open a frozen network in a runtime; convert and check it first where that was not done before.

    Args:
        name: "openvino" or "onnxruntime".
        features: patch features, on the CPU.
        image_size: side of the images in pixels; a converted network takes no others.
        precision: arithmetic. The check is made in float32 whatever it is; `check-precision` judges lower ones.
        root: cache folder.
        threads: see the runtime.

    Raises:
        RuntimeUnusableError: when the runtime is not installed, does not take the network or differs from torch.
    """
    kind = CONVERTED[name]
    key = _key(kind, name, features, image_size)
    text = json.dumps(key, sort_keys=True)
    folder = root / "networks" / hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
    kept = _read(folder)
    if kept is None:
        kept = _make(kind, features, image_size)
        _keep(folder, key, *kept)
    files, check = kept
    if check.refused:
        raise RuntimeUnusableError(check.refused)
    return kind(files, precision, threads), check


def pictures(backbone: Backbone, image_size: int) -> Tensor:
    """Return normalised images [4, channels, S, S] for checks: black, white, noise, and smooth."""
    backbone.check_size(image_size)
    generator = torch.Generator().manual_seed(0)
    shape = (1, 1, image_size, image_size)
    coarse = torch.rand(1, 1, 8, 8, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=image_size, mode="bilinear", align_corners=False)
    grey = torch.cat([torch.zeros(shape), torch.ones(shape), torch.rand(shape, generator=generator), smooth])
    mean, std = (torch.tensor(values)[:, None, None] for values in (backbone.mean, backbone.std))
    return (grey - mean) / std


def difference(got: Tensor, expected: Tensor, channels: list[int]) -> float:
    """Return the largest relative difference of images' layers, root mean square.

    Args:
        got, expected: [B, C, h, w].
        channels: number of channels of each layer, which are compared apart because their sizes differ.

    Returns:
        NaN when a value is NaN.
    """
    found = []
    for mine, theirs in zip(got.double().split(channels, 1), expected.double().split(channels, 1), strict=True):
        size = theirs.flatten(1).norm(dim=1)
        # a layer may be silent on one of the pictures
        size = size.clamp(min=1e-3 * float(size.max())).clamp(min=1e-30)
        found.append((mine - theirs).flatten(1).norm(dim=1) / size)
    return float(torch.stack(found).max())


def _key(kind: Any, name: str, features: PatchFeatures, image_size: int) -> dict[str, Any]:
    """Return all that a conversion and its check depend on."""
    backbone = features.backbone
    return {
        "format": _FORMAT,
        "backbone": backbone.name,
        "backbone_sha256": weights_hash(backbone),
        "layers": backbone.layers,
        "align_to": features.align_to,
        "aligned_channels": features.aligned_channels,
        "image_size": image_size,
        "runtime": name,
        "version": kind.installed_version(),
        "torch": str(torch.__version__),
        "machine": kind.machine(),
    }


def _make(kind: Any, features: PatchFeatures, image_size: int) -> tuple[dict[str, bytes], Check]:
    """Convert a network, compare it with torch on a few pictures and time both."""
    logger.debug("converting %s for the runtime %s", features.backbone.name, kind.name)
    torch_runtime = TorchRuntime(JoinedLayers(features))
    images = pictures(features.backbone, image_size)
    try:
        files = kind.convert(torch_runtime.network, images[:1])
        runtime = kind(files, threads=1)
    except RuntimeUnusableError as error:
        return {}, Check(-1.0, -1.0, -1.0, torch_runtime.folded, str(error))
    each = features.aligned_channels
    channels = [each] * len(features.backbone.channels) if each else features.backbone.channels
    with torch.inference_mode():
        expected = torch_runtime(images)
        found = difference(runtime(images), expected, channels)
    if not found <= TOLERANCE:
        why = f"its features differ from those of torch by {found:.1e} (relative), allowed are {TOLERANCE:.0e}"
        if not bool(torch.isfinite(expected).all()):
            why = "the network gives NaN or Inf"
        refused = f"the runtime {kind.name} is not used: {why}; choose --runtime torch"
        return {}, Check(-1.0, -1.0, -1.0, torch_runtime.folded, refused)
    own, torch_seconds = _seconds([runtime, torch_runtime], images[2:3])
    return files, Check(found, own, torch_seconds, torch_runtime.folded)


def _seconds(functions: list[Callable[[Tensor], Tensor]], image: Tensor) -> list[float]:
    """Return the processor seconds of each function on one thread, the median of a few calls in turn."""

    def measure() -> list[float]:
        found: list[list[float]] = [[] for _ in functions]
        with torch.inference_mode():
            for _ in range(_TIMED):
                for function, times in zip(functions, found, strict=True):
                    began = time.process_time()
                    function(image)
                    times.append(time.process_time() - began)
        return [sorted(times)[_TIMED // 2] for times in found]

    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return pool.submit(measure).result()


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _keep(folder: Path, key: dict[str, Any], files: dict[str, bytes], check: Check) -> None:
    """Write a converted network; where that is not possible, it is converted again next time."""
    record = {"key": key, "check": asdict(check), "files": {name: _digest(data) for name, data in files.items()}}
    contents = {**files, _RECORD: json.dumps(record, indent=1, allow_nan=False).encode()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_together({folder / name: content for name, content in contents.items()})
    except (OSError, InputError) as error:
        logger.warning("the converted network cannot be kept, so the next run converts it again: %s", error)


def _read(folder: Path) -> tuple[dict[str, bytes], Check] | None:
    """Read a converted network; None where it is missing or damaged."""
    try:
        record = json.loads((folder / _RECORD).read_bytes())
        files = {str(name): (folder / str(name)).read_bytes() for name in record["files"]}
        if any(_digest(content) != record["files"][name] for name, content in files.items()):
            raise ValueError("a checksum is wrong")
        return files, Check(**record["check"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.debug("the converted network in %s is damaged (%s); it is made again", folder, error)
        return None
