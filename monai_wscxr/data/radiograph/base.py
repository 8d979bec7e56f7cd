"""Parts shared by the readers of all formats: result, error, reason codes, header checks and intensity windows."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from monai_wscxr.errors import InputError

REASON_CODES = (
    "not_found",  # no such file, or a folder
    "empty",  # no bytes, or no pixels
    "unknown_format",  # content is neither PNG, JPEG, TIFF, BMP, NIfTI nor DICOM
    "too_large",  # more pixels than max_pixels, or than fit into memory
    "not_a_projection",  # several frames, 3-D, colour, animation, another modality, a DICOM object without an image
    "missing_decoder",  # the compression needs a package that is not installed
    "unreadable",  # truncated, damaged, or a header without what decoding needs
    "bits_disagree",  # the values contradict the header's bits, sign or byte order
    "not_finite",  # NaN or infinity among the values, or values too far apart for the arithmetic
    "no_contrast",  # all pixels are equal
    "lateral_view",  # the header names a lateral, oblique or decubitus view
    "not_upright",  # by the header the patient lies on the side or is upside down
    "other_body_part",  # the header names a body part other than the chest
    "burned_in_annotation",  # by the header the pixels show text with patient data
    "for_processing",  # by the header these are raw detector values
    "suspicious_polarity",  # the image looks like the negative of a chest radiograph
    "unlike_a_chest",  # by shape or appearance the image is no upright frontal chest radiograph
    "orientation_unknown",  # a NIfTI header that does not say which way the rows run
    "too_slow",  # reading took longer than a run allows
    "crashed",  # a decoding library crashed its process
    "outside_folder",  # a DICOMDIR entry that points out of the DICOMDIR's folder, or to no file
)

GATES = (
    "lateral_view",
    "not_upright",
    "other_body_part",
    "burned_in_annotation",
    "for_processing",
    "suspicious_polarity",
    "unlike_a_chest",
    "orientation_unknown",
)
"""Reason codes of readable images that are not, or may not be, upright frontal chest radiographs; a caller may allow each."""

MAX_PIXELS = 2**26
"""Default limit on the pixels that a header may claim: 8192 x 8192, more than any detector or film scan of a chest has."""

MEMORY_LIMIT = 2**31
"""Largest number of bytes that reading one file of `MAX_PIXELS` adds to the memory of the process."""

_PERCENTILES = (0.5, 99.5)


class RadiographError(InputError):
    """The reason why a file cannot be used as a radiograph.

    The message names no path, because the caller who opened the file knows it; it quotes values that describe the image and
    never patient data.

    Attributes:
        code: one of `REASON_CODES`.
        message: what is wrong and what to do about it.
    """

    def __init__(self, code: str, message: str) -> None:
        if code not in REASON_CODES:
            raise ValueError(f"unknown reason code {code!r}; allowed: {', '.join(REASON_CODES)}")
        self.code, self.message = code, message
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:  # worker processes send these errors to their parent
        return type(self), (self.code, self.message)


def find_radiograph_error(error: BaseException) -> RadiographError | None:
    """Return the `RadiographError` among an error and its causes, or None; MONAI's `Compose` wraps what a transform raises."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, RadiographError):
        cause = cause.__cause__
    return cause


@dataclass(frozen=True)
class Radiograph:
    """An image and how it was read.

    Attributes:
        image: float32 [H, W] in [0, 1], air dark, top row first.
        format: "png", "jpeg", "tiff", "bmp", "nifti" or "dicom".
        polarity: "as_stored" or "inverted".
        intensity: how stored values were mapped to [0, 1]: "full_range_1", "full_range_8", "full_range_16", "voi_window",
            "voi_lut" or "percentile".
        padding: bool [H, W], True where a DICOM file holds padding instead of a measurement; None without padding.
        acquired: how and when a DICOM image was taken, as far as its header tells: "week" (ISO, such as "2026-W48"), "device"
            (manufacturer and model) and "view" ("PA", "AP", ...). No patient data.
    """

    image: np.ndarray
    format: str
    polarity: str
    intensity: str
    padding: np.ndarray | None = None
    acquired: Mapping[str, str] = field(default_factory=dict)


def check_size(pixels: int, shape: str, max_pixels: int) -> None:
    """Check the number of pixels that a header claims, before anything is decoded.

    Args:
        pixels: the number.
        shape: the sides as text, for the message.
        max_pixels: largest number allowed.

    Raises:
        RadiographError: "too_large", or "empty" for no pixels.
    """
    if pixels > max_pixels:
        raise RadiographError(
            "too_large",
            f"the header claims {shape} = {pixels} pixels; allowed are {max_pixels}. "
            "Export it smaller, or raise max_pixels if the size is intended.",
        )
    if pixels <= 0:
        raise RadiographError("empty", f"the header claims {shape}: no pixels. Export it again.")


def check_bytes(path: str | os.PathLike[str], max_pixels: int) -> None:
    """Check the size of a file: 8 bytes for each of `max_pixels`, and 64 MiB for the header.

    Raises:
        RadiographError: "too_large".
    """
    size, limit = os.path.getsize(path), 8 * max_pixels + 2**26
    if size > limit:
        raise RadiographError("too_large", f"the file has {size} bytes; allowed are {limit}. Export it smaller.")


