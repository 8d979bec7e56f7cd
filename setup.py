"""Build the compiled extension where the machine allows it. csrc/README.md describes the sources.

Environment variables:
    MONAI_WSCXR_BUILD: Modules to build.
        auto (default): the CPU module if torch and a C++ compiler are installed, the CUDA module if nvcc is as well. A
            module that cannot be built is left out with a message, and the package runs its torch references instead.
        cpu: the CPU module, or an error. cuda: both modules, or an error. none: no module.
    MONAI_WSCXR_SANITIZE: 1 builds the CPU module with address and undefined-behaviour sanitizers (`make sanitize`).
    MONAI_WSCXR_NVCC_FLAGS: Additional options of nvcc; -Xptxas=-v prints the registers and spills of every kernel.
    CUDA_HOME, CUTLASS_HOME: Folders of CUDA and CUTLASS if they are not found automatically.

In-place builds (`pip install -e`, `build_ext --inplace`) on Linux also build tests/helpers/_cuda_emulation, which runs the
CUDA kernels on the host for the tests. Wheels never contain it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

ROOT = Path(__file__).parent
MODE = os.environ.get("MONAI_WSCXR_BUILD", "auto")
# Every GPU since Ampere: machine code for A100 and H100/H200, PTX for all others.
GENCODE = [
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_90a,code=sm_90a",
    "-gencode=arch=compute_90,code=compute_90",
]


LEFT_OUT: dict[str, str] = {}  # reason by module, for `monai-wscxr doctor`
RECORD = Path("monai_wscxr", "ops", "left_out.json")


def report(message: str) -> None:
    """Print a message about the build; pip shows it with -v and after errors."""
    print(f"monai_wscxr: {message}", file=sys.stderr)


def leave_out(what: str, reason: str, *modules: str) -> None:
    """Report and note that modules are not built, or stop if MONAI_WSCXR_BUILD requires them."""
    if MODE in ("cpu", "cuda"):
        raise SystemExit(f"monai_wscxr: MONAI_WSCXR_BUILD={MODE} requires {what}, but {reason}")
    report(f"{what} is left out: {reason}. The package works without it; `monai-wscxr doctor` shows what runs")
    LEFT_OUT.update(dict.fromkeys(modules, reason))


def write_record(folder: Path) -> None:
    """Write why modules are missing into the package in a folder; pip hides what a build prints, so the package must know."""
    path = folder / RECORD
    path.unlink(missing_ok=True)
    if LEFT_OUT:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(LEFT_OUT, indent=1), encoding="utf-8")
    if "_C" in LEFT_OUT:
        bar = "*" * 100
        report(
            f"\n{bar}\nbuilt WITHOUT the compiled CPU kernels: {LEFT_OUT['_C']}.\ntorch's own code runs instead, slower\n{bar}"
        )


def find_torch() -> None:
    """Make the torch importable that the package will run with, where pip hides it.

    pip builds in an environment that holds the build requirements only. torch is not one of them, because pip would download
    several GB for each build. The environment that the package is installed to is that of this interpreter, and the extension
    keeps to torch's stable ABI, so a build against its torch runs there and beside every later version.
    """
    if importlib.util.find_spec("torch") is None:
        places = dict.fromkeys(map(sysconfig.get_path, ("purelib", "platlib")))
        sys.path += [place for place in places if (Path(place) / "torch").is_dir()]


def find_cuda() -> Path | None:
    """Find the CUDA folder that contains bin/nvcc.

    nvcc on the PATH may be a wrapper that does not lead to the libraries, so the known folders are tried first.
    """
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"):
        if home and (Path(home) / "bin" / "nvcc").exists():
            return Path(home)
    nvcc = shutil.which("nvcc")
    return Path(nvcc).resolve().parent.parent if nvcc else None


def find_cutlass() -> list[str]:
    """Find the include folders of CUTLASS, in CUTLASS_HOME or the package nvidia-cutlass; return [] if there are none."""
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


def files(*patterns: str) -> list[str]:
    """List the files that match the patterns, sorted, relative to the repository root."""
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


def build_command(base: type, only_in_place: list[Extension]) -> type:
    """Derive the build command from torch's.

    Args:
        base: torch's command.
        only_in_place: additional modules for in-place builds. They are not modules of the distribution.

    Returns:
        The command class.
    """

    class BuildExtension(base):
        def finalize_options(self) -> None:
            distributed = self.distribution.ext_modules
            if self.inplace or self.editable_mode:
                self.distribution.ext_modules = [*distributed, *only_in_place]
            super().finalize_options()
            self.distribution.ext_modules = distributed

        def build_extension(self, extension) -> None:
            # One folder of objects per module: some sources are compiled for two modules, with different options.
            folder = self.build_temp
            self.build_temp = str(Path(folder) / extension.name)
            try:
                super().build_extension(extension)
            except Exception as error:
                LEFT_OUT[extension.name.rpartition(".")[2]] = f"it could not be compiled ({str(error).splitlines()[0]})"
                if isinstance(
                    error, RuntimeError
                ):  # torch's; setuptools skips an optional module only after its own errors
                    raise CompileError(str(error)) from error
                raise
            finally:
                self.build_temp = folder

        def run(self) -> None:
            if self.inplace or self.editable_mode:
                for stale in ROOT.glob("monai_wscxr/_C.cpython-*.so"):  # would be imported before _C.abi3.so
                    stale.unlink()
            super().run()
            write_record(ROOT if self.inplace or self.editable_mode else Path(self.build_lib))

    return BuildExtension


def extensions() -> tuple[list[Extension], dict[str, type]]:
    """Return the extension modules to build, and the build command."""
    if MODE not in ("auto", "cpu", "cuda", "none"):
        raise SystemExit(f"monai_wscxr: MONAI_WSCXR_BUILD must be auto, cpu, cuda or none, got {MODE!r}")
    if MODE == "none":
        leave_out("the compiled extension", "it was built with MONAI_WSCXR_BUILD=none", "_C", "_C_cuda")
        return [], {}
    find_torch()
    cuda_home = find_cuda()
    if cuda_home is not None:
        os.environ.setdefault("CUDA_HOME", str(cuda_home))
    try:
        from torch.utils import cpp_extension
    except ImportError as error:
        again = f"{error.name} could not be imported; install it, then this package again"
        leave_out("the compiled extension", again, "_C", "_C_cuda")
        return [], {}
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if not compiler or not shutil.which(compiler.split()[0]):
        leave_out("the compiled extension", "there is no C++ compiler", "_C", "_C_cuda")
        return [], {}
    optional = MODE == "auto"
    include = [str(ROOT / "csrc")]
    pybind11 = (
        None if importlib.util.find_spec("pybind11") is None else importlib.import_module("pybind11").get_include()
    )
    # torch's stable ABI as of the oldest supported version: one binary runs on that version and all later ones.
    # Without contraction, every product and sum is rounded, so that kernels match the bits of their references.
    stable = "-DTORCH_TARGET_VERSION=0x020b000000000000"
    flags = ["-O3", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra", stable]
    sanitizers: list[str] = []
    if os.environ.get("MONAI_WSCXR_SANITIZE") == "1":
        # Python's own flags include -fwrapv, which would hide integer overflow.
        sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-wrapv", "-O1", "-g"]
    else:
        flags.append("-g0")  # Python's own flags include -g, which makes the module sixteen times as large
    headers = files("csrc/*.h")
    cuda_headers = [*headers, *files("csrc/cuda/*.h")]
    modules = [
        cpp_extension.CppExtension(
            "monai_wscxr._C",
            files("csrc/module.cpp", "csrc/cpu/*.cpp"),
            include_dirs=[*include],  # torch appends to the list
            depends=[*headers, *files("csrc/cpu/*.h", "csrc/cpu/*.inl")],
            extra_compile_args={"cxx": flags + sanitizers},
            extra_link_args=sanitizers[:1],
            optional=optional,
            py_limited_api=True,
        )
    ]
    emulation = []
    if sys.platform == "linux" and pybind11:
        emulation.append(
            Extension(  # uses torch's headers, but no library
                "tests.helpers._cuda_emulation",
                files("csrc/cuda/search.cpp", "csrc/cuda/emulation/*.cpp"),
                include_dirs=[*include, pybind11, str(ROOT / "csrc" / "cuda"), *cpp_extension.include_paths("cpu")],
                depends=[*cuda_headers, *files("csrc/cuda/emulation/*.h")],
                extra_compile_args={"cxx": [*flags, "-DWSCXR_EMULATION"]},
                language="c++",
                optional=optional,
            )
        )
    command = {"build_ext": build_command(cpp_extension.BuildExtension, emulation)}
    if MODE == "cpu":
        LEFT_OUT["_C_cuda"] = "it was built with MONAI_WSCXR_BUILD=cpu"
        return modules, command
    if cuda_home is None:
        leave_out("the CUDA module", "nvcc was not found; set CUDA_HOME if it is installed", "_C_cuda")
    elif not pybind11:
        leave_out("the CUDA module", "pybind11 could not be imported; install it, then this package again", "_C_cuda")
    else:
        cutlass = find_cutlass()
        if not cutlass:
            report(
                "the Hopper kernel of the search is left out and the portable one takes its place: the CUTLASS headers "
                "were not found (pip install --no-deps nvidia-cutlass==4.2.0.0, or set CUTLASS_HOME)"
            )
        nvcc_flags = ["-O3", "-lineinfo", "-DNDEBUG", "-DUSE_CUDA", "--expt-relaxed-constexpr", stable, *GENCODE]
        nvcc_flags += ["-DWSCXR_WITH_CUTLASS"] if cutlass else []
        nvcc_flags += os.environ.get("MONAI_WSCXR_NVCC_FLAGS", "").split()
        modules.append(
            cpp_extension.CUDAExtension(
                "monai_wscxr._C_cuda",
                files("csrc/cuda/*.cpp", "csrc/cuda/*.cu"),
                include_dirs=[*include, pybind11, *cutlass],
                depends=cuda_headers,
                extra_compile_args={"cxx": [*flags, "-DUSE_CUDA"], "nvcc": nvcc_flags},
                optional=optional,
            )
        )
    return modules, command


class BuildPackage(build_py):
    """Copies bundles/ into the package of a wheel, where `find_configs` finds it; an in-place build uses the folder itself."""

    def run(self) -> None:
        if not self.editable_mode:
            self.remove_remains()
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "monai_wscxr" / "bundles"
            shutil.copytree(
                ROOT / "bundles",
                target,
                ignore=shutil.ignore_patterns("__pycache__", ".*", "models"),
                dirs_exist_ok=True,
            )
        if not self.distribution.ext_modules:  # otherwise the build of the modules does
            write_record(ROOT if self.editable_mode else Path(self.build_lib))

    def remove_remains(self) -> None:
        """Remove what earlier builds left in the folder that becomes the wheel, for instance the emulation.

        Modules of this build stay, so that those that are up to date are not linked again.
        """
        modules, build_ext = self.distribution.ext_modules or [], self.get_finalized_command("build_ext")
        kept = {Path(self.build_lib, build_ext.get_ext_filename(module.name)) for module in modules}
        for path in Path(self.build_lib).rglob("*"):
            if path.is_file() and path not in kept:
                path.unlink()


ext_modules, cmdclass = extensions()
# The CPU module runs on every later Python, so a wheel with no other module says so in its name.
abi3 = {"bdist_wheel": {"py_limited_api": "cp310"}} if [m.name for m in ext_modules] == ["monai_wscxr._C"] else {}
setup(ext_modules=ext_modules, cmdclass={**cmdclass, "build_py": BuildPackage}, options=abi3)
