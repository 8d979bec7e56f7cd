"""The bundle is found in a checkout and in a wheel."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from monai_wscxr.commands.main import main

ROOT = Path(__file__).parents[2]


def test_the_bundle_of_a_checkout(capsys):
    main(["bundle", "path"])
    assert Path(capsys.readouterr().out.strip()) == ROOT / "bundles" / "wscxr_chest_xray"


def test_a_wheel_contains_the_whole_bundle_and_finds_it(tmp_path):
    build = [sys.executable, "setup.py", "-q", "build", "-b", str(tmp_path / "b"), "egg_info", "-e", str(tmp_path)]
    build += ["bdist_wheel", "-d", str(tmp_path), "-b", str(tmp_path / "t")]
    environment = {**os.environ, "MONAI_WSCXR_BUILD": "none"}
    done = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    site = tmp_path / "site"
    zipfile.ZipFile(next(tmp_path.glob("*.whl"))).extractall(site)
    inside, source = site / "monai_wscxr" / "bundles", ROOT / "bundles"
    files = {path.relative_to(source): path.read_bytes() for path in source.rglob("*") if path.is_file()}
    assert {path.relative_to(inside): path.read_bytes() for path in inside.rglob("*") if path.is_file()} == files
    shown = subprocess.run(
        [sys.executable, "-m", "monai_wscxr", "bundle", "path"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(shown.stdout.strip()) == inside / "wscxr_chest_xray"
    assert "built WITHOUT the compiled CPU kernels: it was built with MONAI_WSCXR_BUILD=none" in done.stderr
    record = json.loads((site / "monai_wscxr" / "ops" / "left_out.json").read_text())
    assert record == dict.fromkeys(("_C", "_C_cuda"), "it was built with MONAI_WSCXR_BUILD=none")
