"""The schema of `artefact.json`: types, ranges and relations of its values, checked before anything is built from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_wscxr.system.regular_files import read_regular
from monai_wscxr.system.strict_json import (
    any_object,
    ascending,
    boolean,
    integer,
    list_of,
    number,
    one_of,
    optional,
    parse_json,
    record,
    text,
)

_LARGEST_FILE = 32 << 20  # bytes
_MOST_SCORES = 1 << 20
_DIGEST = text(64, "[0-9a-f]{64}", "a SHA-256 digest of 64 hexadecimal digits")
_CHANNELS = integer(1, 1 << 16)

_CALIBRATION = record(
    {
        "normal_scores": list_of(number(), 1, _MOST_SCORES),
        "false_positive_rate": number(0, 1),
        "threshold": number(),
        "colour_low": number(),
        "colour_high": number(),
        "map_line": number(),
        "basis": one_of("held_out", "site_normals", "site_unlabelled"),
    }
)

_NUMBERS = text(8 << 20, "[A-Za-z0-9+/]*={0,2}", "numbers in base64")
_CHEST_CHECK = record(
    {
        "channels": _CHANNELS,
        "mean": _NUMBERS,
        "variance": _NUMBERS,
        "directions": _NUMBERS,
        "distance_limit": number(0),
        "likeness_limits": list_of(optional(number(0)), 0, 64),
    }
)

_DRIFT = record(
    {
        "channels": _CHANNELS,
        "components": integer(1, 1 << 10),
        "centre": _NUMBERS,
        "directions": _NUMBERS,
        "middle": _NUMBERS,
        "spread": _NUMBERS,
        "normals": _NUMBERS,
        "distances": _NUMBERS,
    }
)

_SITE = record(
    {
        "basis": one_of("site_normals", "site_unlabelled"),
        "images": integer(1, _MOST_SCORES),
        "rejected": integer(0, 1 << 40),
        "aligned": boolean,
        "model_sha256": _DIGEST,
        "threshold": number(),
        "flagged_before": number(0, 1),
        "digests": list_of(text(64, "[0-9a-f]{32,64}", "a digest of a file"), 0, _MOST_SCORES),
    }
)

_GRID = list_of(list_of(number(), 1, 1024), 1, 1024)
_LOCAL_MAP = record({"mean": _GRID, "spread": _GRID})

_ARTEFACT = record(
    {
        "format": integer(1, 1 << 16),
        "code_version": text(64),
        "model_sha256": _DIGEST,
        "backbone": record({"name": text(128), "layers": list_of(text(128), 1, 64), "sha256": _DIGEST}),
        "features": record(
            {
                "neighbourhood": integer(1, 255),
                "align_to": one_of("finest", "coarsest"),
                "aligned_channels": optional(_CHANNELS),
            }
        ),
        "discriminator": record({"depth": integer(1, 64), "width": _CHANNELS, "bias": boolean}),
        "whitening": record({"active": boolean}),
        "preprocessing": record(
            {
                "image_size": integer(32, 4096),
                "mean": list_of(number(-1e3, 1e3), 1, 3),
                "std": list_of(number(1e-6, 1e3), 1, 3),
                "reader_chain": text(64),
                "intensity": one_of("as_read", "standardised"),
            }
        ),
        "map_sigma": number(0, 4096),
        "score_share": number(0, 1),
        "calibration": _CALIBRATION,
        "chest_check": optional(_CHEST_CHECK),
        "local_map": optional(_LOCAL_MAP),
        "drift": optional(_DRIFT),
        "site": optional(_SITE),
        "settings": any_object,
        "training": any_object,
    }
)


def check_calibration(values: Mapping[str, Any]) -> None:
    """Check the values of a calibration.

    Raises:
        ValueError: when a value is missing, unknown, of another type or outside of its range, or the values contradict each
            other.
    """
    _CALIBRATION(values, "calibration")
    if not 0 < values["false_positive_rate"] < 1:
        raise ValueError(f"calibration.false_positive_rate must lie in (0, 1), got {values['false_positive_rate']}")
    if not ascending(values["normal_scores"]):
        raise ValueError("calibration.normal_scores must be in ascending order")
    if not values["colour_low"] < values["colour_high"]:
        raise ValueError(
            f"the colour scale of the calibration runs from {values['colour_low']} to {values['colour_high']}"
        )
    if not values["colour_low"] <= values["map_line"] <= values["colour_high"]:
        raise ValueError(f"calibration.map_line lies outside the colour scale: {values['map_line']}")


def read_artefact(path: Path, version: int) -> dict[str, Any]:
    """Read `artefact.json` and check it, see `parse_artefact`.

    Raises:
        OSError: when the file cannot be read, is not a regular file, or is too large.
    """
    return parse_artefact(read_regular(path, _LARGEST_FILE), version)


def parse_artefact(content: bytes, version: int) -> dict[str, Any]:
    """Parse the content of `artefact.json` and check it.

    Args:
        content: JSON text in UTF-8.
        version: format that this version of the package reads.

    Raises:
        ValueError: when it is too long, is not strict JSON, or does not follow the schema.
        OtherFormatError: when it has another format.
    """
    if len(content) > _LARGEST_FILE:
        raise ValueError(f"it has more than {_LARGEST_FILE:,} bytes")
    description: dict[str, Any] = parse_json(content)
    if not isinstance(description, dict) or type(description.get("format")) is not int:
        raise ValueError("it holds no format number")
    if description["format"] != version:
        raise OtherFormatError(description["format"], str(description.get("code_version", "unknown"))[:64])
    _ARTEFACT(description, "")
    check_calibration(description["calibration"])
    if description["features"]["neighbourhood"] % 2 == 0:
        raise ValueError(f"features.neighbourhood must be odd, got {description['features']['neighbourhood']}")
    channels = len(description["preprocessing"]["mean"]), len(description["preprocessing"]["std"])
    if channels not in ((1, 1), (3, 3)):
        raise ValueError(
            f"preprocessing.mean and std must have three values each, or one, got {channels[0]} and {channels[1]}"
        )
    return description


class OtherFormatError(Exception):
    """An artefact of another format.

    Args:
        version: its format.
        code_version: version of the package that wrote it.
    """

    def __init__(self, version: int, code_version: str) -> None:
        super().__init__(f"format {version}, written by version {code_version}")
        self.version, self.code_version = version, code_version
