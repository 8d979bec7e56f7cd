"""Drift over many prediction runs: by week, by device and by view, and a test martingale over the stream of images."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monai_wscxr.errors import InputError
from monai_wscxr.model.description import ModelDescription
from monai_wscxr.model.drift import Drift, log_martingale, measure_drift, online_p_values
from monai_wscxr.report.drift import Group, write_drift_report
from monai_wscxr.system.atomic import write_text_atomic

ALARM = 2.0
"""Base-10 logarithm of the martingale at which exchangeability is rejected; chance reaches it in at most 1 % of streams."""
_UNKNOWN = "unknown"


@dataclass(frozen=True)
class Seen:
    """One scored image of a run.

    Attributes:
        run: name of the run's folder.
        place: its coordinates for drift.
        abnormal: whether it was flagged.
        week, device, view: as its header tells; "unknown" otherwise.
    """

    run: str
    place: tuple[float, ...]
    abnormal: bool
    week: str
    device: str
    view: str


@dataclass(frozen=True)
class Monitoring:
    """Result over all runs.

    Attributes:
        drift: of all images together.
        groups: by the name of a grouping ("week" or "run", "device", "view"), in order.
        martingale: [T] base-10 logarithm of the martingale after each image of the stream.
        by: "week" or "run": what the stream is ordered and grouped by.
    """

    drift: Drift
    groups: dict[str, list[Group]]
    martingale: np.ndarray
    by: str

    @property
    def alarm(self) -> int | None:
        """Number of images after which the martingale first reaches its alarm; None when it never does."""
        reached = np.flatnonzero(self.martingale >= ALARM)
        return int(reached[0]) + 1 if len(reached) else None

    def sentences(self, model: str = "OUT") -> list[str]:
        """Return the result as sentences for the console."""
        lines = []
        for name, groups in self.groups.items():
            width = max(len(group.name) for group in groups)
            lines += [
                f"{name} {group.name:<{width}}  {group.images:>6} images  flagged {group.flagged / group.images:>6.1%}  "
                + {None: "too few images", True: f"DRIFT, shift {group.drift.shift:.2f}", False: "no drift"}[
                    group.drift.named
                ]
                for group in groups
            ]
        return [*lines, *self.conclusions(model)]

    def conclusions(self, model: str = "OUT") -> list[str]:
        """Return what all images together say, as sentences."""
        lines = []
        if self.alarm is not None:
            lines.append(
                f"within {self.alarm} images the stream left what calibrated the model (the martingale reached 100, "
                "which chance reaches in 1 % of streams of normal images; many abnormal ones can do so as well)"
            )
        lines.append(self.drift.sentence(model) or f"no drift over all {self.drift.images} images")
        return lines


def read_runs(paths: Sequence[str | Path], model: ModelDescription) -> list[Seen]:
    """Read the scored images of prediction runs.

    Args:
        paths: output folders of `predict`, or the `predictions.csv` or `predictions.json` in them.
        model: the model that made them.

    Raises:
        InputError: when a file is missing or damaged, or comes from another model or one without a reference for drift.
    """
    if model.drift is None:
        raise InputError(f"{model.folder} has no reference for drift: its training had too few normal images")
    seen = []
    for path in map(Path, paths):
        folder = path if path.is_dir() else path.parent
        file = folder / "predictions.json"
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            of, records = content["model"]["sha256"], content["predictions"]
        except OSError as error:
            raise InputError(
                f"{file} cannot be read ({error.strerror}); give the --output folders of predict"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{file} is damaged or no result of predict; give the --output folders of predict"
            ) from error
        if of != model.sha256:
            raise InputError(
                f"{file} was made by another model ({str(of)[:12]}, not {model.sha256[:12]}); give its folder"
            )
        try:
            seen += [_seen(folder, record) for record in records if "site_coordinates" in record]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{file} is damaged: a prediction lacks its coordinates") from error
    components = len(model.drift.spread)
    if any(len(image.place) != components for image in seen):
        raise InputError(
            "the predictions were compared with another reference for drift; give the model that made them"
        )
    if not seen:
        raise InputError("these runs have no scored images")
    return seen


def monitor(model: ModelDescription, images: Sequence[Seen]) -> Monitoring:
    """Compare images with what calibrated the model: over all, by week (or run), device and view, and as a stream.

    Args:
        model: a model with a reference for drift.
        images: images of all runs, in order. Where every image has a week, the stream is ordered by weeks.
    """
    assert model.drift is not None
    by = "week" if all(image.week != _UNKNOWN for image in images) else "run"
    ordered = sorted(images, key=lambda image: image.week) if by == "week" else list(images)
    places = np.array([image.place for image in ordered], np.float32)
    keys: dict[str, Callable[[Seen], str]] = {
        by: lambda image: image.week if by == "week" else image.run,
        "device": lambda image: image.device,
        "view": lambda image: image.view,
    }
    groups = {}
    for name, key in keys.items():
        names = [key(image) for image in ordered]
        if name != by and set(names) == {_UNKNOWN}:
            continue
        found = []
        for one in dict.fromkeys(names):
            members = [n for n, other in enumerate(names) if other == one]
            flagged = sum(ordered[n].abnormal for n in members)
            found.append(Group(one, len(members), flagged, measure_drift(model.drift, places[members])))
        groups[name] = found
    distances = model.drift.square_distances(places)
    martingale = log_martingale(online_p_values(model.drift.distances, distances))
    return Monitoring(measure_drift(model.drift, places), groups, martingale, by)


def write_monitoring(folder: str | Path, model: ModelDescription, result: Monitoring) -> None:
    """Write `drift.csv` and the page `drift.html`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("grouping", "name", "images", "flagged", "shift", "drift"))
    for name, groups in result.groups.items():
        for group in groups:
            shift = "" if math.isnan(group.drift.shift) else f"{group.drift.shift:.4f}"
            named = "" if group.drift.named is None else str(group.drift.named).lower()
            table.writerow((name, group.name, group.images, group.flagged, shift, named))
    write_text_atomic(folder / "drift.csv", text.getvalue())
    write_drift_report(
        folder / "drift.html",
        result.groups,
        result.martingale,
        ALARM,
        [f"{line[0].upper()}{line[1:]}." for line in result.conclusions(str(model.folder))],
        model.colour_scale,
    )


def _seen(folder: Path, record: dict[str, Any]) -> Seen:
    """Return the image of a record of `predictions.json`."""
    place = tuple(float(value) for value in record["site_coordinates"])
    if not all(map(math.isfinite, place)):
        raise ValueError("coordinates must be finite")
    acquired = record.get("acquired", {})
    week, device, view = (str(acquired.get(name, _UNKNOWN)) for name in ("week", "device", "view"))
    return Seen(folder.name, place, bool(record["abnormal"]), week, device, view)
