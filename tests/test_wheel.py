"""Wheels, for every supported Python and torch, with kernels, bundle, page and templates; the source archive."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.metadata import Metadata
from packaging.requirements import Requirement

import monai_wscxr
from monai_wscxr import ops

ROOT = Path(__file__).parents[1]
needs_kernels = pytest.mark.skipif(ops.EXTENSION is None, reason="built without the CPU kernels")


def build(source, mode, *words):
    """Build a wheel in a copy of the sources and return it with what the build said."""
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", *words],
        cwd=source,
        env={**os.environ, "MONAI_WSCXR_BUILD": mode},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = (source / "dist").glob("*.whl")
    return wheel, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel with the module that the build in place has compiled, from a folder with the remains of other builds."""
    source = tmp_path_factory.mktemp("source")
    for name in ("monai_wscxr", "csrc", "bundles"):
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so", "left_out.json")
        )
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    remains = source / "build" / f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    for name in (
        "monai_wscxr/old.py",
        "monai_wscxr/bundles/old.yaml",
        "tests/helpers/_cuda_emulation.so",
        "monai_wscxr/_C_cuda.so",
    ):
        (remains / name).parent.mkdir(parents=True, exist_ok=True)
        (remains / name).write_text("")
    shutil.copy(ops.EXTENSION.__file__, remains / "monai_wscxr")
    return build(source, "cpu", "build_py", "bdist_wheel", "--skip-build")[0]


def files(archive, prefix=""):
    """Return the content of each file of a wheel below a folder, by its path there."""
    with zipfile.ZipFile(archive) as opened:
        return {name[len(prefix) :]: opened.read(name) for name in opened.namelist() if name.startswith(prefix)}


@needs_kernels
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names of wheels for Linux")
def test_the_wheel_is_for_every_python_and_torch(wheel):
    name, version, python, abi, _ = wheel.stem.split("-")
    assert (name, version, python, abi) == ("monai_wscxr", monai_wscxr.__version__, "cp310", "abi3")
    kernels = files(wheel)["monai_wscxr/_C.abi3.so"]
    assert b"libtorch_cpu.so" in kernels
    assert b"libtorch_python" not in kernels  # which belongs to one Python


@needs_kernels
def test_the_wheel_holds_kernels_bundle_page_and_templates_and_nothing_else(wheel):
    inside = files(wheel)
    assert [name for name in inside if name.endswith(".so")] == ["monai_wscxr/_C.abi3.so"]
    assert {name.partition("/")[0] for name in inside} == {"monai_wscxr", f"{wheel.stem[:17]}.dist-info"}
    listed = subprocess.run(["git", "ls-files", "monai_wscxr"], cwd=ROOT, capture_output=True, text=True, check=True)
    package = {name: content for name, content in inside.items() if "/bundles/" not in name and "dist-info" not in name}
    assert set(package) - set(listed.stdout.split()) == {"monai_wscxr/_C.abi3.so"}
    missing = set(listed.stdout.split()) - set(package)
    assert missing == {"monai_wscxr/label/page/types.d.ts"}  # for the type check alone
    bundle = {
        path.relative_to(ROOT).as_posix(): path.read_bytes() for path in (ROOT / "bundles").rglob("*") if path.is_file()
    }
    assert {f"bundles/{name}": content for name, content in files(wheel, "monai_wscxr/bundles/").items()} == bundle


@needs_kernels
def test_the_metadata_are_valid(wheel):
    (described,) = (content for name, content in files(wheel).items() if name.endswith(".dist-info/METADATA"))
    found = Metadata.from_email(described, validate=True)
    assert found.description == (ROOT / "README.md").read_text(encoding="utf-8")
    assert found.description_content_type == "text/markdown"
    torch = next(r for r in found.requires_dist if r.name == "torch")
    assert str(torch.specifier) == ">=2.11"  # what TORCH_TARGET_VERSION in setup.py says
    assert "0x020b000000000000" in (ROOT / "setup.py").read_text(encoding="utf-8")
    assert Requirement("monai-wscxr[dicom]").extras <= set(found.provides_extra)
    base = {r.name for r in found.requires_dist if r.marker is None}
    assert "numpy" in base
    assert not base & {"torch", "torchvision", "monai", "scipy", "scikit-learn", "timm"}


