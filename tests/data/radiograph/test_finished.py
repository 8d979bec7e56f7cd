"""The check of every finished picture, values too far apart for the arithmetic, and NIfTI headers without a form matrix."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from monai_wscxr.data.preprocessing import Preprocessing
from monai_wscxr.data.radiograph import read
from monai_wscxr.data.radiograph.base import GATES, Radiograph, RadiographError, check_picture, percentile_window
from monai_wscxr.data.radiograph.read import read_radiograph
from monai_wscxr.data.stream import RadiographStream
from monai_wscxr.data.transforms import radiograph_transforms
from tests.helpers.radiograph_files import GREY, dicom, png, rejected, smooth, stretched, table

PICTURE = smooth(12)


def nifti(path, values, affine=None, **header):
    """Write values [row, column] as NIfTI with the header fields given."""
    image = nib.Nifti1Image(np.asarray(values).T, np.eye(4) if affine is None else affine)
    nib.save(image, path)
    raw = bytearray(Path(path).read_bytes())
    written = nib.Nifti1Header(bytes(raw[:348]))
    for name, value in header.items():
        written[name] = value
    raw[:348] = written.binaryblock
    Path(path).write_bytes(raw)
    return path


def image(path, **options):
    return read_radiograph(path, **{"allow": GATES, **options}).image


# ---- every finished picture


@pytest.mark.parametrize(
    ("picture", "code"),
    [
        (np.array([[0, np.nan]], np.float32), "not_finite"),
        (np.array([[0, np.inf]], np.float32), "not_finite"),
        (np.array([[0, -np.inf]], np.float32), "not_finite"),
        (np.full((2, 2), np.nan, np.float32), "not_finite"),
        (np.zeros((2, 2), np.float32), "no_contrast"),
        (np.zeros((0, 2), np.float32), "empty"),
        (np.zeros((2, 2, 3), np.float32), "empty"),
        (np.zeros((30, 30), np.float32), "too_large"),
    ],
)
@pytest.mark.parametrize("reader", ["read_raster", "read_nifti", "read_dicom"])
def test_no_reader_gets_around_the_check(tmp_path, monkeypatch, picture, code, reader):
    with pytest.raises(RadiographError) as caught:
        check_picture(picture, 100)
    assert caught.value.code == code
    made = Radiograph(picture, "png", "as_stored", "percentile")
    monkeypatch.setattr(read, reader, lambda *args: made)
    paths = {
        "read_raster": lambda: png(tmp_path / "a", GREY),
        "read_nifti": lambda: nifti(tmp_path / "a.nii", GREY),
        "read_dicom": lambda: dicom(tmp_path / "a", GREY),
    }
    assert rejected(paths[reader](), max_pixels=100).code == code


def giants(kind, folder):
    """Write a file of finite values that overflow."""
    giant = np.random.default_rng(0).choice([-1.7e308, 1.7e308], (64, 64))
    if kind == "nifti":
        return nifti(folder / "giants.nii", giant)
    if kind == "ramp":
        return nifti(folder / "ramp.nii", 1.7e308 * np.linspace(-1, 1, 4096).reshape(64, 64))
    if kind == "slope":
        return dicom(folder / "slope", PICTURE, RescaleSlope="5e304", RescaleIntercept="0")
    if kind == "smaller slope":  # every value is finite, their difference is not
        return dicom(folder / "slope", PICTURE, RescaleSlope="8e304", RescaleIntercept="-1.6e308")
    if kind == "intercept":
        return dicom(folder / "intercept", PICTURE, RescaleSlope="1", RescaleIntercept="1e400")
    return dicom(folder / "a", giant, PixelData=None, PixelRepresentation=None, DoubleFloatPixelData=giant.tobytes())


@pytest.mark.parametrize("kind", ["nifti", "ramp", "slope", "smaller slope", "intercept", "double"])
def test_values_that_overflow_are_one_rejected_row(tmp_path, kind):
    path = giants(kind, tmp_path)
    assert rejected(path, allow=GATES).code == "not_finite"
    good = [str(png(tmp_path / f"{n}.png", PICTURE)) for n in range(2)]
    items = [{"image": name} for name in (good[0], str(path), good[1])]
    stream = RadiographStream(items, radiograph_transforms(Preprocessing(32), allow=GATES))
    assert [os.path.basename(item["file"]) for item in stream] == ["0.png", "1.png"]
    assert [(file, code) for file, code, _ in stream.rejected] == [(str(path), "not_finite")]


def test_a_few_finite_giants_are_clipped(tmp_path):
    values = PICTURE.astype(np.float64)
    values[0, 0], values[0, 1] = 1e308, -1e308
    np.testing.assert_allclose(image(nifti(tmp_path / "a.nii", values)), stretched(values), atol=1e-6)
    found = image(dicom(tmp_path / "b", PICTURE, RescaleSlope="1e300", RescaleIntercept="0"))
    np.testing.assert_allclose(found, stretched(PICTURE), atol=1e-6)


def test_giants_take_the_right_end_of_a_lookup_table(tmp_path):
    lut = table([0, 10, 20, 30, 40])
    path = dicom(tmp_path / "a", GREY, VOILUTSequence=lut, RescaleSlope="1e300", RescaleIntercept="2")
    np.testing.assert_allclose(image(path), [[0.5, 1, 1], [1, 1, 1]], atol=1e-6)
    values = np.array([[0, 1, 2, 1e300]])
    path = dicom(
        tmp_path / "b", values, PixelData=None, PixelRepresentation=None, DoubleFloatPixelData=values.tobytes(),
        ModalityLUTSequence=table([5, 6, 7, 9]),
    )  # fmt: skip
    np.testing.assert_allclose(image(path), stretched([[5, 6, 7, 9]]), atol=1e-6)


@pytest.mark.parametrize(
    "dtype", [np.int8, np.int16, np.int32, np.int64, np.uint16, np.uint32, np.uint64, np.float32, np.float64]
)
def test_percentiles_of_the_widest_range_do_not_wrap(dtype):
    """NumPy computes the difference of neighbouring values in their own type."""
    if np.dtype(dtype).kind == "f":
        low, high = np.finfo(dtype).min / 2, np.finfo(dtype).max / 2.5
        low, high = (low, high) if dtype == np.float64 else (2 * low, 2 * high)
    else:
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    values = np.array([low] + [high] * 100, dtype=dtype).reshape(1, -1)  # a percentile lies between the two
    exact = np.sort(values.astype(np.longdouble).ravel())
    at = 0.005 * 100
    bottom = exact[0] + (exact[1] - exact[0]) * at
    expected = np.clip((values.astype(np.longdouble) - bottom) / (exact[-1] - bottom), 0, 1)
    np.testing.assert_allclose(percentile_window(values.copy(), values), expected.astype(np.float64), atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_float_pixels_that_are_not_finite(tmp_path, bad):
    values = PICTURE.astype(np.float32)
    values[5, 5] = bad
    assert rejected(nifti(tmp_path / "a.nii", values), allow=GATES).code == "not_finite"
    for name, dtype in (("FloatPixelData", np.float32), ("DoubleFloatPixelData", np.float64)):
        element = {name: values.astype(dtype).tobytes()}
        path = dicom(tmp_path / "a", values.astype(dtype), PixelData=None, PixelRepresentation=None, **element)
        assert rejected(path, allow=GATES).code == "not_finite"


@pytest.mark.parametrize(
    ("slope", "intercept", "code"),
    [
        (0.0, 3.0, None),  # no scaling, by the standard
        (np.nan, 0.0, None),
        (2.0, 5.0, None),
        (3e38, 0.0, None),  # float64 holds the products
        (-1e-40, 0.0, None),
        (np.inf, 0.0, None),
        (1.0, np.inf, "unreadable"),
        (1.0, np.nan, "unreadable"),
    ],
)
def test_nifti_scaling(tmp_path, slope, intercept, code):
    path = nifti(tmp_path / "a.nii", PICTURE, scl_slope=slope, scl_inter=intercept)
    if code:
        assert rejected(path, allow=GATES).code == code
    else:
        expected = stretched(-PICTURE.astype(float) if slope < 0 else PICTURE)
        np.testing.assert_allclose(image(path), expected, atol=1e-4)


# ---- orientation


def no_form(path, values, writer):
    """Write a file whose header says nothing of the orientation, or nothing that can be used."""
    unknown = {"sform_code": 0, "qform_code": 0}
    if writer == "dcm2niix":  # 2-D, all zero
        zero = dict.fromkeys(("srow_x", "srow_y", "srow_z"), 0)
        return nifti(path, values[::-1], **unknown, **zero)
    if writer == "nibabel":
        nib.save(nib.Nifti1Image(np.asarray(values).T, None), path)
        return path
    if writer == "zero matrix":
        return nifti(path, values, **dict.fromkeys(("srow_x", "srow_y", "srow_z"), 0))
    if writer == "two equal axes":
        return nifti(path, values, srow_x=[1, 1, 0, 0], srow_y=[0, 0, 0, 0], srow_z=[0, 0, 1, 0])
    return nifti(path, values, srow_x=[np.nan, 0, 0, 0])


@pytest.mark.parametrize("writer", ["dcm2niix", "nibabel", "zero matrix", "two equal axes", "not a number"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_nifti_without_a_form_matrix_is_refused(tmp_path, writer, dtype):
    picture = (smooth(8) if dtype == np.uint8 else PICTURE).astype(dtype)
    path = no_form(tmp_path / "a.nii", picture, writer)
    error = rejected(path)
    assert error.code == "orientation_unknown"
    assert "allow orientation_unknown" in str(error)
    shown = picture[::-1] if writer == "dcm2niix" else picture  # allowed: as stored, the first row on top
    expected = shown / 255 if dtype == np.uint8 else stretched(shown)
    np.testing.assert_allclose(image(path), expected, atol=1e-6)


def test_a_matrix_with_an_empty_third_column_is_followed(tmp_path):
    flat = {"srow_x": [-1, 0, 0, 0], "srow_y": [0, 0, 0, 0], "srow_z": [0, 1, 0, 0]}  # x to the left, y to the head
    path = nifti(tmp_path / "a.nii", PICTURE[::-1], **flat)
    np.testing.assert_allclose(image(path, allow=["suspicious_polarity"]), stretched(PICTURE), atol=1e-6)
    plain = {"srow_x": [1, 0, 0, 0], "srow_y": [0, 1, 0, 0], "srow_z": [0, 0, 0, 0]}
    path = nifti(tmp_path / "a.nii", PICTURE, **plain)
    np.testing.assert_allclose(image(path, allow=["suspicious_polarity"]), stretched(PICTURE), atol=1e-6)


def test_qform_alone_is_enough(tmp_path):
    path = nifti(tmp_path / "a.nii", PICTURE, sform_code=0, qform_code=1)
    np.testing.assert_allclose(image(path, allow=["suspicious_polarity"]), stretched(PICTURE), atol=1e-6)
