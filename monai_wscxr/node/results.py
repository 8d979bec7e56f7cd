"""Tasks of the worker processes: write the DICOM results of an image or the report that says why it has none, draw a map.

Results are on the disk before a task returns. Their UIDs and their date depend on the image, the model and the time of arrival
only, so an image that is scored again after a kill gets the same objects.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path

from monai_wscxr.data.encoding import encode_png
from monai_wscxr.data.radiograph.base import quiet
from monai_wscxr.prediction import tasks
from monai_wscxr.prediction.scoring import Score
from monai_wscxr.report.maps import encode_map
from monai_wscxr.report.overlay import overlay
from monai_wscxr.system.atomic import write_bytes_atomic


def write_results(folder: str, stem: str, path: str, score: Score, received: float) -> list[str] | tuple[str, str]:
    """Write the DICOM results of a scored image.

    Args:
        folder: folder for the files.
        stem: first part of their names.
        path: the image.
        score: its score.
        received: time of its arrival, seconds since 1970.

    Returns:
        names of the files, or reason code and message when the header does not allow results.
    """
    anomaly_map = tasks.map_of(score.prediction, score.loaded)
    made = tasks.dicom_results(path, score.prediction, anomaly_map, _date(received))
    return made if isinstance(made, tuple) else _write(folder, stem, made.objects)


def write_refusal(
    folder: str, stem: str, path: str, code: str, digest: str, model_sha256: str, received: float
) -> list[str] | tuple[str, str]:
    """Write the report of an image that has no score, see `report.dicom.encode_refusal`; arguments as above."""
    from monai_wscxr.report import dicom, dicom_header

    try:
        with quiet:
            made = dicom.encode_refusal(path, code, digest, model_sha256, _date(received))
    except dicom_header.HeaderError as error:
        return error.code, str(error)
    except Exception as error:  # unusual headers fail in many ways, and the error's text may quote them
        return "header", f"the header of the image does not allow them ({type(error).__name__})"
    return _write(folder, stem, made.objects)


def encoded_map(score: Score, kind: str) -> bytes:
    """Encode the anomaly map of a scored image: "png", the map over the radiograph in colour, or "npy", float32 [S, S]."""
    anomaly_map = tasks.map_of(score.prediction, score.loaded)
    if kind == "npy":
        return encode_map(anomaly_map, "npy")
    return encode_png(overlay(score.loaded.radiograph, anomaly_map, tasks.colour_scale()), quick=True)


def _write(folder: str, stem: str, objects: Mapping[str, bytes]) -> list[str]:
    names = []
    for kind, content in objects.items():
        names.append(f"{stem}-{kind}.dcm")
        write_bytes_atomic(Path(folder) / names[-1], content)
    return names


def _date(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(seconds))
