"""The operator library: schemas, and which code runs each operator on which device.

Every operator is declared here in Python and has a plain-torch reference that serves all devices. A compiled kernel,
where there is one, is registered for a single device by the extension and takes precedence there; nothing else in the
package asks whether an extension exists.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch

NAMESPACE = "monai_wscxr"
_LIBRARY = torch.library.Library(NAMESPACE, "DEF")

OPERATORS: list[str] = []


@dataclass(frozen=True)
class Backend:
    """Which code runs an operator (`name`: "reference" or "compiled") and why."""

    name: str
    reason: str


def define(name: str, schema: str, reference: Callable, fake: Callable) -> None:
    """Declare operator `name` with its schema, its reference for every device and its fake (shape-only) kernel."""
    _LIBRARY.define(f"{name}{schema}", tags=torch.Tag.pt2_compliant_tag)
    _LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_LIBRARY)
    OPERATORS.append(name)


def _extension(name: str) -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module(f"{NAMESPACE}.{name}"), "loaded"
    except ModuleNotFoundError:
        return None, f"the extension module {NAMESPACE}.{name} was not built"
    except ImportError as error:  # built, but for another Python, another libc or a missing driver library
        return None, f"the extension module {NAMESPACE}.{name} is there but does not load: {error}"


EXTENSION, EXTENSION_STATE = _extension("_C")
CUDA_EXTENSION, CUDA_EXTENSION_STATE = _extension("_C_cuda")


def backend(operator: str, device: str | torch.device = "cpu") -> Backend:
    """Say which code runs `operator` on `device`, and why.

    Args:
        operator: operator name, one of `OPERATORS`.
        device: "cpu" or "cuda".

    Raises:
        ValueError: when the operator is unknown.
    """
    if operator not in OPERATORS:
        raise ValueError(f"unknown operator {operator!r}: the operators are {', '.join(OPERATORS)}")
    key = torch.device(device).type.upper()
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{operator}", key):
        return Backend("compiled", f"a compiled {key} kernel is registered")
    module, state = (CUDA_EXTENSION, CUDA_EXTENSION_STATE) if key == "CUDA" else (EXTENSION, EXTENSION_STATE)
    if module is None:
        return Backend("reference", state)
    return Backend("reference", f"the extension holds no {key} kernel for {operator}")
