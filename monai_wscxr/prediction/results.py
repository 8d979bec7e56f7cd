"""Table, JSON and report of a finished prediction run, made from the records of the journal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import monai_wscxr
from monai_wscxr.data.radiograph.read import RadiographError
from monai_wscxr.model.description import ModelDescription
from monai_wscxr.model.drift import Drift, measure_drift
from monai_wscxr.model.predictions import Prediction
from monai_wscxr.prediction.folder import stamp
from monai_wscxr.prediction.inputs import Input
from monai_wscxr.prediction.journal import Record
from monai_wscxr.prediction.options import Summary, listed
from monai_wscxr.prediction.tasks import Loaded, Written
from monai_wscxr.report.case import NORMALS_ONLY
from monai_wscxr.report.predictions import write_predictions
from monai_wscxr.report.run import Entry, write_run_report
from monai_wscxr.system.atomic import write_text_atomic

_PRIVATE = ("stamp", "number", "sizes", "instance", "results")  # fields of a record that a reader does not need
_REPEATS = "the same instance with the same picture as that"


def make_record(number: int, item: Input, prediction: Prediction, result: Loaded | RadiographError) -> Record:
    """Create the journal's record of one input; its files are added by `add_files`."""
    record: Record = {
        "number": number,
        "file": item.file,
        "stamp": stamp(item.path),
        "status": prediction.status,
        "reason": prediction.reason,
        "files": {},
        "sizes": {},
    }
    if isinstance(result, RadiographError):
        record["message"] = result.message
        return record
    record.update(
        anomaly_score=prediction.anomaly_score,
        p_value=prediction.p_value,
        abnormal=prediction.abnormal,
        format=result.format,
        rows=result.rows,
        columns=result.columns,
        polarity=result.polarity,
        intensity=result.intensity,
    )
    if result.acquired:
        record["acquired"] = dict(result.acquired)
    return record


def add_drift(record: Record, coordinates: NDArray[np.float32], model: ModelDescription) -> None:
    """Add to the record of a scored image its coordinates [d] for drift, rounded, and its p-value among the model's normals."""
    assert model.drift is not None
    record["site_coordinates"] = [round(value, 3) for value in coordinates.tolist()]
    record["site_p_value"] = round(model.drift.p_values(coordinates[None])[0], 6)


def add_files(record: Record, written: Written) -> None:
    """Add the files of an input to its record."""
    record["files"], record["sizes"] = written.files, written.sizes
    if written.without_dicom is not None:
        record["reason"], message = written.without_dicom
        record["note"] = f"no DICOM results: {message}"
    if written.instance:
        record["instance"], record["results"] = written.instance, written.results


def write_results(
    folder: Path, model: ModelDescription, records: Sequence[Record], device: str, report: bool, summary: Summary
) -> None:
    """Write `predictions.csv`, `predictions.json` and the report, and complete the summary.

    Args:
        folder: output folder of the run.
        model: the trained model.
        records: records of all inputs, in order.
        device: device of the network.
        report: whether to write the report.
        summary: its numbers of flagged and rejected inputs are set here.
    """
    predictions = [_prediction(record) for record in records]
    for p in predictions:
        summary.flagged += p.abnormal
        if p.status == "rejected":
            summary.rejected += 1
            summary.reasons[p.reason] = summary.reasons.get(p.reason, 0) + 1
        elif p.reason:
            summary.without_dicom[p.reason] = summary.without_dicom.get(p.reason, 0) + 1
    summary.drift = _drift(model, records)
    notes = _same_instances(records)
    summary.repeated = sum(note.startswith(_REPEATS) for note in notes.values())
    summary.shared = len(notes) - summary.repeated
    records = [{**r, "note": notes[n]} if n in notes else r for n, r in enumerate(records)]
    write_predictions(folder / "predictions.csv", predictions, model.sha256, drift=summary.drift.named)
    write_text_atomic(folder / "predictions.json", _json(model, records, summary))
    if report:
        _report(folder, model, records, device, summary)


