"""`monai-wscxr train | evaluate | infer`: the runs of the bundle, with the options of its configurations.

`python -m monai.bundle run` does the same. These commands need no checkout, check every word before the run begins, and
leave out what MONAI says about itself.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_wscxr.commands.parsers import Commands, Parser
from monai_wscxr.errors import InputError

if TYPE_CHECKING:
    from monai_wscxr.training.configs import Option

_WORKFLOWS = {
    "train": ("train.yaml", "training", "train a model, or a compared method with --config_file"),
    "evaluate": ("evaluate.yaml", "evaluating", "figures and report of a trained model on the test part of a data set"),
    "infer": ("inference.yaml", "inferring", "maps and scores for a folder; `predict` does more and resumes"),
}
_REQUIRED = {"dataset_dir": "DIR", "output_dir": "OUT"}
_MARK = "option "  # in front of the options of configurations among the parsed values


def add_parser(commands: Commands) -> None:
    """Add the three commands to the program's parser."""
    for name, (file, run_id, text) in _WORKFLOWS.items():
        parser = commands.add_parser(
            name,
            usage=f"monai-wscxr {name} --dataset_dir DIR --output_dir OUT [--config_file FILE] [--OPTION VALUE ...]",
            help=text,
            description=f"{text[0].upper()}{text[1:]}: the id `{run_id}` of {file}. SIGTERM and Ctrl-C end a run with status "
            "75; the same command resumes it.",
        )
        parser.add_argument(
            "--config_file",
            action="append",
            default=[],
            metavar="FILE",
            help=f"a configuration on top of {file}: a path, or the name of a file in the bundle; repeatable",
        )
        parser.set_defaults(run=run, workflow=name)
        assert isinstance(parser, Parser)
        parser.fill = partial(_add_options, file)


def run(options: argparse.Namespace) -> None:
    """Run a workflow of the bundle to its end."""
    from monai.bundle import ConfigWorkflow

    from monai_wscxr.errors import find_input_error
    from monai_wscxr.system.processes import lost_process
    from monai_wscxr.system.signals import stop_cleanly

    file, run_id, _ = _WORKFLOWS[options.workflow]
    files = _configurations(file, options.config_file)
    given = {name.removeprefix(_MARK): value for name, value in vars(options).items() if name.startswith(_MARK)}
    stop_cleanly()
    logging.getLogger("monai.bundle.workflows").setLevel(logging.ERROR)
    try:
        workflow = ConfigWorkflow(
            config_file=[str(path) for path in files],
            meta_file=str(files[0].parent / "metadata.json"),
            logging_file=str(files[0].parent / "logging.conf"),
            run_id=run_id,
            workflow_type="train" if options.workflow == "train" else "infer",
            **given,
        )
        workflow.initialize()
        workflow.run()
        workflow.finalize()
    except Exception as error:  # MONAI wraps the errors of a configuration
        found = find_input_error(error) or lost_process(error)
        if found is None:
            raise
        raise found from None


def _configurations(file: str, on_top: Sequence[str]) -> list[Path]:
    """Return the paths of the bundle's configuration and of those on top of it.

    Args:
        file: name of the bundle's configuration.
        on_top: names in the bundle, or paths, or lists of both as MONAI takes them: "['a.yaml','b.yaml']".

    Raises:
        InputError: when one does not exist.
    """
    from monai_wscxr.training.configs import find_configs

    folder = find_configs()
    found = [folder / file]
    for name in (part.strip(" '\"") for text in on_top for part in text.strip("[] ").split(",")):
        path = next((path for path in (Path(name), folder / name) if path.is_file()), None)
        if path is None:
            own = [path.name for path in folder.glob("*.yaml") if path.name not in {f for f, *_ in _WORKFLOWS.values()}]
            raise InputError(f"--config_file {name} does not exist; the bundle has {', '.join(sorted(own))}")
        if path.resolve() != found[0].resolve():
            found.append(path)
    return found


def _add_options(file: str, parser: Parser, words: Sequence[str]) -> None:
    """Add the options of the configurations to a parser, with the values of components that the command line names."""
    from monai_wscxr.training.configs import all_keys, described_options, unknown_option

    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--config_file", action="append", default=[], nargs="?", const="")
    files = _configurations(file, [text for text in first.parse_known_args(list(words))[0].config_file if text])
    options = {option.name: option for path in files for option in described_options(path)}
    for name in sorted(options, key=lambda name: name not in _REQUIRED):
        _add_option(parser, options[name])
    for word in words:
        name = word.partition("=")[0]
        if name.startswith("--") and ("#" in name or "::" in name) and name not in parser._option_string_actions:
            key = name[2:].replace("::", "#")
            known = all_keys(files)
            if key not in known:
                raise unknown_option(key, known, "--")
            parser.add_argument(
                name, dest=f"{_MARK}{key}", type=_value, default=argparse.SUPPRESS, help="a component's value"
            )


def _add_option(parser: argparse.ArgumentParser, option: Option) -> None:
    """Add an option of a configuration; its default stays in the file, so that the file alone decides."""
    default = option.default
    text = f"{option.comment} ({option.default_text})" if option.default_text else option.comment
    convert, metavar = _CONVERTERS.get(type(default), (_value, "VALUE"))
    metavar = _REQUIRED.get(option.name, metavar)
    switch: dict[str, Any] = {"nargs": "?", "const": True} if isinstance(default, bool) else {}
    parser.add_argument(
        f"--{option.name}",
        dest=f"{_MARK}{option.name}",
        type=partial(_converted, convert),
        default=argparse.SUPPRESS,
        required=option.name in _REQUIRED,
        metavar=metavar,
        help=text.replace("%", "%%"),
        **switch,
    )


def _converted(convert: Callable[[str], Any], text: str) -> Any:
    """Convert the text of an option; expressions and references are left to MONAI."""
    return text if text.startswith(("$", "@", "%")) else convert(text)


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"must be true or false, got {text!r}")
    return text.lower() == "true"


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None


def _listed(text: str) -> list[Any]:
    """Convert "a,b" or a YAML list."""
    value = _value(text)
    return value if isinstance(value, list) else [part.strip() for part in text.split(",") if part.strip()]


def _value(text: str) -> Any:
    """Convert a YAML value; what is none stays a text."""
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return text if isinstance(value, dict) else value


_CONVERTERS: dict[type, tuple[Callable[[str], Any], str]] = {
    bool: (_boolean, "true|false"),
    int: (_whole, "N"),
    float: (_number, "X"),
    str: (str, "TEXT"),
    list: (_listed, "A,B,..."),
}
