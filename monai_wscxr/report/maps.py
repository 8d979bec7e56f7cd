"""Anomaly maps as files."""

from __future__ import annotations

import gzip
import io
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

MAP_SUFFIXES = {"nifti": "nii.gz", "tiff": "tiff", "npy": "npy"}
"""Formats of anomaly maps, and the file name extension of each."""


def encode_map(anomaly_map: NDArray[np.float32], kind: str) -> bytes:
    """Encode a map [H, W] losslessly as the bytes of a file.

    Args:
        anomaly_map: float32 [H, W].
        kind: "tiff" (32-bit float), "npy", or "nifti" (axes x, y, z of size [W, H, 1]; gzip without a time stamp, so equal
            maps give equal bytes).

    Raises:
        ValueError: on an unknown format.
    """
    values = np.ascontiguousarray(anomaly_map, dtype=np.float32)
    buffer = io.BytesIO()
    if kind == "tiff":
        Image.fromarray(values).save(buffer, format="TIFF")
    elif kind == "npy":
        np.save(buffer, values, allow_pickle=False)
    elif kind == "nifti":
        image: Any = nib.Nifti1Image(np.ascontiguousarray(values.T)[..., None], np.eye(4))
        return gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)
    else:
        raise ValueError(f"unknown format of maps {kind!r}; use one of {', '.join(MAP_SUFFIXES)}")
    return buffer.getvalue()
