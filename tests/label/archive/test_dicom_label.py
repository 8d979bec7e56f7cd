"""Labels as Structured Reports: written, read back, and told from other objects."""

import datetime
import io

import pydicom
import pytest
from pydicom.data import get_testdata_file

from monai_wscxr.label.archive.studies import Label

pytest.importorskip("highdicom", reason="the extra dicom is not installed")
from monai_wscxr.label.archive.dicom_label import DESCRIPTION, label_report, read_label

WHEN = datetime.datetime(2026, 3, 4, 5, 6, 7)


@pytest.fixture(scope="module")
def image():
    return get_testdata_file("RG1_UNCR.dcm")


@pytest.mark.parametrize(
    "label", [Label(0), Label(1, "abnormal"), Label(1, "Verschattung, groß"), Label(None, None, True), None], ids=repr
)
def test_a_label_comes_back_with_its_image_and_time(image, label):
    report = pydicom.dcmread(io.BytesIO(label_report(image, label, WHEN)))
    source = pydicom.dcmread(image, stop_before_pixels=True)
    uid, when, found = read_label(report)
    assert (uid, found) == (source.SOPInstanceUID, label)
    assert when.startswith("20260304050607")
    assert when < read_label(pydicom.dcmread(io.BytesIO(label_report(image, label, WHEN.replace(day=5)))))[1]
    assert (report.StudyInstanceUID, report.PatientID) == (source.StudyInstanceUID, source.PatientID)
    assert (report.SeriesDescription, report.Modality) == (DESCRIPTION, "SR")


def test_every_decision_is_a_new_object_in_one_series(image):
    first, second = (pydicom.dcmread(io.BytesIO(label_report(image, Label(0), WHEN))) for _ in range(2))
    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert first.SeriesInstanceUID == second.SeriesInstanceUID


def test_other_objects_are_no_labels(image):
    damaged = pydicom.dcmread(io.BytesIO(label_report(image, Label(0), WHEN)))
    del damaged.ContentSequence
    for other in (pydicom.Dataset(), pydicom.dcmread(image, stop_before_pixels=True), damaged):
        with pytest.raises(ValueError, match="not an image label"):
            read_label(other)
