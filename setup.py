"""Builds the compiled extension where it can be built; see csrc/README.md.

WSCXR_BUILD=auto  (default) CPU module if there is torch and a compiler, CUDA module if there is nvcc too; a module that
                  cannot be built is left out with a message, and the package runs on its references
WSCXR_BUILD=cpu   CPU module or an error          WSCXR_BUILD=cuda  both modules or an error
WSCXR_BUILD=none  no module
WSCXR_SANITIZE=1  the CPU module with address and undefined-behaviour checks (`make sanitize`)
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
MODE = os.environ.get("WSCXR_BUILD", "auto")
# every GPU from Ampere on: code for A100 and H100/H200, and PTX for the rest
GENCODE = [
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_90a,code=sm_90a",
    "-gencode=arch=compute_90,code=compute_90",
]


def say(text: str) -> None:
    """Tell the person who installs; pip shows it with -v and on errors."""
    print(f"monai_wscxr: {text}", file=sys.stderr)


def without(what: str, why: str) -> None:
    """Go on without a module where that is allowed, stop where it is not."""
    if MODE in ("cpu", "cuda"):
        raise SystemExit(f"monai_wscxr: WSCXR_BUILD={MODE} asks for {what}, but {why}")
    say(f"{what} is left out: {why}. The package works without it; `python -m monai_wscxr doctor` says what runs")


def find_cuda() -> Path | None:
    """CUDA folder with bin/nvcc. A wrapper on the PATH does not tell where the libraries are, so known folders come first."""
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"):
        if home and (Path(home) / "bin" / "nvcc").exists():
            return Path(home)
    nvcc = shutil.which("nvcc")
    return Path(nvcc).resolve().parent.parent if nvcc else None


def find_cutlass() -> list[str]:
    """Folders of the CUTLASS headers: those of CUTLASS_HOME, or of the package nvidia-cutlass; empty without any."""
    home = os.environ.get("CUTLASS_HOME")
    package = importlib.util.find_spec("cutlass_library")
    places = [Path(home)] if home else []
    if package is not None and package.submodule_search_locations:
        places.append(Path(next(iter(package.submodule_search_locations))) / "source")
    for place in places:
        folders = [place / "include", place / "tools" / "util" / "include"]
        if (folders[0] / "cutlass" / "cutlass.h").exists() and folders[1].exists():
            return [str(folder) for folder in folders]
    return []


def sources(*patterns: str) -> list[str]:
    """Source files relative to this folder, sorted."""
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


def extensions() -> tuple[list, dict]:
    """Extension modules and the build command."""
    if MODE not in ("auto", "cpu", "cuda", "none"):
        raise SystemExit(f"monai_wscxr: WSCXR_BUILD must be auto, cpu, cuda or none, got {MODE!r}")
    if MODE == "none":
        return [], {}
    cuda_home = find_cuda()
    if cuda_home is not None:
        os.environ.setdefault("CUDA_HOME", str(cuda_home))
    try:
        import pybind11
        from torch.utils import cpp_extension
    except ImportError as error:
        without(
            "the compiled extension", f"{error.name} cannot be imported (install it, then use --no-build-isolation)"
        )
        return [], {}
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if not compiler or not shutil.which(compiler.split()[0]):
        without("the compiled extension", "there is no C++ compiler")
        return [], {}
    optional = MODE == "auto"
    include = [pybind11.get_include(), str(ROOT / "csrc")]
    # torch's stable ABI, as of its oldest supported version: one binary runs on that version and all later ones.
    # Products and sums are rounded one by one, so kernels give the bits of their references.
    stable = "-DTORCH_TARGET_VERSION=0x020b000000000000"
    flags = ["-O3", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra", stable]
    checks: list[str] = []
    if os.environ.get("WSCXR_SANITIZE") == "1":
        # Python's own flags hold -fwrapv, which would hide overflow
        checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-wrapv", "-O1", "-g"]
    modules = [
        cpp_extension.CppExtension(
            "monai_wscxr._C",
            sources("csrc/module.cpp", "csrc/cpu/*.cpp"),
            include_dirs=include,
            extra_compile_args={"cxx": flags + checks},
            extra_link_args=checks[:1],
            optional=optional,
        )
    ]
    if MODE != "cpu" and cuda_home is None:
        if MODE == "cuda":
            without("the CUDA module", "nvcc was not found; set CUDA_HOME")
        say("the CUDA module is left out: nvcc was not found (set CUDA_HOME if it is there)")
    elif MODE != "cpu":
        cutlass, cutlass_define = find_cutlass(), []
        if cutlass:
            cutlass_define = ["-DWSCXR_WITH_CUTLASS"]
        else:
            say(
                "the Hopper kernel of the search is left out, the portable one serves: there are no CUTLASS headers "
                "(pip install --no-deps nvidia-cutlass==4.2.0.0, or set CUTLASS_HOME)"
            )
        nvcc_flags = ["-O3", "-lineinfo", "-DNDEBUG", "-DUSE_CUDA", "--expt-relaxed-constexpr", stable, *GENCODE]
        # for a look at the compiler: WSCXR_NVCC_FLAGS=-Xptxas=-v prints registers and spills of every kernel
        nvcc_flags += [*cutlass_define, *os.environ.get("WSCXR_NVCC_FLAGS", "").split()]
        modules.append(
            cpp_extension.CUDAExtension(
                "monai_wscxr._C_cuda",
                sources("csrc/cuda/*.cpp", "csrc/cuda/*.cu"),
                include_dirs=[*include, *cutlass],
                extra_compile_args={"cxx": [*flags, "-DUSE_CUDA"], "nvcc": nvcc_flags},
                optional=optional,
            )
        )
    return modules, {"build_ext": cpp_extension.BuildExtension}


ext_modules, cmdclass = extensions()
setup(ext_modules=ext_modules, cmdclass=cmdclass)
