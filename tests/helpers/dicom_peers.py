"""Peers of the DICOM node for tests: radiographs, a sender, and an archive in this process."""

import contextlib
import io
import socket
import struct
import threading

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, evt
from pynetdicom.dsutils import encode
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE, ImplementationClassUIDNotification, MaximumLengthNotification
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification

from monai_wscxr.data.phantom import write_phantoms
from monai_wscxr.node.archives import RESULTS
from monai_wscxr.node.receiver import STORAGE

PATIENT = {"PatientName": "Zwoelfer^Joerge", "PatientID": "Q4711X", "AccessionNumber": "ACC0815"}


def dx(levels, uid=None, **elements):
    """Make a DX image of grey levels [H, W] (uint8), of a patient of its own unless the header says otherwise."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = uid or generate_uid()
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()
    ds.Modality, ds.BodyPartExamined, ds.ViewPosition = "DX", "CHEST", "PA"
    ds.Rows, ds.Columns = levels.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    ds.WindowCenter, ds.WindowWidth = 128, 256
    ds.PixelData = levels.astype(np.uint8).tobytes()
    ds["PixelData"].VR = "OB"
    ds.PatientBirthDate, ds.PatientSex, ds.StudyID = "", "", ""
    ds.StudyDate, ds.StudyTime, ds.ReferringPhysicianName = "20240102", "", ""
    for name, value in {**PATIENT, **elements}.items():
        setattr(ds, name, value)
    file = io.BytesIO()
    ds.save_as(file, enforce_file_format=True)
    return pydicom.dcmread(io.BytesIO(file.getvalue()))


def phantom_levels(folder, count, size=64):
    """Return grey levels [size, size] of so many phantoms, half of them abnormal."""
    from PIL import Image

    write_phantoms(folder, 1, 1, count - count // 2, count // 2, size=size, progress=False)
    found = [np.asarray(Image.open(path), dtype=np.float64) for path in sorted(folder.glob("test/**/*.png"))]
    return [np.round(levels * 255 / levels.max()).astype(np.uint8) for levels in found][:count]


def associate(port, title="SENDER", called="WSCXR", contexts=None, **options):
    """Open an association with the node."""
    ae = AE(ae_title=title)
    ae.acse_timeout, ae.dimse_timeout, ae.network_timeout, ae.connection_timeout = 20, 60, 60, 20
    for uid, syntaxes in contexts or [(Verification, None), *((uid, [ExplicitVRLittleEndian]) for uid in STORAGE)]:
        ae.add_requested_context(uid, syntaxes) if syntaxes else ae.add_requested_context(uid)
    return ae.associate("127.0.0.1", port, ae_title=called, **options)


def send(port, *images, **options):
    """Send images over one association; return the statuses."""
    association = associate(port, **options)
    assert association.is_established
    try:
        return [association.send_c_store(image).get("Status") for image in images]
    finally:
        association.release()


# ---- peers that speak byte by byte


def request_bytes():
    """Encode an A-ASSOCIATE-RQ."""
    request = A_ASSOCIATE()
    request.application_context_name = "1.2.840.10008.3.1.1.1"
    request.calling_ae_title, request.called_ae_title = "SENDER", "WSCXR"
    contexts = [build_context(Verification), build_context(DigitalXRayImageStorageForPresentation)]
    for number, context in enumerate(contexts):
        context.context_id = 2 * number + 1
    request.presentation_context_definition_list = contexts
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received, implementation.implementation_class_uid = 16382, "1.2.3"
    request.user_information = [length, implementation]
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(request)
    return pdu.encode()


def connect(port, associated=True):
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    if associated:
        connection.sendall(request_bytes())
        assert read_pdu(connection)[0] == 2
    return connection


def read_pdu(connection):
    """Read one PDU; return its type and length, or (None, 0) at the end."""
    try:
        head = connection.recv(6, socket.MSG_WAITALL)
        if len(head) < 6:
            return None, 0
        kind, length = struct.unpack(">BxL", head)
        connection.recv(length, socket.MSG_WAITALL)
        return kind, length
    except ConnectionResetError:
        return None, 0


def data_pdu(content, command, last, context=3):
    """Encode a P-DATA-TF PDU with one fragment."""
    fragment = bytes([context, command | last << 1]) + content
    return struct.pack(">BBL", 4, 0, len(fragment) + 4) + struct.pack(">L", len(fragment)) + fragment


def command_set(uid="1.2.3", field=0x0001):
    ds = pydicom.Dataset()
    ds.AffectedSOPClassUID, ds.CommandField = DigitalXRayImageStorageForPresentation, field
    ds.MessageID, ds.Priority, ds.CommandDataSetType = 1, 2, 1
    ds.AffectedSOPInstanceUID = uid
    body = encode(ds, True, True)
    length = pydicom.Dataset()
    length.CommandGroupLength = len(body)
    return encode(length, True, True) + body


class Archive:
    """An archive in this process that keeps what it gets.

    Attributes:
        stored: data sets by SOP Instance UID, in order of arrival.
        status: returned for each C-STORE; a function of the data set.
        commit: how requests for commitment are answered: "all", "none" or "ignore".
        report_to: called with event type and information of the answer; None sends it over the association of the request,
            which must be idle then.
    """

    def __init__(self, port=0):
        self.stored, self.repeats, self.status, self.commit = {}, 0, lambda ds: 0x0000, "all"
        self.asked, self.report_to = [], None
        ae = AE(ae_title="ARCHIVE")
        for uid in RESULTS:
            ae.add_supported_context(uid)
        ae.add_supported_context(StorageCommitmentPushModel)
        handlers = [(evt.EVT_C_STORE, self._store), (evt.EVT_N_ACTION, self._action)]
        self._server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
        self.port = self._server.server_address[1]
        self._ae = ae

    def _store(self, event):
        ds = event.dataset
        ds.file_meta = event.file_meta
        status = self.status(ds)
        if status is None:
            event.assoc.abort()
            return 0xC000
        if status == 0:
            self.repeats += ds.SOPInstanceUID in self.stored
            self.stored.setdefault(ds.SOPInstanceUID, ds)
        return status

    def _action(self, event):
        information = event.action_information
        self.asked.append(information)
        if self.commit != "ignore":
            threading.Timer(0.05, self._report, (event.assoc, information)).start()
        return 0x0000, None

    def _report(self, association, information):
        report = pydicom.Dataset()
        report.TransactionUID = information.TransactionUID
        entries = list(information.ReferencedSOPSequence)
        if self.commit == "all":
            report.ReferencedSOPSequence = entries
        else:
            for entry in entries:
                entry.FailureReason = 0x0110
            report.FailedSOPSequence = entries
        if self.report_to is not None:
            self.report_to(1 if self.commit == "all" else 2, report)
            return
        with contextlib.suppress(RuntimeError, ValueError):
            association.send_n_event_report(
                report, 1 if self.commit == "all" else 2, StorageCommitmentPushModel, "1.2.840.10008.1.20.1.1"
            )

    def close(self):
        self._server.shutdown()


@contextlib.contextmanager
def archive(port=0):
    """Run an archive during the block."""
    found = Archive(port)
    try:
        yield found
    finally:
        found.close()
