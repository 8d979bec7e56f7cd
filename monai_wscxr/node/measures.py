"""What the node and the service say about themselves: latency, rate, drift, and metrics in the text format of Prometheus."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from monai_wscxr.model.description import ModelDescription
from monai_wscxr.prediction.monitoring import Seen, monitor

SHARES = (0.5, 0.95)
Sample = tuple[Mapping[str, str], float]
"""A value of a metric with its labels."""


def quantiles(values: Sequence[float]) -> list[float | None]:
    """Return the quantiles `SHARES` of numbers; None without any."""
    return [float(np.quantile(values, share)) if len(values) else None for share in SHARES]


def per_minute(times: Sequence[float], seconds: float = 600.0) -> float:
    """Return how many events per minute there were in the last `seconds`, from their times."""
    since = time.time() - seconds
    return sum(at >= since for at in times) * 60 / seconds


def seen(outcomes: Sequence[Mapping[str, Any]]) -> list[Seen]:
    """Return outcomes with coordinates (`prediction.scoring.Score.outcome`) as images for the drift monitor."""
    found = []
    for outcome in outcomes:
        if "site_coordinates" in outcome:
            acquired = outcome.get("acquired", {})
            week, device, view = (str(acquired.get(name, "unknown")) for name in ("week", "device", "view"))
            place = tuple(map(float, outcome["site_coordinates"]))
            found.append(Seen("stream", place, bool(outcome["abnormal"]), week, device, view))
    return found


def drift(model: ModelDescription, outcomes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Compare scored images with what calibrated the model.

    Returns:
        `images`, `shift` (None when too few), `named` (True, False or None) and `sentences`.
    """
    images = seen(outcomes)
    if model.drift is None or not images:
        text = "the model has no reference for drift" if model.drift is None else "no image has been scored yet"
        return {"images": 0, "shift": None, "named": None, "sentences": [text]}
    found = monitor(model, images)
    shift = None if found.drift.shift != found.drift.shift else found.drift.shift
    return {
        "images": found.drift.images,
        "shift": shift,
        "named": found.drift.named,
        "sentences": found.conclusions(str(model.folder)),
    }


def metrics_text(families: Sequence[tuple[str, str, str, Sequence[Sample]]]) -> str:
    """Return metrics in the text format of Prometheus (version 0.0.4).

    Args:
        families: name without prefix, type ("counter" or "gauge"), help, and samples. Samples that are None are left out.
    """
    lines = []
    for name, kind, words, samples in families:
        full = f"monai_wscxr_{name}"
        lines += [f"# HELP {full} {words}", f"# TYPE {full} {kind}"]
        for labels, value in samples:
            inner = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
            lines.append(f"{full}{{{inner}}} {float(value):g}" if inner else f"{full} {float(value):g}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
