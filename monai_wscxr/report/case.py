"""One image in a report, and the wording for it that text and charts share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

MISSING = "n/a"
KIND = {0: "normal", 1: "abnormal", None: "unknown"}
NORMALS_ONLY = "This model was trained on normal images alone: scores are distances to them."
"""Note in the reports of a model without abnormal training images."""


@dataclass(frozen=True, eq=False)
class Case:
    """One image in a report.

    Attributes:
        name: name shown to the reader, usually the file.
        label: 0 normal, 1 abnormal, None unknown.
        class_name: finding or folder name, or None.
        anomaly_score: finite; higher is more abnormal.
        p_value: in [0, 1], or None.
        abnormal: whether the image was flagged; None without a decision.
        image: radiograph, float [H, W] in [0, 1], or None.
        anomaly_map: float [H, W], the shape of `image`, or None.
        mask: lesion mask, bool [H, W], the shape of `image`, or None.
    """

    name: str
    label: int | None
    class_name: str | None
    anomaly_score: float
    p_value: float | None
    abnormal: bool | None
    image: np.ndarray | None = None
    anomaly_map: np.ndarray | None = None
    mask: np.ndarray | None = None


def class_text(case: Case) -> str:
    """Return label and class in words: `normal`, `abnormal: pneumonia`, or `no label`."""
    kind, name = "no label" if case.label is None else KIND[case.label], case.class_name
    return kind if not name or name.lower() == kind else f"{kind}: {name}"


def outcome_text(case: Case) -> str | None:
    """Return how decision and label agree, in words; None if one of them is missing."""
    if case.label is None or case.abnormal is None:
        return None
    if case.label:
        return "correctly flagged" if case.abnormal else "missed"
    return "false alarm" if case.abnormal else "correctly not flagged"


def decision_text(case: Case) -> str:
    """Return the decision in words: `flagged`, `not flagged`, or `n/a` without a decision."""
    return MISSING if case.abnormal is None else "flagged" if case.abnormal else "not flagged"


def number_text(value: object) -> str:
    """Format a number: three decimals from 0.01 to 1000, otherwise four significant digits; `n/a` if missing or not finite."""
    if isinstance(value, (int, np.integer)):
        return str(value)
    number = float(value) if isinstance(value, (float, np.floating)) else math.nan
    if not math.isfinite(number):
        return MISSING
    return f"{number:.3f}" if number == 0 or 0.01 <= abs(number) < 1000 else f"{number:.4g}"