@needs_kernels
def test_the_wheel_in_an_environment_of_its_own(wheel, tmp_path):
    """It is the only thing installed there; torch and the rest are those of the tests, behind it on the path."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    site = next((tmp_path / "venv" / "lib").iterdir()) / "site-packages"
    (site / "rest.pth").write_text(sysconfig.get_path("purelib"))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    install = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True, cwd=tmp_path, env=environment)

    def said(*command):
        command = [python.parent / command[0], *command[1:]]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout

    assert Path(said("monai-wscxr", "bundle", "path").strip()) == site / "monai_wscxr" / "bundles" / "wscxr_chest_xray"
    code = (
        "import monai_wscxr.ops as ops, torch; rows = torch.eye(3); print(ops.EXTENSION.__file__);"
        "print([ops.backend(name).name for name in ops.OPERATORS if name != 'search_block'], ops.min_distance(rows, rows)[1])"
    )
    module, kernels = said("python", "-c", code).splitlines()
    assert Path(module) == site / "monai_wscxr" / "_C.abi3.so"
    assert kernels == f"{['compiled'] * (len(ops.OPERATORS) - 1)} tensor([0, 1, 2])"


def distributions(requirement):
    """Return the names of the distributions that a requirement installs, found in this environment."""
    waiting, found = [Requirement(requirement)], {}
    while waiting:
        wanted = waiting.pop()
        if wanted.name in found and not wanted.extras:
            continue
        found[wanted.name] = wanted
        for line in metadata.requires(wanted.name) or ():
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in (*wanted.extras, "")):
                waiting.append(needed)
    return sorted(found)


@needs_kernels
def test_the_runtime_extra_holds_all_that_an_exported_model_needs(wheel, make_model, phantoms, tmp_path):
    """An environment of its own has the wheel and links to what `runtime` declares, and nothing else."""
    export_model_of(make_model, tmp_path)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    site = next((tmp_path / "venv" / "lib").iterdir()) / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (described,) = site.glob("*.dist-info/METADATA")
    lines = [Requirement(line) for line in Metadata.from_email(described.read_bytes()).requires_dist]
    wanted = [r for r in lines if r.marker is None or r.marker.evaluate({"extra": "runtime"})]
    for name in {name for requirement in wanted for name in distributions(requirement.name)}:
        for file in metadata.files(name):
            top, source = file.parts[0], Path(file.locate())
            if top not in ("..", "__pycache__") and not (site / top).exists():
                (site / top).symlink_to(source.parents[len(file.parts) - 2] if len(file.parts) > 1 else source)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    python = tmp_path / "venv" / "bin" / "python"
    picture = sorted(phantoms.glob("test/normal/*.png"))[0]
    command = [
        python,
        "-m",
        "monai_wscxr",
        "predict",
        picture,
        "--model",
        tmp_path / "exported",
        "--output",
        tmp_path / "out",
    ]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "report" / "index.html").is_file()
    absent = subprocess.run(
        [python, "-c", "import torch"], env=environment, capture_output=True, text=True, check=False
    )
    assert "No module named 'torch'" in absent.stderr


def export_model_of(make_model, folder):
    """Write an exported model to `folder`."""
    from monai_wscxr.prediction.export import export_model

    make_model(folder / "trained")
    export_model(folder / "trained", folder / "exported")


def test_the_source_archive_holds_all_that_a_wheel_needs_and_a_wheel_without_kernels_says_why(tmp_path):
    made = [sys.executable, "setup.py", "-q", "egg_info", "-e", str(tmp_path), "sdist", "-d", str(tmp_path)]
    environment = {**os.environ, "MONAI_WSCXR_BUILD": "none"}
    subprocess.run(made, cwd=ROOT, env=environment, capture_output=True, check=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    listed = subprocess.run(
        ["git", "ls-files", "csrc", "bundles"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert [name for name in listed.stdout.split() if not (source / name).is_file()] == []
    assert not (source / "tests").exists()
    wheel, errors = build(source, "none", "bdist_wheel")
    assert wheel.name.endswith("-py3-none-any.whl")
    bundle = {
        path.relative_to(ROOT).as_posix(): path.read_bytes() for path in (ROOT / "bundles").rglob("*") if path.is_file()
    }
    assert {f"bundles/{name}": content for name, content in files(wheel, "monai_wscxr/bundles/").items()} == bundle
    assert "built WITHOUT the compiled CPU kernels: it was built with MONAI_WSCXR_BUILD=none" in errors
    record = json.loads(files(wheel)["monai_wscxr/ops/left_out.json"])
    assert record == dict.fromkeys(("_C", "_C_cuda"), "it was built with MONAI_WSCXR_BUILD=none")
