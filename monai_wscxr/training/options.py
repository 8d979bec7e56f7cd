"""Options of a run: which of them make a run this run, and checks of what was given on the command line of MONAI."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle import run as bundle_run

from monai_wscxr.errors import InputError
from monai_wscxr.training.configs import option_names, options_text, unknown_option

# Options of the configurations that are no settings of a run: with another value the same command continues in the same output
# folder. Every other option is a setting.
NOT_SETTINGS: Mapping[str, str] = {
    "bundle_root": "a path",
    "output_dir": "the folder that the settings belong to",
    "overwrite": "what to do with another run in the output folder",
    "device": "the same model up to rounding; a run may continue on another machine",
    "strict": "turns a warning into an error",
    "allow_overlap": "lets a run start; recorded in the artefact as `overlap`",
    "max_bad_share": "lets a run start; recorded in the artefact as `rejected`",
    "cache": "a path",
    "extract_batch_size": "speed and memory",
    "read_workers": "speed",
    "runtime": "the same model up to rounding; recorded in the artefact",
    "bank_memory": "memory; the same model bit for bit",
    "val_interval": "how often figures are logged and states are kept",
    "progress": "what is shown",
    "tensorboard": "what is recorded beside the model",
    "mlflow": "what is recorded beside the model",
    "timeout": "how long processes wait for each other",
    "rank": "number of a process",
    "networks_at_once": "speed; the same networks bit for bit",
    "normative_dir": "a path",
}
_OWN = {name for name in inspect.signature(bundle_run).parameters if name != "override"}
_TRACKING = {"tracking_uri", "experiment_name", "run_name", "save_execute_config", "is_not_rank0"}


def run_settings(**names: str) -> dict[str, Any]:
    """Collect the settings of a run: the values of all options of the configuration that are not in `NOT_SETTINGS`.

    For the key `settings` of a configuration. A run with other settings needs another output folder (`RunFolder`).

    Args:
        names: further settings, for instance the name of a compared method.

    Returns:
        values as JSON, by name of the option.

    Raises:
        InputError: when an option's value is not JSON-like.
        RuntimeError: when called from outside of a configuration.
    """
    parser = _enclosing_configuration()
    settings: dict[str, Any] = {}
    for name in option_names(parser.get()):
        if name not in NOT_SETTINGS:
            value = parser.get_parsed_content(name)
            try:
                settings[name] = json.loads(json.dumps(value))
            except (TypeError, ValueError) as error:
                raise InputError(f"--{name} must be a plain value, got {value!r}") from error
    return {**names, **settings}


def _enclosing_configuration() -> ConfigParser:
    """Find the parser of the configuration in which the calling expression stands.

    MONAI hands an expression the values that it refers to, but not the configuration. Naming all options in each file instead
    is what once made the files disagree.
    """
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, ConfigParser):
            return owner
        frame = frame.f_back
    raise RuntimeError(
        "this belongs into a configuration, as an expression such as $monai_wscxr.training.run_settings()"
    )


def from_command_line() -> bool:
    """Tell whether this process is `python -m monai.bundle ...`."""
    return Path(sys.argv[0]).parts[-3:] == ("monai", "bundle", "__main__.py")


def check_options(arguments: Sequence[str]) -> dict[str, bool]:
    """Refuse a run id or an option that the configuration does not have, and values of the wrong type.

    MONAI would ignore the options, and find the rest when the output folder belongs to the run already.

    Args:
        arguments: of `python -m monai.bundle run`, without the program's name.

    Returns:
        values of truth that MONAI keeps as texts, such as "false", by name of their option; see `set_values`.

    Raises:
        InputError: with the unknown name and similar ones, or the option and what it takes.
        SystemExit: after `--help`, which prints the options.
    """
    given = _options(arguments)
    files = [f.strip("'\" ") for f in given.get("config_file", "").strip("[]").split(",") if f.strip("'\" ")]
    if not files:
        return {}
    if "help" in given:
        print(options_text([Path(file) for file in files]))
        sys.exit(0)
    parser = ConfigParser()
    parser.read_config(files)
    known = [str(key) for key in parser.get()]
    run_id = given.get("run_id") or next(iter(arguments[1:2]), "")
    if arguments[0] == "run" and run_id and not run_id.startswith("-") and run_id not in parser:
        names = [name for name in ("training", "evaluating", "inferring") if name in parser]
        raise InputError(f"the configuration has nothing to run by the name {run_id}; it has {', '.join(names)}")
    plain = option_names(parser.get())
    truths: dict[str, bool] = {}
    for name, text in given.items():
        if name in plain:
            _check_type(name, parser[name], text)
            if isinstance(parser[name], bool) and text.lower() in ("true", "false"):
                truths[name] = text.lower() == "true"
        if name in _OWN | _TRACKING or name.replace("#", "::") in parser:
            continue
        raise unknown_option(name, known, "--")
    return truths


def set_values(values: Mapping[str, bool]) -> None:
    """Set options of the configuration in which the calling expression stands, before anything has used them.

    Args:
        values: by name of the option.

    Raises:
        RuntimeError: when called from outside of a configuration.
    """
    if not values:
        return
    parser = _enclosing_configuration()
    config: Any = parser.config
    for name, value in values.items():
        config[name] = value  # not through the parser, which would forget what it has resolved
        item = parser.ref_resolver.get_item(name)
        if item is not None:
            item.update_config(value)


def _check_type(name: str, default: Any, text: str) -> None:
    """Check that the text of an option is a number or a truth value where its default is one; `$` expressions pass.

    Raises:
        InputError: otherwise.
    """
    if text.startswith(("$", "@", "%")):
        return
    if isinstance(default, bool):
        if text.lower() not in ("true", "false") and not text.startswith("--") and text:
            raise InputError(f"--{name} must be true or false, got {text!r}")
        return
    if not isinstance(default, (int, float)):
        return
    kind, what = (int, "a whole number") if isinstance(default, int) else (float, "a number")
    try:
        kind(text)
    except ValueError:
        raise InputError(f"--{name} must be {what}, for instance {default}; got {text!r}") from None


def _options(arguments: Sequence[str]) -> dict[str, str]:
    """Read names and values of the options of a command line."""
    found: dict[str, str] = {}
    for position, argument in enumerate(arguments):
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            following = arguments[position + 1] if position + 1 < len(arguments) else ""
            found[name.replace("-", "_") if "_" not in name else name] = value if equals else following
    return found
