"""Image-level labels as DICOM Structured Reports (Comprehensive SR, TID 1500), the form in which an archive keeps them."""

from __future__ import annotations

import datetime
import hashlib
from typing import Any

import highdicom as hd
import pydicom
from highdicom.sr import CodedConcept
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

import monai_wscxr
from monai_wscxr.label.archive.studies import Label
from monai_wscxr.report.dicom import NAME, SCHEME, coding_scheme, dated, derived_uid, encoded_dataset
from monai_wscxr.report.dicom_header import read_source

DESCRIPTION = "WSCXR image label (research)"
_SERIES_NUMBER = 9005
_VALUES = {"normal": "Normal", "abnormal": "Abnormal", "skipped": "Undecided", "withdrawn": "Label withdrawn"}


def label_report(path: str, label: Label | None, when: datetime.datetime) -> bytes:
    """Encode the label of a DICOM image, or its withdrawal, as a report that refers to the image.

    Every decision is a new object. Of several on one image, the one with the latest content date and time counts.

    Args:
        path: file of the image; only its header is read.
        label: the label; None withdraws it.
        when: time of the decision.

    Raises:
        HeaderError: when the image has no valid study, series and instance UID.
    """
    source = read_source(path)
    value = "withdrawn" if label is None else "skipped" if label.skipped else ("normal", "abnormal")[label.label or 0]
    evaluations = [
        hd.sr.QualitativeEvaluation(
            name=CodedConcept("image_label", SCHEME, "Label of the image"),
            value=CodedConcept(value, SCHEME, _VALUES[value]),
        )
    ]
    if label is not None and label.image_class:
        short = hashlib.sha256(label.image_class.encode()).hexdigest()[:8]  # a code value has at most 16 characters
        evaluations.append(
            hd.sr.QualitativeEvaluation(
                name=CodedConcept("image_class", SCHEME, "Class of the image"),
                value=CodedConcept(f"class_{short}", SCHEME, label.image_class),
            )
        )
    device = hd.sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
            uid=derived_uid("workbench"), name=NAME, manufacturer_name=NAME, model_name="WSCXR workbench"
        ),
    )
    group = hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(
            uid=derived_uid(source.SOPInstanceUID, "label"), identifier="image label"
        ),
        qualitative_evaluations=evaluations,
        source_images=[hd.sr.SourceImageForMeasurementGroup(source.SOPClassUID, source.SOPInstanceUID)],
    )
    content = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=device),
        procedure_reported=CodedConcept("399208008", "SCT", "Plain chest X-ray"),
        imaging_measurements=[group],
        title=codes.DCM.ImagingMeasurementReport,
    )
    made = hd.sr.ComprehensiveSR(
        evidence=[source],
        content=content,
        manufacturer=NAME,
        is_complete=True,
        is_final=False,
        series_instance_uid=derived_uid(source.SeriesInstanceUID, "labels", "series"),
        series_number=_SERIES_NUMBER,
        sop_instance_uid=generate_uid(prefix=None),
        instance_number=1,
        manufacturer_model_name="WSCXR workbench",
        software_versions=monai_wscxr.__version__,
        series_description=DESCRIPTION,
        coding_schemes=[coding_scheme()],
    )
    return encoded_dataset(dated(made, when))


def read_label(report: pydicom.Dataset) -> tuple[str, str, Label | None]:
    """Read a report that `label_report` wrote.

    Returns:
        SOP instance UID of the image; date and time of the decision, which sort as text; the label, None if withdrawn.

    Raises:
        ValueError: when the data set is not such a report.
    """
    try:
        found: dict[str, Any] = {}
        pending = list(report.ContentSequence)
        while pending:
            item = pending.pop()
            pending += list(item.get("ContentSequence") or [])
            name = item.ConceptNameCodeSequence[0] if item.get("ConceptNameCodeSequence") else None
            if item.ValueType == "CODE" and name is not None and name.CodingSchemeDesignator == SCHEME:
                found[name.CodeValue] = item.ConceptCodeSequence[0]
            elif item.ValueType == "IMAGE":
                found["image"] = item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        value = found["image_label"].CodeValue
        when = f"{report.ContentDate}{report.ContentTime}"
        if value == "withdrawn":
            return str(found["image"]), when, None
        name = found["image_class"].CodeMeaning if "image_class" in found else None
        number = {"normal": 0, "abnormal": 1, "skipped": None}[value]
        return str(found["image"]), when, Label.checked(number, name, value == "skipped")
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"not an image label ({type(error).__name__})") from error
