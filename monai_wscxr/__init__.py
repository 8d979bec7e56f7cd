"""WSCXR, weakly supervised anomaly detection for chest X-rays, as a MONAI plugin."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monai_wscxr.prediction.interactive import load as load
    from monai_wscxr.prediction.interactive import train as train

__version__ = "0.1.0"


_FUNCTIONS = ("load", "train")


def __getattr__(name: str) -> Any:
    """Import `load`, `train` and submodules on first use, so that a configuration needs one `$import monai_wscxr`."""
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(f"{__name__}.prediction.interactive"), name)
    if name.startswith("_") or importlib.util.find_spec(f"{__name__}.{name}") is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")
