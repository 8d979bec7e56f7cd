"""`monai-wscxr doctor`: show what is installed and which code runs each operator."""

from __future__ import annotations

import argparse
import platform
from importlib import metadata
from importlib.util import find_spec

import monai_wscxr
from monai_wscxr.commands.parsers import Commands

RUNTIMES = ("onnxruntime", "openvino")
_MISSING = "not installed"
_MODULES = {"pytorch-ignite": "ignite", "scikit-learn": "sklearn"}
_PACKAGES = ("torch", "torchvision", "monai", "pytorch-ignite", "timm", "pydicom", "nibabel", "scikit-learn", "numpy")


def add_parser(commands: Commands) -> None:
    """Add the command to the program's parser."""
    parser = commands.add_parser("doctor", help="show what is installed and which code runs each operator")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print versions, extensions, devices, implementations of the operators, and DICOM decoders."""
    from monai_wscxr.data.radiograph.decoders import installed_decoders
    from monai_wscxr.system.cache_folder import cache_root

    line("monai_wscxr", monai_wscxr.__version__)
    line("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in _PACKAGES:
        line(package, version(package) or _MISSING)
    if version("torch") is None:
        line(
            "full package",
            "not installed, for training and all else but exported models: pip install 'monai-wscxr[full]'",
        )
        states = {runtime: version(runtime) or _MISSING for runtime in RUNTIMES}
    else:
        _operators()
        from monai_wscxr.features.inference import runtime_states

        states = runtime_states()
    for runtime, state in states.items():
        line("runtime", f"{runtime}: {state}")
    line("cache", cache_root())
    print("DICOM decoders")
    for syntax, library in installed_decoders().items():
        line(f"  {library}", syntax)


def line(name: str, value: object) -> None:
    """Print a line of the table."""
    print(f"{name:<16} {value}")


def version(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return metadata.version(package) if find_spec(_MODULES.get(package, package)) else None
    except (metadata.PackageNotFoundError, ModuleNotFoundError):
        return None


def _operators() -> None:
    """Print the extensions, devices, and implementations of the operators."""
    import torch

    from monai_wscxr import ops

    line("CPU threads", torch.get_num_threads())
    line("extension", ops.EXTENSION_STATE)
    if ops.EXTENSION is not None:
        line("  built with", ", ".join(f"{k} {v}" for k, v in ops.EXTENSION.build_info().items()))
        features = [name for name, present in ops.EXTENSION.cpu_capabilities().items() if present]
        line("  CPU", ", ".join(features) or "no vector extensions that the kernels use")
    line("CUDA extension", ops.CUDA_EXTENSION_STATE)
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            line("GPU", f"{torch.cuda.get_device_name(index)}, {torch.cuda.mem_get_info(index)[1] / 2**30:.0f} GiB")
    else:
        line("GPU", "none that torch can use")
    for operator in ops.OPERATORS:
        for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            chosen = ops.backend(operator, device)
            line(operator, f"{device}: {chosen.name} ({chosen.reason})")
