"""The table `predictions.csv`: one row per image, with the same columns in every workflow."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from monai_wscxr.model.predictor import Prediction
from monai_wscxr.system.atomic import write_text_atomic

COLUMNS = ("file", "status", "reason", "anomaly_score", "p_value", "abnormal", "model_sha256")
LABEL = "label"
"""Last column of tables whose labels are given."""


def write_predictions(
    path: Path, predictions: Sequence[Prediction], model_sha256: str, labels: Sequence[int] | None = None
) -> None:
    """Write the table, atomically.

    Score, p-value and decision of a rejected image are empty.

    Args:
        path: the CSV file.
        predictions: one per image, in order.
        model_sha256: hash of the model's weights; "" for a method that stores none.
        labels: 0 (normal) or 1 (abnormal) of each image, written as a further column; None leaves the column out.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS if labels is None else [*COLUMNS, LABEL])
    for number, p in enumerate(predictions):
        figures = ["", "", ""]
        if p.status == "ok":
            figures = [f"{p.anomaly_score:.6f}", f"{p.p_value:.6g}", str(p.abnormal).lower()]
        label = [] if labels is None else [labels[number]]
        writer.writerow([p.file, p.status, p.reason, *figures, model_sha256, *label])
    write_text_atomic(path, text.getvalue())
