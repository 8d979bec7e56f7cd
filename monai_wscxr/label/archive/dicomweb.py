"""Studies on a DICOMweb server: radiographs found by QIDO-RS and read by WADO-RS, labels and results stored by STOW-RS.

Labels are Structured Reports of `dicom_label`, results those of `report.dicom`, all filed in the study of their image. So a
new server finds them again, and so do viewers. Objects that cannot be read are skipped.
"""

from __future__ import annotations

import datetime
import hashlib
import io
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pydicom
import requests
from dicomweb_client import DICOMwebClient
from dicomweb_client.session_utils import create_session_from_user_pass

from monai_wscxr.data.radiograph.pydicom_versions import encoded
from monai_wscxr.data.radiograph.read import quiet
from monai_wscxr.errors import InputError
from monai_wscxr.label.archive.dicom_label import DESCRIPTION, label_report, read_label
from monai_wscxr.label.archive.studies import Label, Refused, UnknownImage, hashed_patient
from monai_wscxr.report.dicom import HeaderError
from monai_wscxr.system.atomic import replacing

logger = logging.getLogger("monai_wscxr")

PAGE = 500  # objects asked for at a time
_KINDS = {
    "overlay": "overlay",
    "fraction": "map",
    "regions": "regions",
    "report": "report",
}  # as in series descriptions


