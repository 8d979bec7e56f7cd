"""Anomaly maps as files: every format keeps every bit, and equal maps give equal bytes."""

import io

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from monai_wscxr.report.maps import MAP_SUFFIXES, encode_map

MAP = np.random.default_rng(0).normal(0, 3, (5, 7)).astype(np.float32)


def decoded(data, kind, folder):
    if kind == "tiff":
        return np.asarray(Image.open(io.BytesIO(data)))
    if kind == "npy":
        return np.load(io.BytesIO(data))
    path = folder / f"map.{MAP_SUFFIXES[kind]}"
    path.write_bytes(data)
    return nib.load(path).get_fdata(dtype=np.float32)[..., 0].T


@pytest.mark.parametrize("kind", MAP_SUFFIXES)
def test_values_come_back_exactly(kind, tmp_path):
    values = decoded(encode_map(MAP, kind), kind, tmp_path)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, MAP)
    assert encode_map(MAP.copy(order="F"), kind) == encode_map(MAP, kind)


def test_an_unknown_format_is_refused():
    with pytest.raises(ValueError, match="'bmp'; use one of nifti, tiff, npy"):
        encode_map(MAP, "bmp")
