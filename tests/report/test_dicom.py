"""DICOM results: valid, deterministic, readable by other libraries, and without unnecessary patient data."""

import datetime
import io
import json
import os
import shutil
import subprocess
import time
import urllib.request

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)

from monai_wscxr.model.calibration import ColourScale

hd = pytest.importorskip("highdicom", reason="the extra dicom is not installed")
from monai_wscxr.report import dicom, dicom_header  # noqa: E402 - needs highdicom

BEGAN = datetime.datetime(2026, 3, 4, 5, 6, 7)
KINDS = {"overlay", "map", "regions", "report"}
CLASSES = {
    "CR": ComputedRadiographyImageStorage,
    "DX": DigitalXRayImageStorageForPresentation,
    "OT": SecondaryCaptureImageStorage,
}


@pytest.fixture
def finding():
    y, x = np.mgrid[0:64, 0:64]
    peak = 3.9 * np.exp(-((x - 20) ** 2 + (y - 40) ** 2) / 80)
    return dicom.Finding(3.25, 0.0058, True, 1.2, 0.05, "ab" * 32, peak.astype(np.float32), ColourScale(0.3, 3.5, 1.2))


@pytest.fixture
def image():
    return np.random.default_rng(0).random((90, 70), dtype=np.float32)


@pytest.fixture
def source(tmp_path):
    """Write a DICOM image of 90 x 70 pixels; keyword arguments change elements of the header, None removes one."""

    def write(modality="CR", **elements):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CLASSES[modality], "1.2.3.4"
        ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        ds.SpecificCharacterSet = "ISO_IR 100"
        ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = CLASSES[modality], "1.2.3.4", modality
        ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3", "1.2.3.9"
        ds.PatientName, ds.PatientID, ds.PatientSex, ds.PatientBirthDate = "Zwölfer^Jörg", "Q%7&4711", "M", "19310607"
        ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20190813", "101112", "S1", "A1"
        ds.InstanceNumber, ds.PatientOrientation = 3, ["L", "F"]
        ds.Rows, ds.Columns, ds.BitsAllocated, ds.BitsStored, ds.HighBit = 90, 70, 16, 12, 11
        ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
        ds.PatientAddress, ds.OtherPatientIDs, ds.InstitutionName = "Gasse 7", "ZZ-99881", "Klinikum"
        ds.ReferringPhysicianName, ds.PatientComments, ds.EthnicGroup = "Überweiser^H", "Kommentar", "egal"
        ds.StudyDescription, ds.OperatorsName, ds.PatientAge = "Beschreibung", "Operateur^O", "088Y"
        for name, value in elements.items():
            if value is None:
                delattr(ds, name)
            else:
                setattr(ds, name, value)
        path = tmp_path / "source.dcm"
        ds.save_as(path)
        return str(path)

    return write


def decoded(results):
    return {kind: pydicom.dcmread(io.BytesIO(data)) for kind, data in results.items()}


