"""Gates against readable images that are not frontal chest radiographs."""

import warnings
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.uid import DigitalXRayImageStorageForProcessing

from monai_wscxr.data.phantom import make_phantom
from monai_wscxr.data.radiograph.base import GATES
from monai_wscxr.data.radiograph.gates import POLARITY_LIMIT, chest_likeness
from monai_wscxr.data.radiograph.read import read_radiograph
from tests.helpers.radiograph_files import GREY, SECRET, WINDOW, codes, dicom, png, rejected, sample


@pytest.mark.parametrize(
    ("elements", "code"),
    [
        ({"ViewPosition": "LL"}, "lateral_view"),
        ({"ViewPosition": "LATERAL"}, "lateral_view"),
        ({"ViewPosition": "RAO"}, "lateral_view"),
        ({"ViewCodeSequence": ("R-10236", "SRT", "left lateral")}, "lateral_view"),
        ({"BodyPartExamined": "HAND"}, "other_body_part"),
        ({"AnatomicRegionSequence": ("T-D8700", "SRT", "Hand")}, "other_body_part"),
        ({"BurnedInAnnotation": "YES"}, "burned_in_annotation"),
        ({"ViewCodeSequence": ("R-10224", "SRT", "seitlich von rechts")}, "lateral_view"),  # the code counts too
        ({"ViewCodeSequence": ("399173006", "SCT", "")}, "lateral_view"),
        ({"PatientOrientation": ["A", "F"]}, "lateral_view"),
        ({"PatientOrientation": ["L", "H"]}, "not_upright"),
        ({"PatientOrientation": ["F", "R"]}, "not_upright"),
        ({"PatientOrientation": ["HL", "L"]}, "not_upright"),
        ({"PresentationIntentType": "FOR PROCESSING"}, "for_processing"),
        ({"SOPClassUID": DigitalXRayImageStorageForProcessing}, "for_processing"),
    ],
)
def test_header_gates_close_and_open(tmp_path, elements, code):
    elements = {name: codes(*value) if isinstance(value, tuple) else value for name, value in elements.items()}
    path = dicom(tmp_path / "a", GREY, **WINDOW, **elements)
    assert rejected(path).code == code
    assert rejected(path, allow=set(GATES) - {code}).code == code
    np.testing.assert_allclose(read_radiograph(path, allow=[code]).image, GREY / 255.0, atol=1e-6)


@pytest.mark.parametrize(
    "elements",
    [
        {"ViewPosition": "PA", "BodyPartExamined": "CHEST", "BurnedInAnnotation": "NO"},
        {"ViewPosition": "AP", "BodyPartExamined": "PORT CHEST"},
        {"ViewPosition": "", "BodyPartExamined": "", "BurnedInAnnotation": ""},
        {"BodyPartExamined": "THORAX", "AnatomicRegionSequence": ("T-D3000", "SRT", "Chest")},
        {"BodyPartExamined": "UNKNOWN", "ViewCodeSequence": ("R-10214", "SRT", "postero-anterior")},
        {"PatientOrientation": ["L", "F"], "PresentationIntentType": "FOR PRESENTATION"},
        {"PatientOrientation": ["R", "FP"]},  # mirrored
        {"PatientOrientation": ["L"], "ViewCodeSequence": ("", "", "")},
    ],
)
def test_header_gates_let_chests_pass(tmp_path, elements):
    elements = {name: codes(*value) if isinstance(value, tuple) else value for name, value in elements.items()}
    path = dicom(tmp_path / "a", GREY, **WINDOW, **elements)
    np.testing.assert_allclose(read_radiograph(path).image, GREY / 255.0, atol=1e-6)


def test_body_part_is_quoted_only_when_it_is_a_defined_term(tmp_path):
    assert "(HAND)" in str(rejected(dicom(tmp_path / "a", GREY, BodyPartExamined="HAND")))
    assert "DOE" not in str(rejected(dicom(tmp_path / "b", GREY, BodyPartExamined="DOE JANE"))).upper()


def test_negatives_are_noticed_in_every_format(tmp_path):
    picture = make_phantom(0, 128).image
    levels = np.rint(255 * picture / picture.max()).astype(np.uint8)
    png(tmp_path / "right.png", levels)
    png(tmp_path / "wrong.png", 255 - levels)
    dicom(tmp_path / "right.dcm", 255 - levels, PhotometricInterpretation="MONOCHROME1", **WINDOW)
    dicom(tmp_path / "wrong.dcm", 255 - levels, **WINDOW)
    nib.save(nib.Nifti1Image((255 - levels).T, np.eye(4)), tmp_path / "wrong.nii")
    for name in ("right.png", "right.dcm"):
        np.testing.assert_allclose(read_radiograph(tmp_path / name).image, levels / 255.0, atol=1e-6)
    for name in ("wrong.png", "wrong.dcm", "wrong.nii"):
        assert rejected(tmp_path / name).code == "suspicious_polarity"
        read_radiograph(tmp_path / name, allow=["suspicious_polarity"])


def test_polarity_gate_judges_likeness_and_leaves_noise_alone():
    assert chest_likeness(read_radiograph(sample("RG1_UNCR.dcm")).image) > 0.5
    generator = np.random.default_rng(0)
    for _ in range(50):
        noise = generator.random((64, 80), dtype=np.float32)
        assert abs(chest_likeness(noise)) < -POLARITY_LIMIT
    assert chest_likeness(noise) == pytest.approx(-chest_likeness(1 - noise), abs=1e-6)


def test_gates_are_named_or_refused(tmp_path):
    path = png(tmp_path / "a.png", GREY)
    for wrong in (["lateral"], "lateral_view"):
        with pytest.raises(ValueError, match="unknown gate"):
            read_radiograph(path, allow=wrong)


def test_warnings_of_libraries_are_not_said_and_filters_come_back(tmp_path, recwarn, caplog):
    ds = pydicom.dcmread(dicom(tmp_path / "a", GREY, **WINDOW))
    ds.SpecificCharacterSet = SECRET
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds.save_as(tmp_path / "b")
    caplog.clear()
    recwarn.clear()
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read_radiograph, [tmp_path / "b"] * 16))
    assert warnings.filters == before
    assert [str(w.message) for w in recwarn.list] == []
    assert caplog.text == ""
    pydicom.dcmread(tmp_path / "b").PatientName  # noqa: B018 - here pydicom does quote
    assert SECRET in caplog.text


@pytest.mark.parametrize("shape", [(100, 401), (401, 100), (100, 2000)])
def test_strips_are_unlike_a_chest(tmp_path, shape):
    levels = np.tile(np.arange(shape[1], dtype=np.uint8), (shape[0], 1))
    path = png(tmp_path / "strip.png", levels)
    assert rejected(path).code == "unlike_a_chest"
    assert rejected(path, allow=set(GATES) - {"unlike_a_chest"}).code == "unlike_a_chest"
    assert read_radiograph(path, allow=GATES).image.shape == shape


@pytest.mark.parametrize("shape", [(100, 400), (400, 100)])
def test_cropped_radiographs_are_no_strips(tmp_path, shape):
    path = png(tmp_path / "wide.png", np.tile(np.arange(shape[1], dtype=np.uint8), (shape[0], 1)))
    assert read_radiograph(path, allow=["suspicious_polarity"]).image.shape == shape