def _drift(model: ModelDescription, records: Sequence[Record]) -> Drift:
    """Compare the images of all records that have coordinates with the model's normals."""
    found = [record["site_coordinates"] for record in records if record.get("site_coordinates")]
    return measure_drift(model.drift, np.array(found, np.float32))


def _same_instances(records: Sequence[Record]) -> dict[int, str]:
    """Return notes on images with DICOM results that have one SOP Instance UID, by their index."""
    groups: dict[str, list[int]] = {}
    for n, record in enumerate(records):
        if record.get("instance"):
            groups.setdefault(record["instance"], []).append(n)
    notes = {}
    for group in groups.values():
        first: dict[str, int] = {}  # identity of the results to the first image that gives them
        for n in group:
            first.setdefault(records[n]["results"], n)
        for n in group:
            same = first[records[n]["results"]]
            if same != n:
                notes[n] = f"{_REPEATS} of {records[same]['file']}: their DICOM results are the same objects"
            elif len(first) > 1:
                other = next(m for m in first.values() if m != n)
                notes[n] = f"a different image, {records[other]['file']}, has the same SOP Instance UID"
    return notes


def _json(model: ModelDescription, records: Sequence[Record], summary: Summary) -> str:
    """Return the content of `predictions.json`."""
    calibration = model.calibration
    description = {
        "format": 1,
        "version": monai_wscxr.__version__,
        "model": {
            "sha256": model.sha256,
            "threshold": calibration.threshold,
            "false_positive_rate": calibration.supported_rate,
            "wanted_false_positive_rate": calibration.false_positive_rate,
            "colour_low": calibration.colour_low,
            "colour_high": calibration.colour_high,
            "image_size": model.preprocessing.image_size,
            "reader_chain": model.preprocessing.reader_chain,
        },
        "drift": summary.drift.to_dict(),
        "predictions": [{k: v for k, v in record.items() if k not in _PRIVATE} for record in records],
    }
    return json.dumps(description, indent=1) + "\n"


def _report(folder: Path, model: ModelDescription, records: Sequence[Record], device: str, summary: Summary) -> None:
    """Write the report of the run."""
    calibration = model.calibration
    settings = {
        **model.settings,
        "model_sha256": model.sha256,
        "false_positive_rate": calibration.supported_rate,
        "wanted_false_positive_rate": calibration.false_positive_rate,
        "reader_chain": model.preprocessing.reader_chain,
        "device": device,
    }
    settings.pop("dataset_dir", None)
    normals = len(calibration.normal_scores)
    notes = [
        f"Threshold: {calibration.rate_text}. With {normals} {calibration.images_text}, the smallest possible p-value is "
        f"{1 / (normals + 1):.2g}."
    ]
    if model.normals_only:
        notes.append(NORMALS_ONLY)
    if sentence := summary.drift.sentence(str(model.folder)):
        notes.insert(0, f"{sentence}.")
    if summary.rejected:
        notes.append(f"{summary.rejected} inputs were rejected and have no score: {listed(summary.reasons)}.")
    notes += [f"{sentence[0].upper()}{sentence[1:]}." for sentence in summary.dicom_sentences()]
    write_run_report(
        folder / "report" / "index.html",
        [_entry(record) for record in records],
        model.colour_scale,
        calibration.threshold,
        settings,
        notes,
    )


def _entry(record: Record) -> Entry:
    """Return the report's entry of an input."""
    good = record["status"] == "ok"
    return Entry(
        name=record["file"],
        stem=f"{record['number']:06d}" if good else None,
        anomaly_score=record.get("anomaly_score"),
        p_value=record.get("p_value"),
        abnormal=record.get("abnormal"),
        reason="" if good else f"{record['reason']}: {record['message']}",
    )


def _prediction(record: Record) -> Prediction:
    """Return the prediction of an input, without its patch scores."""
    if record["status"] != "ok":
        return Prediction.rejected(record["file"], record["reason"])
    return Prediction(
        record["file"], "ok", record["reason"], record["anomaly_score"], record["p_value"], record["abnormal"]
    )