def check_with_dciodvfy(results, folder):
    """Return the error lines of dciodvfy; skip the test if the program is missing."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (Debian: dicom3tools)")
    errors = []
    for kind, data in results.items():
        path = folder / f"{kind}.dcm"
        path.write_bytes(data)
        done = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True, errors="replace")
        errors += [f"{kind}: {line}" for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]
        assert done.returncode == 0 or errors
    return errors


@pytest.mark.parametrize("modality", ["CR", "DX", "OT"])
@pytest.mark.parametrize(
    "elements", [{}, {"PatientOrientation": None, "PatientSex": None, "StudyDate": None, "StudyID": None}]
)
def test_results_are_valid(source, image, finding, modality, elements, tmp_path):
    results = dicom.encode_results(source(modality, **elements), image, finding, BEGAN).objects
    assert set(results) == KINDS
    assert check_with_dciodvfy(results, tmp_path) == []


def test_results_of_rg1_are_valid(finding, tmp_path):
    path = get_testdata_file("RG1_UNCR.dcm", download=False) or pytest.skip("pydicom-data is not installed")
    results = dicom.encode_results(
        path, np.random.default_rng(0).random((1955, 1841), dtype=np.float32), finding, BEGAN
    ).objects
    assert check_with_dciodvfy(results, tmp_path) == []
    assert decoded(results)["overlay"].Rows > 1024 * 0.9


def test_maps_read_back_equal(source, image, finding):
    results = dicom.encode_results(source(), image, finding, BEGAN).objects
    values = dicom.map_of_image(dicom_header.read_source(source()), finding)
    assert values.shape == (90, 70)
    expected = np.rint(255 * finding.scale.position(values))
    read = decoded(results)
    np.testing.assert_array_equal(read["map"].pixel_array, expected)
    np.testing.assert_array_equal(read["regions"].pixel_array, values >= 1.2)
    assert 0 < (values >= 1.2).sum() < values.size / 2
    for kind, wanted in (("map", expected / 255), ("regions", values >= 1.2)):
        segmentation = hd.seg.segread(io.BytesIO(results[kind]))
        found = segmentation.get_pixels_by_source_instance(["1.2.3.4"], segment_numbers=[1])
        np.testing.assert_allclose(found[0, ..., 0], wanted, atol=1e-6)
        described = segmentation.get_segment_description(1)
        assert described.algorithm_type.value == "AUTOMATIC"
    assert read["map"].SegmentSequence[0].SegmentLabel == "Position on the scale 0.3 to 3.5"


def test_report_reads_back(source, image, finding):
    results = dicom.encode_results(source(), image, finding, BEGAN).objects
    report = hd.sr.srread(io.BytesIO(results["report"]))
    assert report.content.template_id == "1500" if hasattr(report.content, "template_id") else True
    [group] = report.content.get_image_measurement_groups()
    numbers = {m.name.meaning: m.value for m in group.get_measurements()}
    assert numbers == {
        "Anomaly score": 3.25,
        "P-Value": 0.0058,
        "Operating point on the anomaly score": 1.2,
        "False-positive rate of the operating point": 0.05,
    }
    [decision] = group.get_qualitative_evaluations()
    assert decision.value.meaning == "Flagged"
    assert ("ab" * 32).encode() in results["report"]
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    [evidence] = decoded(results)["report"].CurrentRequestedProcedureEvidenceSequence
    assert evidence.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "1.2.3.4"


def test_overlay_is_a_picture_of_map_and_caption(source, image, finding):
    capture = decoded(dicom.encode_results(source(), image, finding, BEGAN).objects)["overlay"]
    assert (capture.PhotometricInterpretation, capture.BurnedInAnnotation, capture.Columns) == ("RGB", "NO", 70)
    pixels = capture.pixel_array
    assert pixels.shape[0] > 90
    place = (round(40 / 64 * 90), round(20 / 64 * 70))  # the peak of the map is yellow
    assert pixels[place][0] > 1.3 * pixels[place][2] + 20
    grey = pixels[5:10, 60:]
    assert (grey[..., 0] == grey[..., 2]).all()
    marked = decoded(dicom.encode_results(source(BurnedInAnnotation="YES"), image, finding, BEGAN).objects)["overlay"]
    assert marked.BurnedInAnnotation == "YES"


def test_same_input_and_model_give_the_same_objects(source, image, finding, monkeypatch):
    first = dicom.encode_results(source(), image, finding, BEGAN).objects
    time.sleep(1.1)  # the current time must have no effect
    assert dicom.encode_results(source(), image, finding, BEGAN).objects == first
    uids = {kind: ds.SOPInstanceUID for kind, ds in decoded(first).items()}
    assert len(set(uids.values())) == 4
    assert all(uid.startswith("2.25.") and pydicom.uid.UID(uid).is_valid and len(uid) <= 64 for uid in uids.values())
    other_model = dicom.Finding(**{**finding.__dict__, "model_sha256": "cd" * 32})
    for changes, said in (({}, other_model), ({"SOPInstanceUID": "1.2.3.5"}, finding)):
        results = dicom.encode_results(source(**changes), image, said, BEGAN).objects
        assert not set(uids.values()) & {ds.SOPInstanceUID for ds in decoded(results).values()}


def test_only_what_files_a_result_is_taken_over(source, image, finding):
    results = dicom.encode_results(source(), image, finding, BEGAN).objects
    for kind, ds in decoded(results).items():
        assert str(ds.PatientName) == "Zwölfer^Jörg", kind
        assert (ds.PatientID, ds.PatientSex, ds.PatientBirthDate) == ("Q%7&4711", "M", "19310607")
        assert (ds.StudyInstanceUID, ds.StudyDate, ds.AccessionNumber) == ("1.2.3", "20190813", "A1")
        assert ds.SeriesInstanceUID != "1.2.3.9"
        assert ds.ReferringPhysicianName == ""
        for entry in (
            "PatientAddress",
            "OtherPatientIDs",
            "InstitutionName",
            "PatientComments",
            "EthnicGroup",
            "PatientAge",
        ):
            assert entry not in ds
        for text in ("Gasse", "99881", "Klinikum", "Kommentar", "Beschreibung", "Operateur", "berweiser"):
            assert text.encode() not in results[kind]


@pytest.mark.filterwarnings("ignore")
def test_entries_out_of_form_are_left_empty_and_missing_uids_refused(source, image, finding, tmp_path):
    for time_of_day in ("10", "1011", "101112", "101112.5"):
        assert dicom_header.read_source(source(StudyTime=time_of_day)).StudyTime == time_of_day
    odd = source(PatientSex="X", StudyDate="20190230", StudyTime="256000", InstanceNumber=0)
    results = dicom.encode_results(odd, image, finding, BEGAN).objects
    for ds in decoded(results).values():
        assert (ds.PatientSex, ds.StudyDate, ds.StudyTime, ds.PatientID) == ("", "", "", "Q%7&4711")
    assert check_with_dciodvfy(results, tmp_path) == []
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"):
        with pytest.raises(dicom_header.HeaderError, match=name) as refused:
            dicom.encode_results(source(**{name: None}), image, finding, BEGAN)
        assert refused.value.code == "invalid_uid"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("AccessionNumber", "A" * 17, "identity_too_long"),
        ("StudyID", "S" * 17, "identity_too_long"),
        ("PatientID", "P" * 65, "identity_too_long"),
        ("PatientName", "N" * 65, "identity_too_long"),
        ("PatientName", "Yamada^Tarou=" + "山" * 65, "identity_too_long"),
        ("PatientName", "a=b=c=d", "identity_invalid"),
        ("PatientID", ["A1", "A2"], "identity_invalid"),
        ("AccessionNumber", ["1", "2"], "identity_invalid"),
        ("PatientID", "a\x01b", "identity_invalid"),
        ("PatientBirthDate", "unknown", "identity_invalid"),
        ("PatientBirthDate", "1931060", "identity_invalid"),
        ("PatientBirthDate", "99999999", "identity_invalid"),
        ("PatientBirthDate", "19310230", "identity_invalid"),
    ],
)
def test_identity_that_cannot_be_copied_unchanged_gives_no_results(source, image, finding, name, value, code):
    elements = {name: value, "SpecificCharacterSet": "ISO_IR 192"}
    with pytest.raises(dicom_header.HeaderError, match=name) as refused:
        dicom.encode_results(source(**elements), image, finding, BEGAN)
    assert refused.value.code == code
    assert code in dicom_header.REASONS
    for text in [value] if isinstance(value, str) else value:
        assert len(text) < 3 or text not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("AccessionNumber", "A" * 16, "A" * 16),
        ("StudyID", "S" * 16, "S" * 16),
        ("PatientID", "P" * 64, "P" * 64),
        ("PatientID", "  7 ", "7"),  # padding does not count
        ("PatientName", "N" * 64 + "=" + "山" * 64 + "=" + "K" * 64, "N" * 64 + "=" + "山" * 64 + "=" + "K" * 64),
        ("PatientBirthDate", "1931.06.07", "19310607"),
        ("AccessionNumber", "", ""),
        ("PatientBirthDate", None, ""),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_identity_up_to_the_longest_allowed_is_kept(source, image, finding, tmp_path, name, value, expected):
    results = dicom.encode_results(
        source(**{name: value, "SpecificCharacterSet": "ISO_IR 192"}), image, finding, BEGAN
    ).objects
    for ds in decoded(results).values():
        assert str(ds[name].value or "") == expected


def test_pictures_that_share_an_instance_uid_give_distinct_objects(source, image, finding):
    def uids(results):
        read = decoded(results.objects).values()
        return {ds.SOPInstanceUID for ds in read}, {ds.SeriesInstanceUID for ds in read}

    first = dicom.encode_results(source(), image, finding, BEGAN)
    again = dicom.encode_results(source(), image.copy(), finding, BEGAN)
    assert (again.instance, again.results) == (first.instance, first.results)
    other = dicom.encode_results(source(), image[::-1].copy(), finding, BEGAN)
    assert other.instance == first.instance
    assert other.results != first.results
    assert not uids(first)[0] & uids(other)[0]
    assert uids(first)[1] == uids(other)[1]  # one series
    for changes in ({"PatientID": "someone else"}, {"StudyInstanceUID": "1.2.7"}, {"SeriesInstanceUID": "1.2.8"}):
        moved = dicom.encode_results(source(**changes), image, finding, BEGAN)
        assert not uids(first)[0] & uids(moved)[0]
        assert not uids(first)[1] & uids(moved)[1]


@pytest.mark.parametrize(
    ("elements", "aspect"),
    [
        ({"PixelAspectRatio": [2, 1]}, 2.0),
        ({"PixelAspectRatio": [1, 2]}, 0.5),
        ({"PixelSpacing": [0.3, 0.1]}, 3.0),
        ({"ImagerPixelSpacing": [0.1, 0.15]}, 2 / 3),
        ({"NominalScannedPixelSpacing": [0.2, 0.1]}, 2.0),
        ({"PixelSpacing": [0.2, 0.2], "PixelAspectRatio": [2, 1]}, 1.0),  # a spacing counts more than a ratio
        ({"PixelSpacing": [0, 0], "ImagerPixelSpacing": [0.2, 0.1]}, 2.0),
        ({"PixelAspectRatio": [1000, 1]}, 1.0),  # no such pixels exist
        ({"PixelAspectRatio": [3, 3]}, 1.0),
        ({}, 1.0),
    ],
)
def test_results_keep_the_aspect_of_pixels(source, image, finding, tmp_path, elements, aspect):
    results = dicom.encode_results(source(**elements), image, finding, BEGAN).objects
    read = decoded(results)
    capture = read["overlay"]
    caption = 5 * max(10, capture.Columns // 50)
    assert "PixelAspectRatio" not in capture
    assert (capture.Rows - caption) / capture.Columns == pytest.approx(aspect * 90 / 70, rel=0.02)
    for kind in ("map", "regions"):
        assert (read[kind].Rows, read[kind].Columns) == (90, 70)
        height, width = read[kind].get("PixelAspectRatio") or (1, 1)
        assert height / width == pytest.approx(aspect)
    # the peak of the map lies at the same place of the picture
    y, x = round(40 / 64 * (capture.Rows - caption)), round(20 / 64 * capture.Columns)
    pixel = capture.pixel_array[y, x].astype(int)
    assert pixel[0] > 1.3 * pixel[2] + 20
    assert check_with_dciodvfy(results, tmp_path) == []


def test_nothing_above_the_threshold_is_an_empty_region(source, image, finding):
    quiet = dicom.Finding(**{**finding.__dict__, "anomaly_map": np.zeros((64, 64), np.float32), "abnormal": False})
    read = decoded(dicom.encode_results(source(), image, quiet, BEGAN).objects)
    assert read["regions"].pixel_array.max() == 0
    assert read["map"].pixel_array.max() == 0


@pytest.fixture
def orthanc(tmp_path):
    """A running Orthanc with DICOMweb on a free port; skips the test if it is not installed."""
    program = shutil.which("Orthanc") or pytest.skip("Orthanc is not installed (Debian: orthanc, orthanc-dicomweb)")
    plugins = [p for p in ("/usr/share/orthanc/plugins",) if os.path.exists(f"{p}/libOrthancDicomWeb.so")]
    if not plugins:
        pytest.skip("Orthanc's DICOMweb plugin is not installed (Debian: orthanc-dicomweb)")
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "StorageDirectory": str(tmp_path / "store"),
        "IndexDirectory": str(tmp_path / "store"),
        "HttpPort": port,
    }
    settings |= {
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "Plugins": plugins,
        "AuthenticationEnabled": False,
    }
    settings["DicomWeb"] = {"Enable": True}
    (tmp_path / "orthanc.json").write_text(json.dumps(settings))
    server = subprocess.Popen(
        [program, str(tmp_path / "orthanc.json")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(f"{address}/system", timeout=1)
                break
            except OSError:
                time.sleep(0.1)
        else:
            pytest.skip("Orthanc does not start here")
        yield address
    finally:
        server.terminate()
        server.wait(20)


def test_orthanc_takes_and_gives_back(orthanc, source, image, finding):
    """STOW-RS stores all four objects, and WADO-RS returns the same pixels."""
    results = dicom.encode_results(source("DX"), image, finding, BEGAN).objects
    parts = b"".join(b"--x\r\nContent-Type: application/dicom\r\n\r\n" + data + b"\r\n" for data in results.values())
    request = urllib.request.Request(
        f"{orthanc}/dicom-web/studies",
        data=parts + b"--x--",
        headers={
            "Content-Type": 'multipart/related; type="application/dicom"; boundary=x',
            "Accept": "application/dicom+json",
        },
    )
    with urllib.request.urlopen(request) as response:
        answer = json.load(response)
    assert answer.get("00081198", {}).get("Value", []) == []  # FailedSOPSequence
    assert len(answer["00081199"]["Value"]) == 4
    with urllib.request.urlopen(f"{orthanc}/dicom-web/studies/1.2.3/instances") as response:
        assert len(json.load(response)) == 4
    expected = decoded(results)
    for instance in json.load(urllib.request.urlopen(f"{orthanc}/instances")):
        stored = pydicom.dcmread(io.BytesIO(urllib.request.urlopen(f"{orthanc}/instances/{instance}/file").read()))
        [match] = [ds for ds in expected.values() if ds.SOPInstanceUID == stored.SOPInstanceUID]
        assert stored == match
