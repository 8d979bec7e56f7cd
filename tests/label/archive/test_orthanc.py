"""A real Orthanc: DX images are found, scored and labelled; labels and results are stored in it and found again."""

import io
import json
import os
import subprocess
import urllib.request
import uuid
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from monai_wscxr.data.phantom import write_phantoms
from monai_wscxr.data.radiograph.pydicom_versions import encoded
from tests.helpers.serving import PYTHON, ROOT, Client, label_server, needs_label_environment, needs_orthanc, orthanc

pytestmark = needs_label_environment

SMALL = ["--set", "image_size=96", "--set", "neighbourhood=3", "--set", "epochs=3", "--set", "device=cpu"]
ALLOW = ["--set", "allow=[burned_in_annotation,other_body_part,suspicious_polarity]"]
DX = "1.2.840.10008.5.1.4.1.1.1.1"


def dx_files():
    """Make three DX images of three patients from the CR chest image RG1 of pydicom-data."""
    files = []
    for number in range(3):
        ds = pydicom.dcmread(get_testdata_file("RG1_UNCR.dcm"))
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = DX
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()
        ds.Modality, ds.PatientID, ds.PatientName = "DX", f"P{number}", f"Test^{number}"
        ds.PresentationIntentType = "FOR PRESENTATION"
        pixels = ds.pixel_array.copy()  # shift a part, so that the pictures differ
        pixels[: 200 * (number + 1)] = np.roll(pixels[: 200 * (number + 1)], 50 * number, axis=1)
        ds.PixelData = pixels.tobytes()
        buffer = io.BytesIO()
        encoded(ds, buffer)
        files.append(buffer.getvalue())
    return files


def stow(port, files):
    mark = uuid.uuid4().hex.encode()
    parts = [b"--" + mark + b"\r\nContent-Type: application/dicom\r\n\r\n" + data + b"\r\n" for data in files]
    kind = f'multipart/related; type="application/dicom"; boundary={mark.decode()}'
    headers = {"Content-Type": kind, "Accept": "application/dicom+json"}
    body = b"".join(parts) + b"--" + mark + b"--\r\n"
    status, _, answer = Client(port)("POST", "/dicom-web/studies", body, headers)
    assert status == 200, answer
    assert len(json.loads(answer)["00081199"]["Value"]) == len(files)


def listed(port):
    """List the modalities of all objects in Orthanc, by QIDO."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/dicom-web/instances?includefield=SOPClassUID&includefield=Modality",
        headers={"Accept": "application/dicom+json"},
    )
    with urllib.request.urlopen(request) as answer:
        found = json.load(answer)
    return sorted(entry["00080060"]["Value"][0] for entry in found)


@needs_orthanc
def test_labels_and_results_live_in_the_archive(tmp_path):
    write_phantoms(tmp_path / "phantoms", 24, 1, 1, 1, size=96, progress=False)
    with orthanc(tmp_path) as port:
        stow(port, dx_files())
        address = f"http://127.0.0.1:{port}/dicom-web"
        options = ["--normals", tmp_path / "phantoms/train/normal", *SMALL, *ALLOW]
        with label_server(address, tmp_path / "log", "--work", tmp_path / "one", *options) as client:
            assert client.json("POST", "/scoring/anomaly_score?run_sync=true") == {
                "images": 3,
                "scored": 3,
                "rejected": 0,
            }
            image_id = client.json("POST", "/activelearning/most_suspicious", {})["id"]
            other = client.json("POST", "/activelearning/random", {})["id"]
            status, _, body = client.form(
                "POST", f"/infer/wscxr?image={image_id}&output=json", {"params": json.dumps({"save_label": True})}
            )
            assert status == 200, body
            assert set(json.loads(body)["kept"]) == {"overlay", "fraction", "regions", "report"}
            assert client.label(image_id, {"image_label": 1, "class": "Verschattung, groß"})[0] == 200
            if other != image_id:
                assert client.label(other, {"image_label": 0})[0] == 200
                assert client("DELETE", f"/datastore/label?id={other}&tag=final")[0] == 200
            assert client.train()["status"] == "DONE"
        kinds = listed(port)
        assert kinds.count("DX") == 3
        assert kinds.count("OT") == 1  # the Secondary Capture
        assert kinds.count("SEG") == 2
        assert kinds.count("SR") >= 2  # result and label

        # a damaged label report and a foreign segmentation must not stop a server from starting
        stow(port, [foreign("SR", "WSCXR image label (research)"), foreign("SEG", "something else")])
        with label_server(address, tmp_path / "log", "--work", tmp_path / "two", *options) as client:
            objects = client.json("GET", "/datastore/?output=all")["objects"]
            assert len(objects) == 3
            labelled = {i: (e["label"], e["class"]) for i, e in objects.items() if e["label"] is not None}
            assert list(labelled.values()) == [(1, "Verschattung, groß")]
            assert image_id not in labelled  # another work folder has another key, and so other ids
            (image_id,) = labelled
            status, _, body = client("GET", f"/datastore/label?label={image_id}&tag=overlay")
            assert status == 200
            capture = pydicom.dcmread(io.BytesIO(body))
            assert capture.SOPClassUID.name == "Secondary Capture Image Storage"
            status, _, body = client("GET", f"/datastore/label?label={image_id}&tag=fraction")
            assert pydicom.dcmread(io.BytesIO(body)).SegmentationType == "FRACTIONAL"
            status, _, body = client("GET", "/proxy/dicom/qido/studies")
            assert status == 200
            assert len(json.loads(body)) >= 3
            assert client("GET", "/proxy/dicom/..%2f..%2fsystem")[0] == 404
            assert client("POST", "/proxy/dicom/stow/studies")[0] == 404


def foreign(modality, description):
    """Make an object of another program, with the attributes that an archive requires and no readable content."""
    ds = pydicom.Dataset()
    ds.SOPClassUID = {"SR": "1.2.840.10008.5.1.4.1.1.88.33", "SEG": "1.2.840.10008.5.1.4.1.1.66.4"}[modality]
    ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid(), generate_uid()
    ds.Modality, ds.SeriesDescription, ds.PatientID, ds.PatientName = modality, description, "P9", "Test^9"
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    if int(pydicom.__version__.partition(".")[0]) < 3:
        ds.is_little_endian, ds.is_implicit_VR = True, False
    buffer = io.BytesIO()
    encoded(ds, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "http://127.0.0.1:9/dicom-web/"])
def test_a_server_that_does_not_answer_ends_with_one_sentence(address, tmp_path):
    command = [str(PYTHON), "-m", "monai_wscxr", "label", address, "--monailabel", "--work", str(tmp_path / "work")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 2
    assert "does not answer" in done.stderr
    assert "Traceback" not in done.stderr
    assert Path(tmp_path / "work").exists()
