"""The frozen network, ready for inference: which runtime executes it, and in which precision."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from monai_wscxr.errors import InputError
from monai_wscxr.features.patches import PatchFeatures
from monai_wscxr.features.runtime.base import PRECISIONS, RUNTIMES, Runtime, RuntimeUnusableError
from monai_wscxr.features.runtime.converted import CONVERTED, Check, open_converted
from monai_wscxr.features.runtime.torch_runtime import JoinedLayers, TorchRuntime
from monai_wscxr.system.cache_folder import cache_root

logger = logging.getLogger(__name__)


def runtime_states() -> dict[str, str]:
    """Return the version of each runtime, or a sentence why it cannot be used, in the order in which "auto" tries them."""
    states = {}
    for name, kind in CONVERTED.items():
        try:
            states[name] = kind.installed_version()
        except RuntimeUnusableError as error:
            states[name] = str(error)
    return {**states, TorchRuntime.name: TorchRuntime.version}


class Inference(nn.Module):
    """Patch features of images, executed by a runtime.

    The runtime takes images to the joined layers; averaging over neighbourhoods (Eq. 1) follows in float32.

    Args:
        features: patch features, in evaluation mode.
        precision: arithmetic of the network, "float32" or "bfloat16"; results are float32 either way. Not every backbone
            tolerates bfloat16; `monai-wscxr check-precision` measures it.
        compiled: compile with torch.compile; for the runtime torch, see `TorchRuntime`.
        runtime: "torch", "openvino", "onnxruntime" or "auto". The last takes OpenVINO if it is installed, otherwise ONNX
            Runtime, and torch when neither is installed, takes the network, agrees with torch and is faster; also on other
            devices than a CPU, with `compiled` and without `image_size`.
        image_size: side of the images in pixels; converted networks take no others.
        cache: cache folder, in which converted networks are kept; None takes the default one.

    Attributes:
        folded: number of batch normalisations that were folded into convolutions.
        check: comparison with torch, when the network was converted; None for the runtime torch.

    Raises:
        InputError: on another precision or runtime, or when the runtime cannot be used.
    """

    def __init__(
        self,
        features: PatchFeatures,
        precision: str = "float32",
        compiled: bool = False,
        runtime: str = "torch",
        image_size: int | None = None,
        cache: str | Path | None = None,
    ) -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        if runtime not in RUNTIMES:
            raise InputError(f"runtime must be one of {', '.join(RUNTIMES)}, got {runtime!r}")
        self.features, self.precision, self.compiled = features, precision, compiled
        self.check: Check | None = None
        self.runtime: Runtime
        root = cache_root() if cache is None else Path(cache)
        found = self._converted(runtime, image_size, root)
        if found is None:
            torch_runtime = TorchRuntime(JoinedLayers(features), precision, compiled)
            self.runtime, self.folded = torch_runtime, torch_runtime.folded
        else:
            self.runtime, self.check = found
            self.folded = self.check.folded

    def _converted(self, wanted: str, image_size: int | None, root: Path) -> tuple[Runtime, Check] | None:
        """Return the converted network and its check; None where torch is to be used."""
        device = next(self.features.parameters()).device.type
        if wanted in CONVERTED:
            if device != "cpu" or self.compiled or image_size is None:
                reason = f"not on {device}" if device != "cpu" else "with compile_network off"
                raise InputError(f"the runtime {wanted} runs on a CPU, {reason}; choose --runtime auto or torch")
            return open_converted(wanted, self.features, image_size, self.precision, root)
        if wanted == "torch" or device != "cpu" or self.compiled or image_size is None:
            return None
        for name in CONVERTED:
            try:
                runtime, check = open_converted(name, self.features, image_size, self.precision, root)
            except RuntimeUnusableError as error:
                logger.debug("%s", error)
                continue
            if check.seconds < check.torch_seconds:
                return runtime, check
            logger.debug("the runtime %s is slower than torch here", name)
            return None
        return None

    @property
    def text(self) -> str:
        """Runtime and precision, for a line of text."""
        said = f"{self.runtime.name} {self.runtime.version}, {self.precision}"
        if self.check is None:
            return said
        speed = self.check.torch_seconds / self.check.seconds
        return f"{said}; float32 differs from torch by {self.check.difference:.0e}, {speed:.1f} times as fast"

    def settings(self) -> dict[str, Any]:
        """Return what features depend on here, for the fingerprint of the cache.

        float32 features of all runtimes are the same ones but for rounding (docs/runtimes.md says what that does to results),
        as are those of different processors. Rounding in lower precisions differs by more.
        """
        found = {"precision": self.precision, "folded": self.folded, "compiled": self.compiled}
        if self.precision != "float32" and self.runtime.name != "torch":
            found["runtime"] = self.runtime.name
        return found

    def record(self) -> dict[str, Any]:
        """Return what made the features, for the record of a training."""
        return {
            "name": self.runtime.name,
            "version": self.runtime.version,
            "precision": self.precision,
            "difference": None if self.check is None else self.check.difference,
        }

    def forward(self, image: Tensor) -> Tensor:
        """Return the patch features [B, C, h, w], float32, of normalised images [B, 3 or 1, H, W]."""
        return self.features.aggregate(self.runtime(image))
