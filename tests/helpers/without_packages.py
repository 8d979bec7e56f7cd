"""Processes in which some packages cannot be imported, as if they were not installed."""

import os
import subprocess
import sys
from pathlib import Path

FULL_ONLY = (
    "torch",
    "torchvision",
    "monai",
    "ignite",
    "timm",
    "scipy",
    "sklearn",
    "safetensors",
    "yaml",
    "fire",
    "onnx",
)
"""Packages that an installation for prediction alone does not have."""
ROOT = Path(__file__).parents[2]
_HOOK = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {packages!r} or name.startswith("monai_wscxr._C"):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


def environment(folder, packages=FULL_ONLY):
    """Return the environment of processes, and of all that they start, without these packages; `folder` takes the hook."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(_HOOK.format(packages=tuple(packages)))
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


def command(environment, *arguments):
    """Run `monai-wscxr`; return the finished process."""
    line = [sys.executable, "-m", "monai_wscxr", *map(str, arguments)]
    return subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=300)
