"""The compiled extension: it is built where possible, loads, describes itself correctly, and contains nothing else."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from monai_wscxr import ops
from monai_wscxr.commands import main as cli
from tests.helpers.cuda_emulation import EMULATION

ROOT = Path(__file__).parents[1]
NVCC = shutil.which("nvcc") or next((p for p in ("/usr/local/cuda/bin/nvcc",) if Path(p).exists()), None)
BUILT = os.environ.get("MONAI_WSCXR_BUILD", "auto")


@pytest.mark.skipif(not shutil.which("c++") or BUILT == "none", reason="no C++ compiler, or built without extension")
def test_cpu_module_is_there_wherever_a_compiler_is():
    assert ops.EXTENSION is not None, ops.EXTENSION_STATE
    info = ops.EXTENSION.build_info()
    assert info["cpp_standard"] >= 201703
    assert info["python_abi"] == "3.10"
    assert Path(ops.EXTENSION.__file__).name == "_C.abi3.so"


@pytest.mark.skipif(NVCC is None or BUILT in ("none", "cpu"), reason="no nvcc, or built without CUDA module")
def test_cuda_module_is_there_wherever_nvcc_is():
    assert ops.CUDA_EXTENSION is not None, ops.CUDA_EXTENSION_STATE
    assert ops.CUDA_EXTENSION.build_info()["cuda_runtime"] >= 12000


@pytest.mark.skipif(ops.EXTENSION is None or not Path("/proc/cpuinfo").exists(), reason="no extension, or not Linux")
def test_cpu_capabilities_are_those_of_the_machine():
    flags = Path("/proc/cpuinfo").read_text().partition("\nflags")[2].partition("\n")[0].split()
    for name, there in ops.EXTENSION.cpu_capabilities().items():
        assert there == (name in flags), name


@pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("c++") or BUILT == "none", reason="not Linux, or no C++ compiler"
)
def test_the_emulation_is_there_wherever_a_compiler_is():
    assert EMULATION is not None, "build it with `make setup` or `python setup.py build_ext --inplace`"


# Symbols and messages of the emulation. The linker keeps the names of local functions, too.
EMULATED = [b"emulat", b"makecontext", b"fiber", b"self_check"]


@pytest.mark.skipif(ops.CUDA_EXTENSION is None or EMULATION is None, reason="needs the CUDA module and the emulation")
@pytest.mark.parametrize("text", EMULATED)
def test_the_cuda_module_contains_nothing_of_the_emulation(text):
    assert text in Path(EMULATION.__file__).read_bytes().lower(), "the search would find nothing anywhere"
    for module in (ops.EXTENSION, ops.CUDA_EXTENSION):
        assert text not in Path(module.__file__).read_bytes().lower()


def test_the_package_contains_no_other_modules():
    names = {path.name.partition(".")[0] for path in Path(ops.__file__).parents[1].rglob("*.so")}
    assert names <= {"_C", "_C_cuda"}


@pytest.mark.skipif(ops.CUDA_EXTENSION is None, reason="needs the CUDA module")
def test_the_hopper_kernel_reads_the_sums_where_cutlass_puts_them():
    built = ops.CUDA_EXTENSION.build_info()
    if built["hopper_kernel"] != "built":
        pytest.skip(f"the Hopper kernel is {built['hopper_kernel']}")
    assert built["hopper_layout_is_as_assumed"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_capabilities_are_those_of_torch():
    devices = ops.CUDA_EXTENSION.gpu_capabilities()
    assert [d["name"] for d in devices] == [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    assert devices[0]["compute_capability"] == torch.cuda.get_device_capability(0)


def test_doctor_names_versions_operators_and_reasons(capsys):
    cli.main(["doctor"])
    said = capsys.readouterr().out
    for operator in ops.OPERATORS:
        assert f"{operator} " in said
    assert "torch " in said
    assert "extension " in said
    assert ops.backend("mixup").reason in said


def test_phantom_command_writes_and_refuses(tmp_path, capsys):
    small = [
        "--train_normal",
        "2",
        "--train_abnormal",
        "1",
        "--test_normal",
        "1",
        "--test_abnormal",
        "1",
        "--image_size",
        "32",
    ]
    cli.main(["phantom", str(tmp_path / "p"), *small])
    assert len(list((tmp_path / "p" / "train" / "normal").glob("*.png"))) == 2
    with pytest.raises(SystemExit) as stopped:
        cli.main(["phantom", str(tmp_path / "p"), *small])
    assert stopped.value.code == 2
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("environment", "status", "sentence"),
    [
        ({"MONAI_WSCXR_BUILD": "none"}, 0, "is left out: it was built with MONAI_WSCXR_BUILD=none"),
        ({"MONAI_WSCXR_BUILD": "often"}, 1, "MONAI_WSCXR_BUILD must be auto, cpu, cuda or none, got 'often'"),
        ({"MONAI_WSCXR_BUILD": "auto", "CXX": "no-such-compiler"}, 0, "there is no C++ compiler"),
        (
            {"MONAI_WSCXR_BUILD": "cpu", "CXX": "no-such-compiler"},
            1,
            "MONAI_WSCXR_BUILD=cpu requires the compiled extension",
        ),
    ],
)
def test_build_modes_fall_back_or_fail_loudly(environment, status, sentence):
    done = subprocess.run(
        [sys.executable, "setup.py", "--name"],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode != 0) == bool(status), done.stderr
    assert sentence in done.stderr


COMPILER = """#!/bin/sh
case "$1" in --version | -v | -dump*) exec c++ "$@" ;; esac
exit 1
"""


@pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler")
@pytest.mark.parametrize(("mode", "status"), [("auto", 0), ("cpu", 1)])
def test_a_failed_compilation_leaves_the_module_out_or_is_an_error(tmp_path, mode, status):
    compiler, nvcc = tmp_path / "g++", tmp_path / "cuda" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    for program in (compiler, nvcc):
        program.write_text(COMPILER)
        program.chmod(0o755)
    done = subprocess.run(
        [
            sys.executable,
            "setup.py",
            "-q",
            "build_ext",
            "--build-lib",
            tmp_path / "lib",
            "--build-temp",
            tmp_path / "temp",
        ],
        cwd=ROOT,
        env={**os.environ, "MONAI_WSCXR_BUILD": mode, "CXX": str(compiler), "CUDA_HOME": str(tmp_path / "cuda")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert "Error compiling objects for extension" in done.stdout + done.stderr
    assert not list(tmp_path.rglob("*.so"))
    record = tmp_path / "lib" / "monai_wscxr" / "ops" / "left_out.json"
    if mode == "auto":
        assert "built WITHOUT the compiled CPU kernels: it could not be compiled" in done.stderr
        assert set(json.loads(record.read_text())) == {"_C", "_C_cuda"}
    else:
        assert not record.exists()


@pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler")
def test_pip_builds_with_the_torch_of_the_environment_that_it_installs_to(tmp_path):
    # pip's isolated environment: this interpreter without its packages, and the build requirements alone
    hidden = (
        "import sys, sysconfig\n"
        "sys.path = [p for p in sys.path if p not in (sysconfig.get_path('purelib'), sysconfig.get_path('platlib'))]\n"
        "sys.path.append('requirements')\n"
        "import importlib.util; assert importlib.util.find_spec('torch') is None\n"
        "import setuptools; setuptools.setup = lambda **given: print(sorted(m.name for m in given['ext_modules']))\n"
        "import os; sys.argv = ['setup.py']; exec(compile(open('setup.py').read(), os.path.abspath('setup.py'), 'exec'), "
        "{'__file__': os.path.abspath('setup.py'), '__name__': '__main__'})\n"
    )
    copy = tmp_path / "source"
    copy.mkdir()
    shutil.copy(ROOT / "setup.py", copy)
    shutil.copytree(ROOT / "csrc", copy / "csrc")
    requirements = copy / "requirements"
    requirements.mkdir()
    for name in ("setuptools", "pybind11", "_distutils_hack"):
        (requirements / name).symlink_to(Path(importlib.util.find_spec(name).origin).parent)
    environment = {
        **os.environ,
        "MONAI_WSCXR_BUILD": "auto",
        "CUDA_HOME": str(tmp_path / "none"),
    }
    done = subprocess.run(
        [sys.executable, "-c", hidden],
        cwd=copy,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "monai_wscxr._C" in done.stdout, done.stderr


def test_doctor_says_why_a_module_is_missing(tmp_path, monkeypatch):
    from monai_wscxr.ops import _library

    monkeypatch.setattr(_library, "__file__", str(tmp_path / "_library.py"))
    plain = "the extension module monai_wscxr._no_such was not built"
    assert _library._extension("_no_such") == (None, plain)
    for content, said in (
        ('{"_no_such": "there is no C++ compiler"}', f"{plain}: there is no C++ compiler"),
        ("[", plain),
        ("[]", plain),
    ):
        (tmp_path / "left_out.json").write_text(content)
        assert _library._extension("_no_such") == (None, said)
