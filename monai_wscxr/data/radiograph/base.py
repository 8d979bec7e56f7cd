"""What the readers of all formats share: the error, the result, the header checks and the percentile window."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from monai_wscxr.errors import InputError

REASON_CODES = (
    "not_found",  # no such file, or a folder
    "empty",  # no bytes, or no pixels
    "unknown_format",  # neither PNG, JPEG, NIfTI nor DICOM by content
    "too_large",  # more pixels than max_pixels, or than memory holds
    "not_a_projection",  # several frames, 3-D, colour, animation, another modality, a DICOM object without an image
    "missing_decoder",  # the compression needs a package that is not installed
    "unreadable",  # truncated, damaged, or a header that lacks what decoding needs
    "not_finite",  # NaN or infinity among the values
    "no_contrast",  # all pixels alike
    "lateral_view",  # the header names a lateral, oblique or decubitus view
    "not_upright",  # the header says that the patient lies on the side or stands on the head
    "other_body_part",  # the header names a body part that is not the chest
    "burned_in_annotation",  # the header says that text with patient data is part of the picture
    "for_processing",  # the header says that these are raw values of the detector
    "suspicious_polarity",  # the picture looks like the negative of a chest radiograph
    "too_slow",  # reading took longer than a run allows
    "crashed",  # a decoding library brought its process down
    "outside_folder",  # a DICOMDIR entry that points out of the folder of the DICOMDIR, or to nothing
)

GATES = (
    "lateral_view",
    "not_upright",
    "other_body_part",
    "burned_in_annotation",
    "for_processing",
    "suspicious_polarity",
)
"""Reason codes of readable pictures that are no frontal chest radiograph; a caller may allow each of them."""

MAX_PIXELS = 2**26
"""Default limit on the pixels that a header may claim: 8192 x 8192, larger than any detector or film scan of a chest."""

MEMORY_LIMIT = 2**31
"""Bytes that reading one file of `MAX_PIXELS` may take on top of what the process already holds."""

_PERCENTILES = (0.5, 99.5)


class RadiographError(InputError):
    """A file that cannot become a radiograph.

    The message holds the path as it was given and values that describe the picture, never patient data.

    Attributes:
        code: one of :data:`REASON_CODES`.
        path: the path as it was given.
    """

    def __init__(self, code: str, path: str | os.PathLike[str], message: str) -> None:
        if code not in REASON_CODES:
            raise ValueError(f"unknown reason code {code!r}; allowed: {', '.join(REASON_CODES)}")
        self.code = code
        self.path = os.fspath(path)
        self.message = message
        super().__init__(f"{self.path}: {message}")

    def __reduce__(self) -> tuple[Any, ...]:  # so that it crosses the border of a worker process
        return type(self), (self.code, self.path, self.message)


@dataclass(frozen=True)
class Radiograph:
    """A picture and how it came about.

    Attributes:
        image: float32 ``[H, W]`` in [0, 1], air dark, top row first.
        format: ``png``, ``jpeg``, ``nifti`` or ``dicom``.
        polarity: ``as_stored`` or ``inverted``.
        intensity: what led to [0, 1]: ``full_range_1``, ``full_range_8``, ``full_range_16``, ``voi_window``,
            ``voi_lut`` or ``percentile``.
        padding: bool ``[H, W]``, True where a DICOM file has padding instead of a measurement; None without any.
    """

    image: np.ndarray
    format: str
    polarity: str
    intensity: str
    padding: np.ndarray | None = None


def check_size(path: Any, pixels: int, shape: str, max_pixels: int) -> None:
    """Refuses by the header alone a picture of no pixels or of more than ``max_pixels``; ``shape`` is for the message."""
    if pixels > max_pixels:
        raise RadiographError(
            "too_large",
            path,
            f"the header claims {shape} = {pixels} pixels; allowed are {max_pixels}. "
            "Export it smaller, or raise max_pixels if the size is meant.",
        )
    if pixels <= 0:
        raise RadiographError("empty", path, f"the header claims {shape}: no pixels. Export it again.")


def check_bytes(path: Any, max_pixels: int) -> None:
    """Refuses a file that is larger than any picture of ``max_pixels`` (8 bytes each and a generous header)."""
    size, limit = os.path.getsize(path), 8 * max_pixels + 2**26
    if size > limit:
        raise RadiographError("too_large", path, f"the file has {size} bytes; allowed are {limit}. Export it smaller.")


def no_contrast(path: Any) -> RadiographError:
    """The error, for the caller to raise, of a picture whose pixels are all alike."""
    return RadiographError(
        "no_contrast", path, "all pixels have the same grey value, there is nothing to see. Export it again."
    )


def check_finite(path: Any, values: np.ndarray) -> None:
    """Refuses NaN and infinity."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        count = int(values.size - np.count_nonzero(np.isfinite(values)))
        raise RadiographError(
            "not_finite", path, f"{count} of {values.size} values are NaN or infinite. Repair them before export."
        )


def stretch(path: Any, values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The percentile window: ``values`` of any shape to float32 [0, 1], limits from ``valid`` alone.

    Floating-point ``values`` do not survive it.
    """
    if valid.min() == valid.max():
        raise no_contrast(path)
    low, high = np.percentile(valid, _PERCENTILES)
    if high <= low:
        low, high = valid.min(), valid.max()
    stretched = own_float64(values)
    stretched -= low
    stretched /= float(high) - float(low)
    return unit(stretched)


def own_float64(values: np.ndarray) -> np.ndarray:
    """As float64 that may be written to: the array itself if it is, else a copy."""
    return values if values.dtype == np.float64 and values.flags.writeable else values.astype(np.float64)


def unit(values: np.ndarray) -> np.ndarray:
    """Clips to [0, 1], in place where the array is float64 and writable; float32, contiguous."""
    clipped = np.clip(values, 0.0, 1.0, out=values if values.dtype == np.float64 and values.flags.writeable else None)
    return np.ascontiguousarray(clipped, dtype=np.float32)


class _Quiet:
    """Warnings of decoding libraries stay unsaid within `with quiet:`; they quote header entries, also a patient's.

    Python's own context manager for this is not made for threads; this one counts those inside.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._logger = logging.getLogger("pydicom")

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore")
                self._disabled, self._logger.disabled = self._logger.disabled, True

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._filters.__exit__(None, None, None)
                self._logger.disabled = self._disabled


quiet = _Quiet()
