"""One interface to the decoders of pydicom 3 and of pydicom 2, which MONAI Label 0.8.5 needs."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pydicom

_VERSION_2 = int(pydicom.__version__.partition(".")[0]) < 3
_PYDICOM_2_HANDLERS = {
    "pydicom": "rle",
    "pyjpegls": "jpeg_ls",
    "pillow": "pillow",
    "gdcm": "gdcm",
    "pylibjpeg": "pylibjpeg",
}


def available_plugins(syntax: Any) -> tuple[str, ...]:
    """Return the names of the installed libraries that can decode a compressed transfer syntax."""
    if not _VERSION_2:
        from pydicom.pixels import get_decoder

        return tuple(get_decoder(syntax).available_plugins)
    found = []
    for plugin, handler in _PYDICOM_2_HANDLERS.items():
        module = importlib.import_module(f"pydicom.pixel_data_handlers.{handler}_handler")
        if module.is_available() and module.supports_transfer_syntax(syntax):
            found.append(plugin)
    return tuple(found)


def decoded(ds: Any, plugin: str) -> np.ndarray:
    """Return the stored values of a data set; `plugin` is the name of a library, or empty for native pixels."""
    if not _VERSION_2:
        from pydicom.pixels import pixel_array

        # correcting would clear unused bits as if they were always the highest, and with them padding values that use them
        return np.asarray(pixel_array(ds, decoding_plugin=plugin, correct_unused_bits=False))
    ds.convert_pixel_data(handler_name=_PYDICOM_2_HANDLERS[plugin] if plugin else "numpy")
    return np.asarray(ds.pixel_array)


def first_frame(data: bytes) -> bytes:
    """Return the compressed bytes of the only frame of encapsulated pixel data.

    Raises:
        ValueError: when the data are damaged or hold several frames.
    """
    if not _VERSION_2:
        from pydicom.encaps import get_frame

        return get_frame(data, 0, number_of_frames=1)
    from pydicom.encaps import generate_pixel_data_frame

    frames = list(generate_pixel_data_frame(data, 1))
    if len(frames) != 1:
        raise ValueError(f"{len(frames)} frames where one was expected")
    return frames[0]


def encoded(ds: Any, file: Any) -> None:
    """Write a data set as a DICOM part 10 file."""
    if _VERSION_2:
        ds.save_as(file, write_like_original=False)
    else:
        ds.save_as(file, enforce_file_format=True)
