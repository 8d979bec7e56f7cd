"""Results of one DICOM image as DICOM objects for archives and viewers; needs the package highdicom (extra `dicom`).

* overlay: Secondary Capture of the radiograph with its anomaly map and colour scale, at most 1024 pixels wide or high. Every
  viewer can show it.
* map: fractional Segmentation at the size of the image. A pixel's value is its position on the model's colour scale, 0 at the
  low end and 1 at the high end. That is not a probability, although PROBABILITY is the only fitting term of the standard.
* regions: binary Segmentation of the areas where the map reaches the line of the colour scale.
* report: Comprehensive SR (TID 1500) with score, p-value, decision, operating point and model.

An image that a model cannot score may get one object instead, a Comprehensive SR that says why (`encode_refusal`).

None of them needs a frame of reference, so CR, DX and Secondary Capture images are all supported. UIDs are derived from the
image (its UIDs, patient ID and pixels) and the model. So the same image and model give the same objects (byte for byte with the
same time of creation), and repeated runs do not accumulate objects in an archive, while two pictures that share a SOP Instance
UID give distinct objects. Of the image's header, only the elements are copied that the standard requires for filing: patient
ID, name, birth date and sex, study and accession number. An image whose identity cannot be copied unchanged gets no results,
because they would be filed under another identity.
"""

from __future__ import annotations

import datetime
import hashlib
import io
import uuid
from dataclasses import dataclass, replace
from typing import Any

import highdicom as hd
import numpy as np
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import CodedConcept
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

import monai_wscxr
from monai_wscxr.data.radiograph.pydicom_versions import encoded
from monai_wscxr.model.calibration import ColourScale
from monai_wscxr.report.case import number_text
from monai_wscxr.report.dicom_header import read_source
from monai_wscxr.report.overlay import THRESHOLD_COLOUR, heatmap, outline, overlay

NAME = "monai_wscxr"
SCHEME = "99WSCXR"
DISCLAIMER = "For research use only. Not for diagnosis."
_LARGEST_SIDE = 1024
_SERIES = {"overlay": 9001, "map": 9002, "regions": 9003, "report": 9004, "refusal": 9006}


@dataclass(frozen=True)
class Finding:
    """Result of a model for one image.

    Attributes:
        anomaly_score, p_value, abnormal: score, calibrated p-value and decision.
        threshold: operating point on the score.
        false_positive_rate: rate that the operating point supports, see `Calibration.supported_rate`.
        model_sha256: hash of the model's weights.
        anomaly_map: float32 [S, S]; the whole image, stretched to a square.
        scale: colour scale of the model.
        picture: digest of the image's pixels, which `encode_results` sets; UIDs depend on it.
    """

    anomaly_score: float
    p_value: float
    abnormal: bool
    threshold: float
    false_positive_rate: float
    model_sha256: str
    anomaly_map: NDArray[np.float32]
    scale: ColourScale
    picture: str = ""

    @property
    def line(self) -> float:
        """Map value at which regions are outlined; the operating point if the colour scale marks none."""
        return self.threshold if self.scale.threshold is None else self.scale.threshold


@dataclass(frozen=True)
class DicomResults:
    """Encoded results of one image.

    Attributes:
        objects: contents of the files by kind: overlay, map, regions, report.
        instance: digest of the SOP Instance UID of the image.
        results: identity of the results; equal for objects with equal UIDs.
    """

    objects: dict[str, bytes]
    instance: str
    results: str


def encode_results(path: str, image: NDArray[np.float32], finding: Finding, created: datetime.datetime) -> DicomResults:
    """Encode all results of one DICOM image.

    Args:
        path: the source image; only its header is read.
        image: the radiograph in full size, float32 [H, W] in [0, 1], as read by `read_radiograph`.
        finding: result of the model.
        created: date and time of creation.

    Raises:
        HeaderError: when results cannot refer to the image, see `dicom_header.read_source`.
    """
    source = read_source(path)
    finding = replace(finding, picture=picture_digest(image))
    made = {
        "overlay": overlay_capture(source, image, finding, created),
        "map": segmentation(source, finding, created, regions=False),
        "regions": segmentation(source, finding, created, regions=True),
        "report": structured_report(source, finding, created),
    }
    objects = {kind: encoded_dataset(ds) for kind, ds in made.items()}
    return DicomResults(objects, derived_uid("instance", source.SOPInstanceUID), _uid(source, finding, "results"))


