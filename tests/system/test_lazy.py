"""Exported names of a package: found where the stub says, imported on first use, and unknown names refused."""

import subprocess
import sys

import pytest

from monai_wscxr.system.lazy import attach, exported_names


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Name of a package whose stub exports two names of one of its two modules, and merely imports two others."""
    folder = tmp_path / "lazy_sample"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from monai_wscxr.system.lazy import attach\n__getattr__, __dir__, __all__ = attach(__name__)\n"
    )
    (folder / "__init__.pyi").write_text(
        "from lazy_sample.shapes import Square as Square, area as area\n"
        "from lazy_sample.shapes import secret\nfrom lazy_sample.shapes import secret as known\n"
    )
    (folder / "shapes.py").write_text("class Square: ...\ndef area(): return 4\nsecret = 1\n")
    (folder / "colours.py").write_text("red = 'red'\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "lazy_sample"
    for name in [name for name in sys.modules if name.partition(".")[0] == "lazy_sample"]:
        del sys.modules[name]


def test_names_and_modules_are_imported_on_first_use(package):
    import lazy_sample

    assert "lazy_sample.shapes" not in sys.modules
    assert lazy_sample.Square.__module__ == "lazy_sample.shapes"
    assert lazy_sample.area() == 4
    assert "lazy_sample.colours" not in sys.modules
    assert lazy_sample.colours.red == "red"
    assert dir(lazy_sample) == lazy_sample.__all__ == ["Square", "area"]
    assert exported_names(package) == {"Square": "lazy_sample.shapes", "area": "lazy_sample.shapes"}


def test_what_the_stub_does_not_export_is_no_attribute(package):
    import lazy_sample

    for name in ("secret", "known", "circle", "_private", "__wrapped__"):
        with pytest.raises(AttributeError, match=rf"module 'lazy_sample' has no attribute '{name}'"):
            getattr(lazy_sample, name)
    with pytest.raises(ImportError):
        exec("from lazy_sample import circle")


def test_a_name_whose_module_is_gone_is_an_import_error(package, tmp_path):
    (tmp_path / "lazy_sample" / "shapes.py").unlink()
    get, _, names = attach("lazy_sample")
    assert names == ["Square", "area"]
    with pytest.raises(ModuleNotFoundError, match="shapes"):
        get("Square")


def test_importing_the_packages_imports_no_torch():
    packages = ", ".join(f"monai_wscxr.{name}" for name in ("features", "bank", "model", "system"))
    code = f"import sys, {packages}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
