"""The version number: monai_wscxr/__init__.py holds it, and every other file agrees."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import monai_wscxr

ROOT = Path(__file__).parents[1]


def test_the_build_reads_the_version_from_the_package():
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        env={**os.environ, "MONAI_WSCXR_BUILD": "none"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.split()[-1] == monai_wscxr.__version__
    assert not re.search(r'^version *= *"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE), "a second source"


def test_the_bundle_names_the_version_of_the_package():
    metadata = json.loads((ROOT / "bundles" / "wscxr_chest_xray" / "configs" / "metadata.json").read_text())
    assert metadata["version"] == monai_wscxr.__version__
    assert metadata["version"] in metadata["changelog"]
    assert metadata["required_packages_version"]["monai_wscxr"] == monai_wscxr.__version__


def test_the_citation_names_the_version_of_the_package():
    assert f"\nversion: {monai_wscxr.__version__}\n" in (ROOT / "CITATION.cff").read_text()
