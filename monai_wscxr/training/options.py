"""Options of the bundle's configurations."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path

from monai.bundle import ConfigParser
from monai.bundle import run as bundle_run

from monai_wscxr.errors import InputError

_OWN = {name for name in inspect.signature(bundle_run).parameters if name != "override"}


_TRACKING = {"tracking_uri", "experiment_name", "run_name", "save_execute_config", "is_not_rank0"}


def from_command_line() -> bool:
    """Whether this process is `python -m monai.bundle ...`."""
    return Path(sys.argv[0]).parts[-3:] == ("monai", "bundle", "__main__.py")


def find_configs(bundle: str | Path | None = None) -> Path:
    """The folder with `train.yaml`: of the bundle given, or of the one beside the package.

    Raises:
        InputError: when there is none.
    """
    root = Path(bundle) if bundle else Path(__file__).resolve().parents[2] / "bundles" / "wscxr_chest_xray"
    configs = root / "configs"
    if not (configs / "train.yaml").is_file():
        raise InputError(f"{configs} has no train.yaml; give the folder of the bundle wscxr_chest_xray with --bundle")
    return configs


def check_options(arguments: Sequence[str]) -> None:
    """Refuse options that the configuration does not have; MONAI would take them in and ignore them.

    Args:
        arguments: of `python -m monai.bundle run`, without the program's name.

    Raises:
        InputError: with the unknown option and what comes close.
    """
    given = _options(arguments)
    files = given.get("config_file")
    if not files:
        return
    parser = ConfigParser()
    parser.read_config([f.strip("'\" ") for f in files.strip("[]").split(",")])
    known = [str(key) for key in parser.get()]
    for name in given:
        if name in _OWN | _TRACKING or name.replace("#", "::") in parser:
            continue
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean --{', --'.join(close)}?" if close else "see the top of the configuration file for all"
        raise InputError(f"unknown option --{name}: {hint}")


def _options(arguments: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for position, argument in enumerate(arguments):
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            following = arguments[position + 1] if position + 1 < len(arguments) else ""
            found[name.replace("-", "_") if "_" not in name else name] = value if equals else following
    return found
