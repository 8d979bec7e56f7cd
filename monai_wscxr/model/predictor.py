"""A trained model on files or arrays: anomaly map, score, p-value, decision. What apps and reports call."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from monai_wscxr.data.stream import RadiographStream, Rejected
from monai_wscxr.data.transforms import radiograph_transforms
from monai_wscxr.errors import InputError
from monai_wscxr.features.parallel import ThreadParallel
from monai_wscxr.model.artefact import TrainedModel
from monai_wscxr.model.networks import anomaly_map, anomaly_score
from monai_wscxr.system.atomic import write_text_atomic

COLUMNS = ("file", "status", "reason", "anomaly_score", "p_value", "abnormal", "model_sha256")


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image, or why it says nothing.

    Attributes:
        file: path as it was given.
        status: "ok" or "rejected".
        reason: reason code of a rejected file, else "".
        anomaly_score: higher is more abnormal; NaN when rejected.
        p_value: calibrated against held-out normal images; NaN when rejected.
        abnormal: flagged at the operating point.
        patch_scores: [h, w] float32, empty when rejected.
    """

    file: str
    status: str
    reason: str
    anomaly_score: float
    p_value: float
    abnormal: bool
    patch_scores: NDArray[np.float32]

    @classmethod
    def rejected(cls, file: str, reason: str) -> Prediction:
        """The row of a file that could not be used."""
        return cls(file, "rejected", reason, math.nan, math.nan, False, np.empty((0, 0), np.float32))


def to_prediction(model: TrainedModel, file: str, patch_scores: Tensor) -> Prediction:
    """Score, p-value and decision from the patch scores [h, w] of one image.

    Raises:
        InputError: when a patch score is NaN or infinite.
    """
    if not bool(torch.isfinite(patch_scores).all()):
        raise InputError(f"the model gives NaN or Inf for {file}; its weights are damaged, train again")
    score = float(anomaly_score(patch_scores[None, None], model.score_share)[0, 0])
    calibration = model.calibration
    return Prediction(
        file,
        "ok",
        "",
        score,
        calibration.p_value(score),
        calibration.abnormal(score),
        patch_scores.float().cpu().numpy(),
    )


def to_map(model: TrainedModel, prediction: Prediction) -> NDArray[np.float32]:
    """Anomaly map [size, size] of a prediction, at the size of the preprocessed image."""
    size = model.preprocessing.image_size
    scores = torch.from_numpy(prediction.patch_scores)[None, None]
    return anomaly_map(scores, (size, size), model.map_sigma)[0, 0].numpy()


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Batch of loaded items: `image` [B, 3, H, W] and the rest of each item under `items`."""
    rest = [{key: value for key, value in item.items() if key != "image"} for item in items]
    return {"image": torch.stack([item["image"] for item in items]), "items": rest}


def predict_files(model: TrainedModel, files: Sequence[str | Path], batch_size: int = 16) -> Iterator[Prediction]:
    """Predict image files; every file has its prediction, in order, rejected ones included.

    Args:
        model: a loaded model; runs on the device of its network.
        files: radiographs in any supported format.
        batch_size: images per pass.
    """
    device = next(model.network.parameters()).device
    network = ThreadParallel(model.network)
    stream = RadiographStream([{"image": str(f)} for f in files], radiograph_transforms(model.preprocessing))
    found: dict[str, Prediction] = {}
    for batch in DataLoader(stream, batch_size=batch_size, collate_fn=collate):
        with torch.inference_mode():
            scores = network(batch["image"].to(device))
        for item, patch_scores in zip(batch["items"], scores[:, 0], strict=True):
            found[item["file"]] = to_prediction(model, item["file"], patch_scores)
    yield from in_order([str(f) for f in files], found.values(), stream.rejected)


def in_order(files: Iterable[str], predictions: Iterable[Prediction], rejected: Iterable[Rejected]) -> list[Prediction]:
    """One prediction per file, in the order of `files`; those that were skipped become rejected rows."""
    by_file = {p.file: p for p in predictions}
    by_file.update({file: Prediction.rejected(file, code) for file, code, _ in rejected})
    return [by_file[file] for file in files]


def write_csv(path: Path, model: TrainedModel, predictions: Sequence[Prediction]) -> None:
    """Write `predictions.csv`, one row per file (atomically)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for p in predictions:
        figures = ["", "", ""]
        if p.status == "ok":
            figures = [f"{p.anomaly_score:.6f}", f"{p.p_value:.6g}", str(p.abnormal).lower()]
        writer.writerow([p.file, p.status, p.reason, *figures, model.sha256])
    write_text_atomic(path, text.getvalue())
