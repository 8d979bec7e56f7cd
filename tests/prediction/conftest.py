"""Fixtures of the tests of prediction runs: a small model, a folder of mixed inputs, DICOM files with patient data."""

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

PATIENT = {
    "PatientName": "Zwölfer^Jörgé",
    "PatientID": "Q%7&!~#X@4711",
    "PatientBirthDate": "19310607",
    "StudyDate": "20190813",
    "AccessionNumber": "ACC%0815+",
    "ReferringPhysicianName": "Überweiser^Hans",
    "InstitutionName": "Klinikum Oberdorf",
    "OtherPatientIDs": "ZZ-99881",
    "PatientAddress": "Gasse 7, Oberdorf",
    "PatientComments": "Kommentar zur Person",
    "StudyDescription": "Thorax von Jörgé",
    "ProtocolName": "Protokoll Zwölfer",
}


@pytest.fixture
def patient():
    """Patient data in the headers of the DICOM files."""
    return PATIENT


@pytest.fixture
def model_folder(make_model, tmp_path):
    """Output folder of an untrained but complete model."""
    make_model(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def write_dicom():
    """Function that writes grey levels [H, W] as a MONOCHROME1 DX file of a patient; keyword arguments change the header."""

    def write(path, levels, **elements):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(path)])
        ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        ds.SpecificCharacterSet = "ISO_IR 100"
        ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3.4.5", "1.2.3.4.5.6"
        ds.Modality, ds.BodyPartExamined, ds.ViewPosition = "DX", "CHEST", "PA"
        ds.Rows, ds.Columns = levels.shape
        ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME1", 0
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
        ds.WindowCenter, ds.WindowWidth = 128, 256
        ds.PixelData = (255 - levels).tobytes()
        ds["PixelData"].VR = "OB"
        for name, value in {**PATIENT, **elements}.items():
            setattr(ds, name, value)
        ds.save_as(path)
        return path

    return write


@pytest.fixture
def inputs(phantoms, tmp_path, write_dicom):
    """A folder with seven images, two of which are rejected, and files that are not inputs."""
    folder = tmp_path / "inputs"
    (folder / "b").mkdir(parents=True)
    pictures = sorted(phantoms.glob("test/normal/*.png")) + sorted(phantoms.glob("test/abnormal/*/*.png"))
    levels = [np.asarray(Image.open(p).convert("L") if Image.open(p).mode == "L" else Image.open(p)) for p in pictures]
    levels = [(v / (v.max() / 255)).astype(np.uint8) for v in levels]
    for number, values in enumerate(levels[:3]):
        Image.fromarray(values).save(folder / f"{number}.png")
    write_dicom(folder / "b" / "3.dcm", levels[3])
    write_dicom(folder / "b" / "lateral.dcm", levels[4], ViewPosition="LL")
    write_dicom(folder / "b" / "1.2.840.1", levels[5])
    (folder / "b" / "broken.png").write_bytes((folder / "0.png").read_bytes()[:300])
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


@pytest.fixture
def dicomdir(inputs, monkeypatch):
    """A DICOMDIR beside the inputs: two images of its folder, one in another case, and entries that point elsewhere."""
    monkeypatch.setattr(pydicom.config.settings, "_writing_validation_mode", pydicom.config.IGNORE)
    ds = pydicom.Dataset()
    names = [["b", "3.dcm"], ["B", "LATERAL.DCM"], ["..", "model"], "nothing", ["..", "inputs", "0.png"], [""]]
    records = []
    for name in names:
        record = pydicom.Dataset()
        record.DirectoryRecordType, record.ReferencedFileID = "IMAGE", name
        records.append(record)
    patient = pydicom.Dataset()
    patient.DirectoryRecordType, patient.PatientName = "PATIENT", PATIENT["PatientName"]
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.DirectoryRecordSequence = [patient, *records]
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.1.3.10", "1.2.3"
    ds.save_as(inputs / "DICOMDIR", enforce_file_format=True)
    return inputs / "DICOMDIR"