def no_contrast() -> RadiographError:
    """Return the error of an image whose pixels are all equal, for the caller to raise."""
    return RadiographError("no_contrast", "all pixels have the same grey value, so it shows nothing. Export it again.")


def check_finite(values: np.ndarray) -> None:
    """Check that there is no NaN and no infinity.

    Raises:
        RadiographError: "not_finite".
    """
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        count = int(values.size - np.count_nonzero(np.isfinite(values)))
        raise RadiographError(
            "not_finite", f"{count} of {values.size} values are NaN or infinite. Correct them and export it again."
        )


def check_picture(image: np.ndarray, max_pixels: int) -> None:
    """Check a finished picture: two axes, at most `max_pixels` pixels, finite and not all equal.

    No format or header can lead around this check, so what comes after reading never meets NaN.

    Raises:
        RadiographError: "empty", "too_large", "not_finite" or "no_contrast".
    """
    if image.ndim != 2 or image.size == 0:
        raise RadiographError("empty", "the picture has no pixels. Export it again.")
    check_size(image.size, f"{image.shape[1]} x {image.shape[0]}", max_pixels)
    low, high = float(image.min()), float(image.max())  # NaN spreads to both
    if not (np.isfinite(low) and np.isfinite(high)):
        raise _too_far_apart()
    if low == high:
        raise no_contrast()


def _too_far_apart() -> RadiographError:
    return RadiographError(
        "not_finite",
        "the values lie so far apart that they overflow. Correct them or the rescaling and export it again.",
    )


def percentile_window(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Map values linearly so that the 0.5 and 99.5 percentiles become 0 and 1, and clip.

    Where the two percentiles are equal, the smallest and largest value take their place.

    Args:
        values: any shape; float64 values are overwritten.
        valid: the values that count for the percentiles.

    Returns:
        float32 in [0, 1], in the shape of `values`.

    Raises:
        RadiographError: "no_contrast" when all valid values are equal, "not_finite" when they are too far apart for float64.
    """
    smallest, largest = valid.min(), valid.max()
    if smallest == largest:
        raise no_contrast()
    low, high = np.percentile(_wide_enough(valid, smallest, largest), _PERCENTILES)
    if high <= low:
        low, high = smallest, largest
    low, spread = float(low), float(high) - float(low)
    if not np.isfinite(spread):
        raise _too_far_apart()
    if spread <= 0:
        raise no_contrast()
    stretched = writable_float64(values)
    stretched -= low
    stretched /= spread
    return clip_to_unit(stretched)


def _wide_enough(values: np.ndarray, smallest: Any, largest: Any) -> np.ndarray:
    """Return the values in a type that can hold the difference of any two, in which NumPy computes percentiles."""
    if values.dtype.kind == "i":
        fits = int(largest) - int(smallest) <= np.iinfo(values.dtype).max
    else:
        with np.errstate(over="ignore"):
            fits = values.dtype.kind != "f" or bool(np.isfinite(largest - smallest))
    return values if fits else values.astype(np.float64)


def writable_float64(values: np.ndarray) -> np.ndarray:
    """Return the array itself if it is float64 and writable, else a float64 copy."""
    return values if _is_writable_float64(values) else values.astype(np.float64)


def clip_to_unit(values: np.ndarray) -> np.ndarray:
    """Clip to [0, 1], in place for a writable float64 array, and return contiguous float32."""
    clipped = np.clip(values, 0.0, 1.0, out=values if _is_writable_float64(values) else None)
    return np.ascontiguousarray(clipped, dtype=np.float32)


def _is_writable_float64(values: np.ndarray) -> bool:
    return values.dtype == np.float64 and values.flags.writeable


_DECODING_LIBRARIES = ("pydicom", "nibabel", "PIL", "tifffile")


class _Quiet:
    """Context manager that silences warnings and logs of decoding libraries, which quote header entries, also patient data.

    `warnings.catch_warnings` is not safe in threads, so the first thread that enters silences and the last one to leave
    restores.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._restore: list[tuple[logging.Logger, bool, bool, list[logging.Handler]]] = []

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore")
                self._silence()

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._filters.__exit__(None, None, None)
                for logger, disabled, propagate, handlers in self._restore:
                    logger.disabled, logger.propagate, logger.handlers = disabled, propagate, handlers

    def _silence(self) -> None:
        """Silence the libraries' loggers; a logger that is created meanwhile has no handler but that of its library."""
        names = {*_DECODING_LIBRARIES, *logging.root.manager.loggerDict}
        found = [logging.getLogger(name) for name in sorted(names) if name.partition(".")[0] in _DECODING_LIBRARIES]
        self._restore = [(logger, logger.disabled, logger.propagate, logger.handlers) for logger in found]
        for logger in found:
            logger.disabled, logger.propagate, logger.handlers = True, False, [logging.NullHandler()]


quiet = _Quiet()
