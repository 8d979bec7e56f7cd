"""The bundle's configurations as files: where they lie, which options they have, and what their comments say of them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from monai_wscxr.errors import InputError

# components that stand in a configuration as expressions
_EXPRESSIONS = ("network",)
_RESERVED = ("imports", "settings", "training", "evaluating", "inferring", "initialize", "run", "finalize", "efforts")


RUN_OPTIONS = ("dataset_dir", "output_dir", "k", "seed")
"""Options that belong to one training: a command that runs many trainings sets them itself."""


@dataclass(frozen=True)
class Option:
    """An option of a configuration.

    Attributes:
        name: its key.
        default: its value in the file.
        comment: what the file says beside it, with units and ranges; "" for nothing.
    """

    name: str
    default: Any
    comment: str

    @property
    def default_text(self) -> str:
        """Return "default: VALUE" as it is written on a command line; "" where the file computes it, or there is none."""
        if self.default == "" or (isinstance(self.default, str) and self.default.startswith(("$", "@", "%"))):
            return ""
        if isinstance(self.default, list):
            return f"default: {','.join(map(str, self.default)) or 'none'}"
        if self.default is None or isinstance(self.default, bool):
            return f"default: {'null' if self.default is None else str(self.default).lower()}"
        return f"default: {self.default:g}" if isinstance(self.default, float) else f"default: {self.default}"


def find_configs(bundle: str | Path | None = None) -> Path:
    """Find the folder with `train.yaml`: that of the given bundle, or of the one that belongs to the package.

    In a checkout that is bundles/wscxr_chest_xray beside the package; a wheel holds a copy inside the package.

    Raises:
        InputError: when there is none.
    """
    package = Path(__file__).resolve().parents[1]
    places = (
        [Path(bundle)] if bundle else [folder / "bundles" / "wscxr_chest_xray" for folder in (package, package.parent)]
    )
    configs = next((place for place in places if place.is_dir()), places[-1]) / "configs"
    if not (configs / "train.yaml").is_file():
        raise InputError(f"{configs} has no train.yaml; give the folder of the bundle wscxr_chest_xray with --bundle")
    return configs


def option_names(configuration: Mapping[str, Any]) -> list[str]:
    """List the options of a configuration: its keys at the top but components, sections and lists of steps.

    Args:
        configuration: as read from its files, with the overrides of the command line.
    """

    def is_option(name: str, value: Any) -> bool:
        if name.startswith("_") or name in _EXPRESSIONS or isinstance(value, Mapping):
            return False
        if isinstance(value, list):
            return not any(isinstance(part, str) and part.startswith(("$", "%")) for part in value)
        if isinstance(value, str):
            return not value.startswith("%")
        return value is None or isinstance(value, (bool, int, float))

    return [name for name, value in configuration.items() if name not in _RESERVED and is_option(name, value)]


def described_options(file: Path) -> list[Option]:
    """Read the options of a configuration with the comments beside them.

    In every file of the bundle they are the keys above the first component.

    Raises:
        InputError: when the file does not exist or is no YAML mapping.
    """
    text, configuration = _read(file)
    found = []
    for name, value in configuration.items():
        if name.lstrip("+") in _RESERVED:
            continue
        if isinstance(value, Mapping) or (isinstance(value, str) and value.startswith("$monai_wscxr.")):
            break
        found.append(Option(name, value, _comment(text, name)))
    return found


def default_values() -> dict[str, Any]:
    """Return the defaults of the options of `train.yaml` by name."""
    return {option.name: option.default for option in described_options(find_configs() / "train.yaml")}


def options_text(files: Sequence[Path]) -> str:
    """List the options of configurations, one per line with default and comment; later files are on top of earlier ones.

    Raises:
        InputError: as `described_options`.
    """
    options = {option.name: option for file in files for option in described_options(file)}
    return "\n".join(
        f"--{o.name:<20} {o.comment or '-'}{f' ({d})' if (d := o.default_text) else ''}" for o in options.values()
    )


def all_keys(files: Sequence[Path]) -> set[str]:
    """Return the names of all values and components of configurations, such as `k` or `train#trainer#max_epochs`.

    Raises:
        InputError: as `described_options`.
    """
    found: set[str] = set()

    def walk(prefix: str, value: Any) -> None:
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
        for key, part in pairs:
            name = f"{prefix}#{key}" if prefix else str(key).lstrip("+")
            found.add(name)
            walk(name, part)

    for file in files:
        walk("", _read(file)[1])
    return found


def check_settable(names: Iterable[str], files: Sequence[Path] = ()) -> None:
    """Check options for many trainings: the configurations have them, and they belong to none of the trainings alone.

    Args:
        names: names of options, or of values of components such as `train#trainer#max_epochs`.
        files: the configurations; none means the bundle's `train.yaml`.

    Raises:
        InputError: names the first other option, and options that come close to it.
    """
    known = {name for name in all_keys(files or [find_configs() / "train.yaml"]) if "#" not in name}
    for name in names:
        if name in RUN_OPTIONS:
            raise InputError(
                f"{name} cannot be set for all trainings; the command has an option for it, or sets it itself"
            )
        if name.partition("#")[0] not in known:
            raise unknown_option(name, known - set(RUN_OPTIONS))


def unknown_option(name: str, known: Collection[str], prefix: str = "") -> InputError:
    """Return the error for an unknown option, which names options that come close to it.

    Args:
        name: what was given.
        known: names of all options.
        prefix: in front of names, for instance "--".

    Example:
        >>> print(unknown_option("retentoin", {"k", "retention"}, "--"))
        unknown option --retentoin: did you mean --retention?
    """
    close = difflib.get_close_matches(name, sorted(known), n=3)
    names = ", ".join(f"{prefix}{found}" for found in close)
    hint = f"did you mean {names}?" if close else "see the top of the configuration file for all"
    return InputError(f"unknown option {prefix}{name}: {hint}")


def _read(file: Path) -> tuple[str, Mapping[str, Any]]:
    """Read a configuration: its text and its content."""
    try:
        text = file.read_text(encoding="utf-8")
        configuration = yaml.safe_load(text)
    except FileNotFoundError:
        raise InputError(f"there is no configuration {file}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"the configuration {file} cannot be read ({' '.join(str(error).split())})") from None
    if not isinstance(configuration, Mapping):
        raise InputError(f"the configuration {file} holds no options; it must be a YAML mapping")
    return text, configuration


def _comment(text: str, name: str) -> str:
    """Return the comment on the line of a key, and on lines below it that hold nothing but the rest of that comment."""
    found = re.search(rf"(?m)^{re.escape(name)}:(?:[^\n#\"']|\"[^\"]*\"|'[^']*')*#(.*(?:\n +#.*)*)", text)
    return " ".join(found[1].replace("#", " ").split()) if found else ""
