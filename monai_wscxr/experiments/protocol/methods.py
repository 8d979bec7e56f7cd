"""The methods of a comparison, and the efforts with which they train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from monai_wscxr.errors import InputError


@dataclass(frozen=True)
class MethodKind:
    """What the tables know of a method; its configuration has the same name, that of WSCXR is `train.yaml`.

    Attributes:
        name: name on the command line.
        title: name in the tables.
        labelled: whether it learns from abnormal images as well, so that it has a k.
        images: whether it learns from images, in place of the shared features.
        map_note: what its map shows, where its publication has none; "" for a published map, or none.
    """

    name: str
    title: str
    labelled: bool = False
    images: bool = False
    map_note: str = ""

    @property
    def configuration(self) -> str:
        """Name of its configuration file."""
        return "train.yaml" if self.name == "wscxr" else f"{self.name}.yaml"


KINDS: Mapping[str, MethodKind] = {
    kind.name: kind
    for kind in (
        MethodKind("wscxr", "WSCXR", labelled=True),
        MethodKind("discriminant", "LDA on image means", labelled=True),
        MethodKind("logistic", "logistic regression on image means", labelled=True),
        MethodKind("nearest", "nearest normal image mean"),
        MethodKind("patchcore", "PatchCore"),
        MethodKind("simplenet", "SimpleNet"),
        MethodKind("cutpaste_reduced", "CutPaste (reduced: frozen network)"),
        MethodKind("ddad", "DDAD", labelled=True, images=True),
        MethodKind("ddad_intra", "DDAD (intra)", images=True),
        MethodKind("cutpaste", "CutPaste", images=True),
        MethodKind("anatpaste", "AnatPaste", images=True),
        MethodKind("squid", "SQUID", images=True, map_note="error of reconstruction, not evaluated in its publication"),
    )
}
METHODS = tuple(KINDS)
ON_FEATURES = tuple(name for name, kind in KINDS.items() if not kind.images)
"""Methods on the shared features of a frozen network: the default of table 1, minutes on two cores."""

EFFORTS = ("paper", "reduced", "smoke")
"""Published length of training; what two cores can afford; a run that only shows that everything runs."""


def parse_methods(text: str) -> list[str]:
    """Return the names in a list separated by commas; "all" stands for all methods."""
    return [name for word in text.split(",") for name in (METHODS if word.strip() == "all" else (word.strip(),))]


def parse_efforts(text: str) -> dict[str, str]:
    """Return the effort of every method.

    Args:
        text: an effort for all methods and, separated by commas, METHOD=EFFORT for single ones.

    Raises:
        InputError: on an unknown effort or method, or without an effort for all.

    Example:
        >>> efforts = parse_efforts("reduced,simplenet=paper")
        >>> efforts["simplenet"], efforts["cutpaste"]
        ('paper', 'reduced')
    """
    general, own = [], {}
    for word in (part.strip() for part in text.split(",")):
        name, equals, effort = word.rpartition("=")
        if effort not in EFFORTS:
            raise InputError(f"unknown effort {effort!r}; the efforts are {', '.join(EFFORTS)}")
        if equals and name not in KINDS:
            raise InputError(f"unknown method {name!r} in {word}; the methods are {', '.join(METHODS)}")
        if equals:
            own[name] = effort
        else:
            general.append(effort)
    if len(general) != 1:
        raise InputError(f"give one effort for all methods, for instance reduced,simplenet=paper; got {text!r}")
    return {**dict.fromkeys(METHODS, general[0]), **own}


def effort_options(configs: Path, method: str, effort: str) -> dict[str, Any]:
    """Return the options that an effort sets, from the key `efforts` of the method's configuration.

    A configuration without that key has no options that depend on the effort.
    """
    content = yaml.safe_load((configs / KINDS[method].configuration).read_text(encoding="utf-8"))
    efforts: Mapping[str, dict[str, Any]] = content.get("efforts", {})
    return dict(efforts[effort]) if efforts else {}


def check_methods(methods: Sequence[str]) -> None:
    """Check names of methods.

    Raises:
        InputError: names those that are unknown, or says that there are none.
    """
    unknown = [name for name in methods if name not in KINDS]
    if unknown or not methods:
        raise InputError(
            f"unknown methods: {', '.join(unknown) or 'none given'}; they are {', '.join(METHODS)}, or all"
        )