def encode_refusal(path: str, code: str, digest: str, model_sha256: str, created: datetime.datetime) -> DicomResults:
    """Encode a structured report that says why an image has no score.

    Args:
        path: the source image; only its header is read.
        code: reason code.
        digest: of the file, on which the UID of the report depends, as an unreadable image has no pixels.
        model_sha256: hash of the model's weights.
        created: date and time of creation.

    Raises:
        HeaderError: when a report cannot refer to the image, see `dicom_header.read_source`.
    """
    source = read_source(path)
    uid = derived_uid(*_filed(source), source.SOPInstanceUID, digest, model_sha256, "refusal")
    group = hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=derived_uid(uid, "tracking"), identifier="anomaly"),
        algorithm_id=_algorithm(model_sha256),
        qualitative_evaluations=[
            hd.sr.QualitativeEvaluation(
                name=_code("decision", "Decision at the operating point"),
                value=_code("not_analysed", "Not analysed"),
            ),
            hd.sr.QualitativeEvaluation(
                name=_code("reason", "Reason"), value=_code(code, code.replace("_", " ").capitalize())
            ),
        ],
        source_images=[hd.sr.SourceImageForMeasurementGroup(source.SOPClassUID, source.SOPInstanceUID)],
    )
    made = hd.sr.ComprehensiveSR(
        evidence=[source],
        content=_content(group, model_sha256),
        manufacturer=NAME,
        is_complete=True,
        is_final=False,
        series_instance_uid=derived_uid(*_filed(source), model_sha256, "refusal", "series"),
        series_number=_SERIES["refusal"],
        sop_instance_uid=uid,
        instance_number=int(source.InstanceNumber),
        manufacturer_model_name="WSCXR",
        software_versions=monai_wscxr.__version__,
        series_description="WSCXR not analysed (research)",
        coding_schemes=[coding_scheme()],
        device_serial_number=model_sha256[:16],
    )
    return DicomResults(
        {"refusal": encoded_dataset(dated(made, created))}, derived_uid("instance", source.SOPInstanceUID), uid
    )


def picture_digest(image: NDArray[np.float32]) -> str:
    """Return the SHA-256 of an image's size and pixels in hexadecimal digits."""
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(np.ascontiguousarray(image, dtype="<f4").tobytes())
    return digest.hexdigest()


def derived_uid(*parts: str) -> str:
    """Derive a UID from texts: 2.25 followed by a UUID from their SHA-256."""
    digest = hashlib.sha256("\0".join((NAME, *parts)).encode()).digest()
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}"


def map_of_image(source: Dataset, finding: Finding) -> NDArray[np.float32]:
    """Resize the anomaly map (bilinear) to the source image, [Rows, Columns]."""
    small = Image.fromarray(np.ascontiguousarray(finding.anomaly_map, dtype=np.float32))
    return np.asarray(small.resize((source.Columns, source.Rows), Image.Resampling.BILINEAR), dtype=np.float32)


# ---- Secondary Capture


def overlay_capture(
    source: Dataset, image: NDArray[np.float32], finding: Finding, created: datetime.datetime
) -> hd.sc.SCImage:
    """Create the Secondary Capture: radiograph with anomaly map; score, colour scale and disclaimer below."""
    # highdicom requires an orientation; an unknown one is emptied below
    orientation = tuple(source.PatientOrientation) or ("L", "F")
    made = hd.sc.SCImage(
        pixel_array=_picture(image, finding, _source_aspect(source)),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        study_instance_uid=source.StudyInstanceUID,
        patient_id=source.PatientID,
        patient_name=source.PatientName,
        patient_birth_date=source.PatientBirthDate or None,
        patient_sex=source.PatientSex or None,
        accession_number=source.AccessionNumber,
        study_id=source.StudyID,
        study_date=source.StudyDate or None,
        study_time=source.StudyTime or None,
        patient_orientation=(str(orientation[0]), str(orientation[1])),
        manufacturer=NAME,
        **_common(source, finding, "overlay", created),
    )
    made.PatientOrientation, made.Laterality = list(source.PatientOrientation), ""
    # the capture adds no patient data to the pixels, but shows any that the source contains
    made.BurnedInAnnotation = source.BurnedInAnnotation or "NO"
    made = dated(made, created)
    made.DateOfSecondaryCapture, made.TimeOfSecondaryCapture = made.ContentDate, made.ContentTime
    made.ImageType = ["DERIVED", "SECONDARY"]
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    made.SourceImageSequence = [reference]
    made.DerivationDescription = "Anomaly map laid over the radiograph"
    return made


def _source_aspect(source: Dataset) -> float:
    """Return the height of a source image's pixels over their width."""
    height, width = source.get("PixelAspectRatio") or (1, 1)
    return float(height) / float(width)


