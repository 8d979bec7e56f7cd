"""The operator library: schemas, references, and which code runs each operator on which device.

Every operator is declared in Python and has a plain-torch reference that runs on all devices. A compiled kernel is
registered by the extension for one device and takes precedence there. No other code depends on whether the extension
exists.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

NAMESPACE = "monai_wscxr"
_torch_library: Any = torch.library  # without type annotations
_LIBRARY = _torch_library.Library(NAMESPACE, "DEF")

OPERATORS: list[str] = []


@dataclass(frozen=True)
class Backend:
    """Code that runs an operator.

    Attributes:
        name: "reference" or "compiled".
        reason: why this code was chosen.
    """

    name: str
    reason: str


def define(name: str, schema: str, reference: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Declare an operator.

    Args:
        name: operator name.
        schema: arguments and results in the notation of torch.library.
        reference: plain-torch implementation for all devices.
        fake: implementation that only returns the shapes and types of the results.
    """
    _LIBRARY.define(f"{name}{schema}", tags=torch.Tag.pt2_compliant_tag)
    _LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_LIBRARY)
    OPERATORS.append(name)


def define_autograd(
    name: str, backward: Callable[..., Any], setup_context: Callable[[Any, Any, Any], None] | None = None
) -> None:
    """Register the gradient of an operator that `define` has declared."""
    torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup_context, lib=_LIBRARY)


def _reasons() -> dict[str, str]:
    """Return why modules were not built, as setup.py noted it; {} without a note."""
    try:
        found = json.loads((Path(__file__).parent / "left_out.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(module): str(reason) for module, reason in found.items()} if isinstance(found, dict) else {}


def _extension(name: str) -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module(f"{NAMESPACE}.{name}"), "loaded"
    except ModuleNotFoundError:
        reason = _reasons().get(name)
        return None, f"the extension module {NAMESPACE}.{name} was not built{f': {reason}' if reason else ''}"
    except ImportError as error:  # built for another Python or libc, or a library is missing
        return None, f"the extension module {NAMESPACE}.{name} was built but cannot be loaded: {error}"


EXTENSION, EXTENSION_STATE = _extension("_C")
CUDA_EXTENSION, CUDA_EXTENSION_STATE = _extension("_C_cuda")


def backend(operator: str, device: str | torch.device = "cpu") -> Backend:
    """Return which code runs an operator on a device, and why.

    Args:
        operator: operator name, one of `OPERATORS`.
        device: "cpu" or "cuda".

    Returns:
        The code that torch dispatches to.

    Raises:
        ValueError: if the operator is unknown.
    """
    if operator not in OPERATORS:
        raise ValueError(f"unknown operator {operator!r}: the operators are {', '.join(OPERATORS)}")
    key = torch.device(device).type.upper()
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{operator}", key):
        return Backend("compiled", f"a compiled {key} kernel is registered")
    module, state = (CUDA_EXTENSION, CUDA_EXTENSION_STATE) if key == "CUDA" else (EXTENSION, EXTENSION_STATE)
    if module is None:
        return Backend("reference", state)
    return Backend("reference", f"the extension contains no {key} kernel for {operator}")
