"""Helpers for tests of the loader: files to read, and the error of a file that is rejected."""

import io

import numpy as np
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    generate_uid,
)

from monai_wscxr.data.radiograph.base import RadiographError
from monai_wscxr.data.radiograph.read import read_radiograph

GREY = np.array([[0, 51, 102], [153, 204, 255]], dtype=np.uint8)
SECRET = "Doe^Jane"
WINDOW = {"WindowCenter": 128, "WindowWidth": 256}  # 8 bit to [0, 1]


def rejected(path, **options):
    """Return the error that reading `path` raises."""
    with pytest.raises(RadiographError) as caught:
        read_radiograph(path, **options)
    assert str(path) not in str(caught.value)  # callers add the path
    return caught.value


def png(path, array_or_image, **options):
    """Write a PNG file and return its path."""
    image = array_or_image if isinstance(array_or_image, Image.Image) else Image.fromarray(array_or_image)
    image.save(path, format="PNG", **options)
    return path


def dicom(path, pixels, syntax=ExplicitVRLittleEndian, **elements):
    """Write a DICOM file of one frame and return its path; `elements` set header elements, None removes them."""
    pixels = np.asarray(pixels)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.PatientName, ds.PatientID = SECRET, SECRET
    ds.Rows, ds.Columns = pixels.shape[-2:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 8 * pixels.dtype.itemsize
    ds.HighBit, ds.PixelRepresentation = ds.BitsAllocated - 1, int(pixels.dtype.kind == "i")
    ds.PixelData = pixels.tobytes()
    if ds.BitsAllocated == 8:
        ds["PixelData"].VR = "OB"
    for name, value in elements.items():
        if value is None:
            delattr(ds, name)
        else:
            setattr(ds, name, value)
    ds.save_as(path)
    return path


def table(entries, first=0, bits=16):
    """Return a sequence with one lookup table."""
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [len(entries), first, bits], list(entries)
    item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
    return Sequence([item])


def codes(value, scheme, meaning):
    """Return a code sequence of one item."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return Sequence([item])


def sample(name):
    """Return the path of a test file of pydicom, or skip the test."""
    path = get_testdata_file(name, download=False)
    return path or pytest.skip(f"{name} is not installed (pydicom-data)")


def smooth(bits=12, rows=96, columns=80):
    """Return a smooth picture with a little noise that uses all values of `bits` bits, uint16 [rows, columns]."""
    y, x = np.mgrid[0 : 1 : rows * 1j, 0 : 1 : columns * 1j]
    values = np.sin(5 * x + 1) + np.cos(4 * y) + 0.02 * np.random.default_rng(0).standard_normal((rows, columns))
    values = (values - values.min()) / np.ptp(values)
    return np.round(values * (2**bits - 1)).astype(np.uint16)


def stretched(values):
    """Return values [H, W] as the percentile window shows them, float64 in [0, 1]."""
    values = np.asarray(values, dtype=np.float64)
    low, high = np.percentile(values, [0.5, 99.5])
    return np.clip((values - low) / (high - low), 0, 1)


def slow_jpeg(scans=1000, side=8000):
    """Return a progressive JPEG of about 500 KB that takes about 40 s to decode: many scans refine the same values."""
    picture = Image.new("L", (side, side), 90)
    picture.paste(200, (side // 4, side // 4, side // 2, side // 2))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=50, progressive=True)
    data = buffer.getvalue()
    last = data.rindex(b"\xff\xc4")  # tables and data of the last scan
    return data[:-2] + data[last:-2] * scans + data[-2:]