def _picture(image: NDArray[np.float32], finding: Finding, aspect: float) -> NDArray[np.uint8]:
    """Draw overlay and caption with square pixels, uint8 [h, w, 3]; `aspect` is the height of a source pixel over its width."""
    shown_height, shown_width = image.shape[0] * max(aspect, 1.0), image.shape[1] * max(1 / aspect, 1.0)
    factor = min(1.0, _LARGEST_SIDE / max(shown_height, shown_width))
    width, height = max(1, round(shown_width * factor)), max(1, round(shown_height * factor))
    grey = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BOX)).clip(0, 1)
    values = Image.fromarray(np.ascontiguousarray(finding.anomaly_map, dtype=np.float32))
    resized = np.asarray(values.resize((width, height), Image.Resampling.BILINEAR))
    shown = outline(overlay(grey, resized, finding.scale), resized >= finding.line, THRESHOLD_COLOUR)
    size = max(10, width // 50)
    caption = Image.new("RGB", (width, 5 * size))
    draw, font = ImageDraw.Draw(caption), ImageFont.load_default(size)
    ramp = np.linspace(finding.scale.low, finding.scale.high, width // 3, dtype=np.float32)
    bar = Image.fromarray(heatmap(np.repeat(ramp[None], size, axis=0), finding.scale))
    caption.paste(bar, (width - bar.width - size, size))
    ends = f"{number_text(finding.scale.low)} to {number_text(finding.scale.high)}"
    draw.text((width - bar.width - size, 2.3 * size), ends, font=font, fill=(255, 255, 255))
    decision = "flagged" if finding.abnormal else "not flagged"
    words = f"Anomaly score {number_text(finding.anomaly_score)}, p {number_text(finding.p_value)}: {decision}"
    draw.text((size, 0.8 * size), words, font=font, fill=(255, 255, 255))
    draw.text((size, 2.6 * size), DISCLAIMER, font=font, fill=(255, 210, 120))
    return np.concatenate([shown, np.asarray(caption, dtype=np.uint8)])


# ---- Segmentations


def segmentation(source: Dataset, finding: Finding, created: datetime.datetime, regions: bool) -> hd.seg.Segmentation:
    """Create a Segmentation: the anomaly map (fractional), or the areas that reach the line of the colour scale (binary)."""
    kind = "regions" if regions else "map"
    values = map_of_image(source, finding)
    if regions:
        pixels: np.ndarray = values >= finding.line
        label, words = "ANOMALY_REGIONS", f"Anomaly map at or above {finding.line:.6g}"
    else:
        pixels = finding.scale.position(values).astype(np.float32)
        scale = finding.scale
        label, words = "ANOMALY_MAP", f"Position on the scale {scale.low:.6g} to {scale.high:.6g}"
    segment = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label=words[:64],
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=_code("anomaly", "Unlike the normal training images"),
        algorithm_type="AUTOMATIC",
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=NAME,
            family=codes.DCM.ArtificialIntelligence,
            version=monai_wscxr.__version__,
            parameters={"model_sha256": finding.model_sha256},
        ),
        tracking_id="anomaly",
        tracking_uid=_uid(source, finding, "tracking"),
    )
    made = hd.seg.Segmentation(
        source_images=[source],
        pixel_array=pixels,
        segmentation_type="BINARY" if regions else "FRACTIONAL",
        segment_descriptions=[segment],
        manufacturer=NAME,
        device_serial_number=finding.model_sha256[:16],
        content_label=label,
        content_description=words[:64],
        content_creator_name=None,
        omit_empty_frames=False,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **_common(source, finding, kind, created, serial=False),
    )
    made.PatientOrientation = list(source.PatientOrientation)  # without a frame of reference, nothing else tells it
    if "PixelAspectRatio" in source:
        made.PixelAspectRatio = list(source.PixelAspectRatio)
    organization = _uid(source, finding, f"{kind} dimensions")
    made.DimensionOrganizationSequence[0].DimensionOrganizationUID = organization
    for item in made.DimensionIndexSequence:
        item.DimensionOrganizationUID = organization
    return dated(made, created)


# ---- Structured Report


