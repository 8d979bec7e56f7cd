"""Studies on a DICOMweb server: radiographs found by QIDO-RS and read by WADO-RS, labels and results stored by STOW-RS.

Labels are the Structured Reports of `dicom_label`, results the objects of `report.dicom`, all filed in the study of their
image. So a label server finds them again after a restart, and viewers find them too. Unreadable objects are skipped.
"""

from __future__ import annotations

import datetime
import io
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pydicom
import requests
from dicomweb_client import DICOMwebClient
from dicomweb_client.session_utils import create_session_from_user_pass

from monai_wscxr.data.radiograph.base import quiet
from monai_wscxr.data.radiograph.pydicom_versions import encoded
from monai_wscxr.errors import InputError
from monai_wscxr.label.archive.dicom_label import DESCRIPTION, label_report, read_label
from monai_wscxr.label.archive.keys import IdKey, unkeyed_id
from monai_wscxr.label.archive.patients import hashed_patient
from monai_wscxr.label.archive.studies import Label, Refused, UnknownImage
from monai_wscxr.report.dicom_header import HeaderError
from monai_wscxr.system.atomic import replacing

logger = logging.getLogger("monai_wscxr")

PAGE = 500  # objects per request
# kinds of results, with the word for each in series descriptions
_KINDS = {"overlay": "overlay", "fraction": "map", "regions": "regions", "report": "report"}


