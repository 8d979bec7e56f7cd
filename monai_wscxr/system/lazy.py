"""Names that a package exports, imported when they are first used.

The names stand once, in the package's `__init__.pyi`, where type checkers and editors read them too. So a configuration or a
user names `monai_wscxr.features.PatchFeatures` wherever the class is defined, and importing a package imports nothing heavy.
"""

from __future__ import annotations

import ast
import importlib
import importlib.resources
import importlib.util
from collections.abc import Callable
from typing import Any


def exported_names(package: str) -> dict[str, str]:
    """Return the exported names of a package with the module that defines each, as `__init__.pyi` lists them."""
    stub = importlib.resources.files(package).joinpath("__init__.pyi").read_text(encoding="utf-8")
    found: dict[str, str] = {}
    for node in ast.parse(stub).body:
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            found.update({alias.asname or alias.name: node.module for alias in node.names})
    return found


def attach(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Make the names of `__init__.pyi` attributes of a package.

    Args:
        package: its `__name__`.

    Returns:
        `__getattr__`, `__dir__` and `__all__` of the package.
    """
    names = exported_names(package)

    def get(name: str) -> Any:
        if name in names:
            return getattr(importlib.import_module(names[name]), name)
        if not name.startswith("_") and importlib.util.find_spec(f"{package}.{name}") is not None:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get, lambda: sorted(names), sorted(names)