def structured_report(source: Dataset, finding: Finding, created: datetime.datetime) -> hd.sr.ComprehensiveSR:
    """Create the structured report (TID 1500): score, p-value, decision, operating point and model."""
    one = codes.UCUM.NoUnits
    measurements = [
        hd.sr.Measurement(name=name, value=float(value), unit=one)
        for name, value in (
            (_code("anomaly_score", "Anomaly score"), finding.anomaly_score),
            (CodedConcept("C44185", "NCIt", "P-Value"), finding.p_value),
            (_code("threshold", "Operating point on the anomaly score"), finding.threshold),
            (_code("false_positive_rate", "False-positive rate of the operating point"), finding.false_positive_rate),
        )
    ]
    decision = _code("flagged", "Flagged") if finding.abnormal else _code("not_flagged", "Not flagged")
    group = hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=_uid(source, finding, "tracking"), identifier="anomaly"),
        algorithm_id=_algorithm(finding.model_sha256),
        measurements=measurements,
        qualitative_evaluations=[
            hd.sr.QualitativeEvaluation(name=_code("decision", "Decision at the operating point"), value=decision)
        ],
        source_images=[hd.sr.SourceImageForMeasurementGroup(source.SOPClassUID, source.SOPInstanceUID)],
    )
    made = hd.sr.ComprehensiveSR(
        evidence=[source],
        content=_content(group, finding.model_sha256),
        manufacturer=NAME,
        is_complete=True,
        is_final=False,
        **_common(source, finding, "report", created),
    )
    return dated(made, created)


def _algorithm(model_sha256: str) -> hd.sr.AlgorithmIdentification:
    """Name the program and the model."""
    return hd.sr.AlgorithmIdentification(
        name=NAME, version=monai_wscxr.__version__, parameters=[f"model_sha256={model_sha256}"]
    )


def _content(group: hd.sr.MeasurementsAndQualitativeEvaluations, model_sha256: str) -> hd.sr.MeasurementReport:
    """Create the content of a report with one group."""
    device = hd.sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
            uid=derived_uid("device", model_sha256),
            name=NAME,
            manufacturer_name=NAME,
            model_name="WSCXR",
            serial_number=model_sha256[:16],
        ),
    )
    return hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=device),
        procedure_reported=CodedConcept("399208008", "SCT", "Plain chest X-ray"),
        imaging_measurements=[group],
        title=codes.DCM.ImagingMeasurementReport,
    )


# ---- shared by all


def _common(
    source: Dataset, finding: Finding, kind: str, created: datetime.datetime, serial: bool = True
) -> dict[str, Any]:
    """Return the arguments that all objects of an image share: UIDs, series, equipment, coding scheme."""
    shared: dict[str, Any] = {
        "series_instance_uid": derived_uid(*_filed(source), finding.model_sha256, kind, "series"),
        "series_number": _SERIES[kind],
        "sop_instance_uid": _uid(source, finding, kind),
        "instance_number": int(source.InstanceNumber),
        "manufacturer_model_name": "WSCXR",
        "software_versions": monai_wscxr.__version__,
        "series_description": f"WSCXR anomaly {kind} (research)",
        "coding_schemes": [coding_scheme()],
    }
    if serial:
        shared["device_serial_number"] = finding.model_sha256[:16]
    return shared


def _uid(source: Dataset, finding: Finding, kind: str) -> str:
    """Derive the UID of an object from image, model and kind."""
    return derived_uid(*_filed(source), source.SOPInstanceUID, finding.picture, finding.model_sha256, kind)


def _filed(source: Dataset) -> tuple[str, str, str]:
    """Return what tells series apart, also those that wrongly share a UID: patient ID, study and series UID."""
    return source.PatientID, source.StudyInstanceUID, source.SeriesInstanceUID


def _code(value: str, meaning: str) -> CodedConcept:
    """Create a code of the local coding scheme; code values have at most 16 characters."""
    return CodedConcept(value[:16], SCHEME, meaning)


def dated(made: Any, created: datetime.datetime) -> Any:
    """Set the character set, and the time of creation in place of the current time; returns the same object."""
    made.SpecificCharacterSet = "ISO_IR 192"
    for name in ("InstanceCreation", "Series", "Content"):
        if f"{name}Date" in made:
            setattr(made, f"{name}Date", created.date())
        if f"{name}Time" in made:
            setattr(made, f"{name}Time", created.time())
    for item in made.get("ContributingEquipmentSequence", []):
        item.ContributionDateTime = created
    return made


def coding_scheme() -> CodingSchemeIdentificationItem:
    """Return the description of the local coding scheme `SCHEME`."""
    return CodingSchemeIdentificationItem(
        designator=SCHEME, name="Local codes of monai_wscxr", version=monai_wscxr.__version__
    )


def encoded_dataset(ds: Dataset) -> bytes:
    """Encode an object as the bytes of a DICOM file."""
    buffer = io.BytesIO()
    encoded(ds, buffer)
    return buffer.getvalue()
