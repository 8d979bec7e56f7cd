"""The table `predictions.csv`: one row per image, with the same columns in every workflow."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from monai_wscxr.model.predictions import Prediction
from monai_wscxr.system.atomic import write_text_atomic

COLUMNS = ("file", "status", "reason", "anomaly_score", "p_value", "abnormal", "model_sha256", "drift")
LABEL = "label"
"""Last column of tables whose labels are given."""
ESCAPED = ("=", "+", "-", "@", "\t", "\r", "\n", "'", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""First characters of a file name that get an apostrophe in front: those with which a spreadsheet starts a formula (also in
full width), and the apostrophe itself, so that removing one always gives the name back."""


def score_text(score: float) -> str:
    """Return an anomaly score with six decimals, or six digits where it is smaller than 0.1, as those of some methods are."""
    return f"{score:.6f}" if abs(score) >= 0.1 else f"{score:.6g}"


def write_predictions(
    path: Path,
    predictions: Sequence[Prediction],
    model_sha256: str,
    labels: Sequence[int] | None = None,
    drift: bool | None = None,
) -> None:
    """Write the table, atomically.

    Score, p-value and decision of a rejected image are empty. File names are escaped by `escape_cell`.

    Args:
        path: the CSV file.
        predictions: one per image, in order.
        model_sha256: hash of the model's weights; "" for a method that stores none.
        drift: whether the images of the table, together, are unlike the normals that calibrated the model, so that p-values and
            decisions cannot be relied on; the column says true or false, or nothing where that is unknown.
        labels: 0 (normal) or 1 (abnormal) of each image, written as a further column; None leaves the column out.
    """
    named = "" if drift is None else str(drift).lower()
    rows: list[Sequence[object]] = [COLUMNS if labels is None else [*COLUMNS, LABEL]]
    for number, p in enumerate(predictions):
        figures = ["", "", ""]
        if p.status == "ok":
            figures = [score_text(p.anomaly_score), f"{p.p_value:.6g}", str(p.abnormal).lower()]
        label = [] if labels is None else [labels[number]]
        rows.append([escape_cell(p.file), p.status, p.reason, *figures, model_sha256, named, *label])
    write_text_atomic(path, "".join(map(_line, rows)))


def escape_cell(text: str) -> str:
    """Put an apostrophe in front of a text that a spreadsheet would take for a formula; see `ESCAPED`."""
    return f"'{text}" if text.startswith(ESCAPED) else text


def unescape_cell(text: str) -> str:
    """Return the text that `escape_cell` was given."""
    return text.removeprefix("'")


def _line(row: Sequence[object]) -> str:
    """Return a row as a line of the table."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(row)  # quotes what contains any character of its line end
    return text.getvalue().removesuffix("\r\n") + "\n"
