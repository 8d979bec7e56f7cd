"""Imports run downwards: from the commands at the top to the operators at the bottom."""

import ast
from pathlib import Path

import pytest

import monai_wscxr

ROOT = Path(monai_wscxr.__file__).parent
# from top to bottom; rooms on one floor do not import each other
FLOORS = (
    {"commands"},
    {"node"},
    {"label"},
    {"experiments"},
    {"planning"},
    {"prediction", "evaluation", "adaptation"},
    {"training"},
    {"report"},
    {"model"},
    {"features"},
    {"bank"},
    {"data"},
    {"system"},
    {"ops"},
    {"errors"},
)
FLOOR = {room: number for number, rooms in enumerate(reversed(FLOORS)) for room in rooms}


def imported_rooms(source):
    """Packages of `monai_wscxr` that a source file imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports name whole paths"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "monai_wscxr" and (room := rest.partition(".")[0]) in FLOOR:
                yield room


def upward(room, source):
    """Imports of a file in `room` that do not run downwards."""
    return [other for other in imported_rooms(source) if other != room and FLOOR[other] >= FLOOR[room]]


@pytest.mark.parametrize("room", [room for rooms in FLOORS for room in sorted(rooms)])
def test_imports_run_downwards(room):
    files = sorted((ROOT / room).rglob("*.py")) or [ROOT / f"{room}.py"]
    assert files[0].is_file()
    found = {str(file.relative_to(ROOT)): upward(room, file.read_text()) for file in files}
    assert not {file: rooms for file, rooms in found.items() if rooms}


def test_an_import_upwards_is_found():
    assert upward("bank", "from monai_wscxr.model import mining") == ["model"]
    assert upward("bank", "def f():\n    import monai_wscxr.features.patches") == ["features"]
    assert upward("evaluation", "from monai_wscxr.prediction import predict") == ["prediction"]
    assert upward("bank", "from monai_wscxr import ops, errors") == []


def test_the_root_holds_packages_and_no_loose_module():
    loose = {path.name for path in ROOT.iterdir() if path.is_file() and path.suffix not in (".so", ".pyd")}
    assert loose == {"__init__.py", "__main__.py", "errors.py", "py.typed"}
    packages = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert packages == set(FLOOR) - {"errors"}
