"""The bundle is found in a checkout; `tests/test_wheel.py` looks for it in a wheel."""

from pathlib import Path

from monai_wscxr.commands.main import main

ROOT = Path(__file__).parents[2]


def test_the_bundle_of_a_checkout(capsys):
    main(["bundle", "path"])
    assert Path(capsys.readouterr().out.strip()) == ROOT / "bundles" / "wscxr_chest_xray"