class DicomWebStudies:
    """CR and DX images of a DICOMweb server.

    Args:
        url: of the service, for instance http://127.0.0.1:8042/dicom-web. Name and password, if it wants any, come from the
            environment: MONAI_LABEL_DICOMWEB_USERNAME and MONAI_LABEL_DICOMWEB_PASSWORD, as for MONAI Label.
        folder: for copies of images, which hold what the images hold of patients; made so that nobody else can look into it.
        modalities: whose images are listed.

    Raises:
        InputError: when the server cannot be asked.
    """

    def __init__(self, url: str, folder: str | Path, modalities: Sequence[str] = ("DX", "CR")) -> None:
        self.source, self.modalities = url.rstrip("/"), tuple(modalities)
        user, password = (os.environ.get(f"MONAI_LABEL_DICOMWEB_{name}") for name in ("USERNAME", "PASSWORD"))
        session = create_session_from_user_pass(user, password) if user and password else None
        self.client = DICOMwebClient(url=self.source, session=session)
        self.copies = Path(folder) / "copies"
        self.copies.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = threading.Lock()
        self._images: dict[str, dict[str, str]] = {}
        self._labels: dict[str, Label] = {}
        self._read: dict[str, tuple[str, str, Label | None] | None] = {}  # label reports by SOP instance UID
        self.refresh()

    # ---- asking

    def _find(self, **filters: str) -> Iterator[dict[str, str]]:
        """What the server lists at the level of instances, as text by keyword."""
        fields = ["SeriesDescription", "StudyDate", "PatientID", "Modality", "SOPClassUID"]
        offset = 0
        while True:
            try:
                found = self.client.search_for_instances(
                    search_filters=filters, fields=fields, limit=PAGE, offset=offset
                )
            except (requests.RequestException, ValueError) as error:
                raise InputError(
                    f"the DICOMweb server {self.source} does not answer as expected ({type(error).__name__}); check its address"
                ) from error
            for entry in found:
                ds = pydicom.Dataset.from_json(entry)
                yield {element.keyword: str(element.value or "") for element in ds if element.keyword}
            if len(found) < PAGE:
                return
            offset += PAGE

    def refresh(self) -> None:
        """List images and read label reports that are new."""
        images: dict[str, dict[str, str]] = {}
        for modality in self.modalities:
            for entry in self._find(Modality=modality):
                if all(entry.get(f"{level}InstanceUID") for level in ("Study", "Series", "SOP")):
                    images[_id(entry["SOPInstanceUID"])] = entry
        latest: dict[str, tuple[str, Label | None]] = {}
        for entry in self._find(Modality="SR"):
            if entry.get("SeriesDescription") != DESCRIPTION:  # asked here: Orthanc finds no description with brackets
                continue
            found = self._label_of(entry)
            if found is not None and found[1] >= latest.get(found[0], ("", None))[0]:
                latest[found[0]] = found[1], found[2]
        ordered = sorted(latest.items(), key=lambda entry: entry[1][0])
        with self._lock:
            self._images = dict(sorted(images.items(), key=lambda e: (e[1].get("StudyDate", ""), e[0])))
            self._labels = {_id(uid): label for uid, (_, label) in ordered if label is not None}

    def _label_of(self, entry: Mapping[str, str]) -> tuple[str, str, Label | None] | None:
        uid = entry["SOPInstanceUID"]
        if uid not in self._read:
            try:
                self._read[uid] = read_label(self._retrieve(entry))
            except (ValueError, InputError) as error:
                logger.warning("a label report on the DICOMweb server cannot be read and is skipped (%s)", error)
                self._read[uid] = None
        return self._read[uid]

    def _retrieve(self, entry: Mapping[str, str]) -> pydicom.Dataset:
        places = (entry[f"{level}InstanceUID"] for level in ("Study", "Series", "SOP"))
        try:
            with quiet:
                return self.client.retrieve_instance(*places)
        except Exception as error:  # requests' errors, and whatever pydicom makes of what came
            raise InputError(
                f"the DICOMweb server does not deliver an object that it lists ({type(error).__name__})"
            ) from error

    # ---- Studies

    def ids(self) -> list[str]:
        """By study date."""
        with self._lock:
            return list(self._images)

    def _entry(self, image_id: str) -> dict[str, str]:
        with self._lock:
            entry = self._images.get(image_id)
        if entry is None:
            raise UnknownImage(image_id)
        return entry

    def name(self, image_id: str) -> str:
        """Modality, study date and the end of the image's UID: nothing of the patient."""
        entry = self._entry(image_id)
        return f"{entry.get('Modality', '')} {entry.get('StudyDate', '')} ...{entry['SOPInstanceUID'][-12:]}"

    def file(self, image_id: str) -> Path:
        """A copy of the image, fetched when first asked for."""
        entry = self._entry(image_id)
        path = self.copies / f"{image_id}.dcm"
        if not path.is_file():
            self._copy(entry, path)
        return path

    def _copy(self, entry: Mapping[str, str], path: Path) -> None:
        ds = self._retrieve(entry)
        with replacing(path) as temporary, quiet:
            encoded(ds, str(temporary))

    def patient(self, image_id: str) -> str:
        """A hash of PatientID; an image without one is its own patient."""
        return hashed_patient(self._entry(image_id).get("PatientID", "")) or image_id

    def labels(self) -> dict[str, Label]:
        """Labels of the images that are listed."""
        with self._lock:
            return {image_id: label for image_id, label in self._labels.items() if image_id in self._images}

    def put(self, image_id: str, label: Label | None) -> None:
        """Store a label report.

        Raises:
            Refused: when the image's header does not allow one, or the server does not take it.
        """
        self._entry(image_id)
        try:
            report = label_report(str(self.file(image_id)), label, datetime.datetime.now())
        except HeaderError as error:
            raise Refused("header", f"the header of this image allows no label that refers to it: {error}") from error
        self._store([report])
        with self._lock:
            self._labels.pop(image_id, None)
            if label is not None:
                self._labels[image_id] = label

    def keep_results(self, image_id: str, results: Mapping[str, bytes]) -> list[str]:
        """Store the DICOM results; the same model and image replace their own earlier ones.

        Raises:
            Refused: when the server does not take them.
        """
        kinds = [kind for kind in results if kind in _KINDS]
        self._store([results[kind] for kind in kinds])
        return kinds

    def _store(self, objects: Sequence[bytes]) -> None:
        try:
            with quiet:
                answer = self.client.store_instances([pydicom.dcmread(io.BytesIO(data)) for data in objects])
        except Exception as error:  # requests' errors, and a status that it makes one of
            raise Refused("archive", f"the DICOMweb server did not take it ({type(error).__name__})") from error
        failed = len(answer.get("FailedSOPSequence") or [])
        if failed:
            raise Refused("archive", f"the DICOMweb server did not take {failed} of {len(objects)} objects")

    def results(self, image_id: str) -> dict[str, Path]:
        """Results of the image on the server, copied here; the newest of each kind, and those that can be read."""
        image = self._entry(image_id)
        found: dict[str, tuple[str, Path]] = {}
        descriptions = {f"WSCXR anomaly {word} (research)": kind for kind, word in _KINDS.items()}
        for entry in self._find(StudyInstanceUID=image["StudyInstanceUID"]):
            kind = descriptions.get(entry.get("SeriesDescription", ""))
            if kind is None:
                continue
            path = self.copies / f"{_id(entry['SOPInstanceUID'])}.dcm"
            try:
                if not path.is_file():
                    self._copy(entry, path)
                with quiet:
                    ds = pydicom.dcmread(path, stop_before_pixels=True)
                when = f"{ds.ContentDate}{ds.ContentTime}"
                refers = image["SOPInstanceUID"] in _referred(ds)
            except Exception as error:  # of another program, or damaged, in whatever way
                logger.warning(
                    "a result on the DICOMweb server cannot be read and is skipped (%s)", type(error).__name__
                )
                continue
            if refers and when >= found.get(kind, ("", path))[0]:
                found[kind] = when, path
        return {kind: path for kind, (_, path) in found.items()}


def _id(sop_instance_uid: str) -> str:
    """An image's id; a hash, because UIDs have dots and belong to patients."""
    return hashlib.blake2b(sop_instance_uid.encode(), digest_size=8).hexdigest()


def _referred(ds: Any) -> set[str]:
    """SOP instance UIDs that a data set refers to, anywhere in it."""
    found: set[str] = set()
    for element in ds.iterall():
        if element.keyword == "ReferencedSOPInstanceUID":
            found.add(str(element.value))
    return found
