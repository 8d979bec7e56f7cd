"""Weekly report of the node: radiographs, alarm rate against the promised one, drift, and reasons without a score.

It is made from the rows of the queue, which are kept for `--days` after results were sent and hold no patient data.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monai_wscxr.errors import InputError
from monai_wscxr.model.description import ModelDescription
from monai_wscxr.model.drift import FEWEST_IMAGES, measure_drift
from monai_wscxr.model.proportions import LEVEL, wilson_interval
from monai_wscxr.node.measures import seen
from monai_wscxr.prediction.monitoring import Seen
from monai_wscxr.report.weekly import Group, Rate, Week, Weekly, weekly_page
from monai_wscxr.system.atomic import write_text_atomic

_MOST_REASONS = 5


def stored_rows(folder: str | Path) -> list[dict[str, Any]]:
    """Read the rows of a queue from its folder; the node may be running.

    Args:
        folder: folder of a node's queue.

    Returns:
        `received` (seconds since 1970), `reason` and `outcome` of each image with a score or a reason, in order of arrival.

    Raises:
        InputError: when the folder holds no queue, or a damaged one.
    """
    path = Path(folder) / "queue.sqlite"
    if not path.is_file():
        raise InputError(f"{folder} holds no queue of a node; give the --folder of monai-wscxr node")
    try:
        with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            rows = database.execute(
                "SELECT received, reason, outcome FROM items WHERE scored IS NOT NULL ORDER BY number"
            ).fetchall()
        return [{"received": at, "reason": reason, "outcome": json.loads(outcome)} for at, reason, outcome in rows]
    except (sqlite3.DatabaseError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); is it the queue of a node?") from error


def weekly(rows: Sequence[Mapping[str, Any]], model: ModelDescription, weeks: int = 8) -> Weekly:
    """Sum up the images of a node by the week of their arrival.

    Args:
        rows: as of `stored_rows` or `Queue.rows`.
        model: the model of the node.
        weeks: most weeks, the latest ones.
    """
    by_week: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_week.setdefault(_week(row["received"]), []).append(row)
    kept = sorted(by_week)[-weeks:]
    promised = model.calibration.supported_rate
    found = [_summary(name, by_week[name], model, promised) for name in kept]
    images = _places([row for name in kept for row in by_week[name]], model)
    groups = {
        name: _groups([(getattr(image, name), image) for image in images], model, promised)
        for name in ("device", "view")
        if any(getattr(image, name) != "unknown" for image in images)
    }
    return Weekly(found, groups, promised, model.calibration.rate_text, LEVEL, FEWEST_IMAGES, str(model.folder))


def write_weekly(folder: str | Path, report: Weekly, model: ModelDescription) -> list[Path]:
    """Write `node_report.html` and `node_report.json`; return their paths."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report.to_dict(), indent=1) + "\n"
    return [
        write_text_atomic(place / "node_report.html", weekly_page(report, model.colour_scale)),
        write_text_atomic(place / "node_report.json", text),
    ]


def _week(seconds: float) -> str:
    """Return the ISO week of a moment, in UTC."""
    year, week, _ = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).isocalendar()
    return f"{year:04d}-W{week:02d}"


def _summary(name: str, rows: Sequence[Mapping[str, Any]], model: ModelDescription, promised: float) -> Week:
    outcomes = [row["outcome"] for row in rows if row["outcome"]]
    reasons = Counter(row["reason"] for row in rows if row["reason"])
    rate = _rate([bool(outcome["abnormal"]) for outcome in outcomes], promised)
    drift = _drift(_places(rows, model), model)
    return Week(name, len(rows), rate, drift, dict(reasons.most_common(_MOST_REASONS)), sum(reasons.values()))


def _rate(flagged: Sequence[bool], promised: float) -> Rate:
    share = sum(flagged) / len(flagged) if flagged else 0.0
    low, high = wilson_interval(share, len(flagged)) if flagged else (0.0, 1.0)
    return Rate(len(flagged), sum(flagged), low, high, promised)


def _places(rows: Sequence[Mapping[str, Any]], model: ModelDescription) -> list[Seen]:
    """Return images with coordinates that the model can compare; those of an earlier model may have others."""
    components = 0 if model.drift is None else len(model.drift.spread)
    return [image for image in seen([row["outcome"] for row in rows]) if len(image.place) == components]


def _drift(images: Sequence[Seen], model: ModelDescription) -> Any:
    return measure_drift(model.drift, np.array([image.place for image in images], np.float32))


def _groups(images: Sequence[tuple[str, Seen]], model: ModelDescription, promised: float) -> list[Group]:
    found = []
    for name in sorted({key for key, _ in images}):
        members = [image for key, image in images if key == name]
        found.append(Group(name, _rate([image.abnormal for image in members], promised), _drift(members, model)))
    return found