class DicomWebStudies:
    """Radiographs on a DICOMweb server.

    Args:
        url: address of the service, for instance http://127.0.0.1:8042/dicom-web. User name and password, if it asks for
            them, come from the environment variables MONAI_LABEL_DICOMWEB_USERNAME and MONAI_LABEL_DICOMWEB_PASSWORD, as in
            MONAI Label.
        folder: work folder; its subfolder `copies` takes copies of images. They contain patient data, so only the owner can
            open it.
        modalities: modalities of the images to list.

    Raises:
        InputError: when the server does not answer, or the key of the ids is damaged.
    """

    def __init__(self, url: str, folder: str | Path, modalities: Sequence[str] = ("DX", "CR")) -> None:
        self.source, self.modalities = url.rstrip("/"), tuple(modalities)
        user, password = (os.environ.get(f"MONAI_LABEL_DICOMWEB_{name}") for name in ("USERNAME", "PASSWORD"))
        session = create_session_from_user_pass(user, password) if user and password else requests.Session()
        session.max_redirects = 0  # an answer must not send user name and password to another address
        self.client = DICOMwebClient(url=self.source, session=session)
        # the client's own five attempts take half a minute, which a person at a page or a terminal waits for
        self.client.set_http_retry_params(max_attempts=3, wait_exponential_multiplier=250)
        self.copies = Path(folder) / "copies"
        self.copies.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._key = IdKey(Path(folder))
        self._lock = threading.Lock()
        self._images: dict[str, dict[str, str]] = {}
        self._labels: dict[str, Label] = {}
        self._read: dict[str, tuple[str, str, Label | None] | None] = {}  # label reports by SOP instance UID
        self.refresh()

    # ---- queries

    def _find(self, **filters: str) -> Iterator[dict[str, str]]:
        """List instances, page by page; yield the attributes of each as text by keyword."""
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
        """List the images, and read the label reports that have not been read yet."""
        images: dict[str, dict[str, str]] = {}
        for modality in self.modalities:
            for entry in self._find(Modality=modality):
                if all(entry.get(f"{level}InstanceUID") for level in ("Study", "Series", "SOP")):
                    images[self._id(entry["SOPInstanceUID"])] = entry
        latest: dict[str, tuple[str, Label | None]] = {}
        for entry in self._find(Modality="SR"):
            if entry.get("SeriesDescription") != DESCRIPTION:  # not part of the query: Orthanc does not match brackets
                continue
            found = self._read_report(entry)
            if found is not None and found[1] >= latest.get(found[0], ("", None))[0]:
                latest[found[0]] = found[1], found[2]
        ordered = sorted(latest.items(), key=lambda entry: entry[1][0])
        for image_id, entry in images.items():  # copies that an earlier version stored under an id without a key
            earlier = self.copies / f"{unkeyed_id(entry['SOPInstanceUID'].encode())}.dcm"
            if earlier.is_file():
                earlier.replace(self.copies / f"{image_id}.dcm")
        with self._lock:
            self._images = dict(sorted(images.items(), key=lambda e: (e[1].get("StudyDate", ""), e[0])))
            self._labels = {self._id(uid): label for uid, (_, label) in ordered if label is not None}

    def _read_report(self, entry: Mapping[str, str]) -> tuple[str, str, Label | None] | None:
        """Return the content of a label report, see `read_label`, or None when it cannot be read; each is read once."""
        uid = entry["SOPInstanceUID"]
        if uid not in self._read:
            try:
                self._read[uid] = read_label(self._retrieve(entry))
            except (ValueError, InputError) as error:
                logger.warning("a label report on the DICOMweb server cannot be read and is skipped (%s)", error)
                self._read[uid] = None
        return self._read[uid]

    def _retrieve(self, entry: Mapping[str, str]) -> pydicom.Dataset:
        """Fetch an object.

        Raises:
            InputError: when the server does not deliver it, or not as DICOM.
        """
        study, series, instance = (entry[f"{level}InstanceUID"] for level in ("Study", "Series", "SOP"))
        try:
            with quiet:
                return self.client.retrieve_instance(study, series, instance)
        except Exception as error:  # from requests, or from pydicom when the answer is damaged
            raise InputError(
                f"the DICOMweb server does not deliver an object that it lists ({type(error).__name__})"
            ) from error

    def _id(self, sop_instance_uid: str) -> str:
        """Return the id of an object: a keyed hash, because UIDs identify patients."""
        return self._key.id(sop_instance_uid.encode("utf-8", "replace"))

    # ---- Studies

    def ids(self) -> list[str]:
        """Return the ids of all images, by study date."""
        with self._lock:
            return list(self._images)

    def _entry(self, image_id: str) -> dict[str, str]:
        """Return the server's attributes of an image."""
        with self._lock:
            entry = self._images.get(image_id)
        if entry is None:
            raise UnknownImage(image_id)
        return entry

    def name(self, image_id: str) -> str:
        """Return modality, study date and the end of the image's UID, nothing about the patient."""
        entry = self._entry(image_id)
        return f"{entry.get('Modality', '')} {entry.get('StudyDate', '')} ...{entry['SOPInstanceUID'][-12:]}"

    def file(self, image_id: str) -> Path:
        """Return a local copy of the image, fetched on first use."""
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
        """Return a pseudonym made from PatientID; an image without one is its own patient."""
        entry = self._entry(image_id)
        return hashed_patient(entry.get("PatientID", "")) or unkeyed_id(entry["SOPInstanceUID"].encode())

    def labels(self) -> dict[str, Label]:
        """Return the labels of the listed images."""
        with self._lock:
            return {image_id: label for image_id, label in self._labels.items() if image_id in self._images}

    def put(self, image_id: str, label: Label | None) -> None:
        """Store a label report on the server.

        Raises:
            Refused: when the image's header does not allow a report that refers to it, or the server does not accept it.
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
        """Store the DICOM results on the server; they replace earlier ones of the same model and image.

        Raises:
            Refused: when the server does not accept them.
        """
        kinds = [kind for kind in results if kind in _KINDS]
        self._store([results[kind] for kind in kinds])
        return kinds

    def _store(self, objects: Sequence[bytes]) -> None:
        try:
            with quiet:
                answer = self.client.store_instances([pydicom.dcmread(io.BytesIO(data)) for data in objects])
        except Exception as error:  # the connection failed, or the server answered with an error status
            raise Refused(
                "archive", f"the DICOMweb server did not accept the objects ({type(error).__name__})"
            ) from error
        failed = len(answer.get("FailedSOPSequence") or [])
        if failed:
            raise Refused("archive", f"the DICOMweb server did not accept {failed} of {len(objects)} objects")

    def results(self, image_id: str) -> dict[str, Path]:
        """Return local copies of the image's results on the server: the newest readable one of each kind."""
        image = self._entry(image_id)
        found: dict[str, tuple[str, Path]] = {}
        descriptions = {f"WSCXR anomaly {word} (research)": kind for kind, word in _KINDS.items()}
        for entry in self._find(StudyInstanceUID=image["StudyInstanceUID"]):
            kind = descriptions.get(entry.get("SeriesDescription", ""))
            if kind is None:
                continue
            path = self.copies / f"{self._id(entry['SOPInstanceUID'])}.dcm"
            try:
                if not path.is_file():
                    self._copy(entry, path)
                with quiet:
                    ds = pydicom.dcmread(path, stop_before_pixels=True)
                when = f"{ds.ContentDate}{ds.ContentTime}"
                refers = image["SOPInstanceUID"] in _referred(ds)
            except Exception as error:  # damaged, or written by another program
                logger.warning(
                    "a result on the DICOMweb server cannot be read and is skipped (%s)", type(error).__name__
                )
                continue
            if refers and when >= found.get(kind, ("", path))[0]:
                found[kind] = when, path
        return {kind: path for kind, (_, path) in found.items()}


def _referred(ds: pydicom.Dataset) -> set[str]:
    """Return the SOP instance UIDs that a data set refers to at any depth."""
    found: set[str] = set()
    for element in ds.iterall():
        if element.keyword == "ReferencedSOPInstanceUID":
            found.add(str(element.value))
    return found
