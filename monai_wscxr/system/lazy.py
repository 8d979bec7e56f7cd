"""Lazy imports: of the names that a package exports, and of libraries that take long to import.

The names are listed once, in the package's `__init__.pyi`, which type checkers and editors read as well. A configuration or a
user writes `monai_wscxr.features.PatchFeatures` without knowing the module of the class, and importing a package is cheap.
"""

from __future__ import annotations

import ast
import importlib
import importlib.resources
import importlib.util
import types
from collections.abc import Callable
from typing import Any


def exported_names(package: str) -> dict[str, str]:
    """Return the names that the `__init__.pyi` of a package exports, each with the module that defines it.

    As for type checkers, only `from MODULE import NAME as NAME` exports a name.
    """
    stub = importlib.resources.files(package).joinpath("__init__.pyi").read_text(encoding="utf-8")
    found: dict[str, str] = {}
    for node in ast.parse(stub).body:
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            found.update({alias.name: node.module for alias in node.names if alias.asname == alias.name})
    return found


def attach(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Make the names in the `__init__.pyi` of a package, and its modules, attributes that are imported on first use.

    Args:
        package: `__name__` of the package.

    Returns:
        `__getattr__`, `__dir__` and `__all__` for the package.
    """
    names = exported_names(package)

    def get(name: str) -> Any:
        if name in names:
            return getattr(importlib.import_module(names[name]), name)
        if not name.startswith("_") and importlib.util.find_spec(f"{package}.{name}") is not None:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def list_names() -> list[str]:
        return sorted(names)

    return get, list_names, sorted(names)


class LazyModule(types.ModuleType):
    """A module that is imported when it is first used, for libraries whose import takes longer than most commands need them.

    Type checkers get the import itself: `if TYPE_CHECKING: from scipy import ndimage`, `else: ndimage = LazyModule(...)`.

    Args:
        name: full name of the module.
    """

    def __getattr__(self, attribute: str) -> Any:
        """Return an attribute of the module.

        Raises:
            AttributeError: when the module has none of that name.
            ImportError: when the module cannot be imported.
        """
        return getattr(importlib.import_module(self.__name__), attribute)
