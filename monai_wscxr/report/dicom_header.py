"""The elements of a DICOM image's header that its results need, checked, so that no result is filed under another identity.

Of the header, only the elements are copied that the standard requires for filing: patient ID, name, birth date and sex, study
and accession number.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import UID

_REQUIRED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
_IDENTITY = {
    "PatientID": 64,
    "AccessionNumber": 16,
    "StudyID": 16,
}  # largest number of characters; archives match by these
_LARGEST_NAME_GROUP = 64  # characters of a group of components of a person's name; there are up to three groups
_FILING = {  # further elements of type 2, and the values that are copied; others are left empty, which means "unknown"
    "PatientSex": r"[MFO]",
    "StudyDate": r"\d{8}",
    "StudyTime": r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?",
}
_DATE, _TIME = "%Y%m%d", "%H%M%S"  # two characters of the form stand for two of a time
_CALENDAR = {"StudyDate": _DATE, "StudyTime": _TIME}
_NOT_PRINTABLE = re.compile(r"[\\\x00-\x1f\x7f\ufffd]")  # U+FFFD: bytes that the character set cannot decode
_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio")
_LARGEST_ASPECT = 10.0  # no detector or film scanner has longer pixels

REASONS = (
    "not_dicom",  # the image is not a DICOM file, so it belongs to no patient or study
    "invalid_uid",  # the header lacks a valid study, series, instance or class UID
    "identity_too_long",  # an element that identifies patient or study is longer than the standard allows
    "identity_invalid",  # such an element has several values, or characters that cannot be copied
    "header",  # anything else in the header that results must copy
)
"""Reasons why an image has no DICOM results."""


class HeaderError(ValueError):
    """The reason why results cannot refer to an image; the message names header elements, never their values.

    Attributes:
        code: one of `REASONS`.
    """

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


def read_source(path: str) -> Dataset:
    """Read the header elements that results need: UIDs, filing elements, size and aspect of pixels. All others are dropped.

    Raises:
        HeaderError: when a study, series, instance or class UID is missing or invalid, or an element that identifies patient
            or study cannot be copied unchanged.
    """
    header = pydicom.dcmread(path, force=True, stop_before_pixels=True)
    source = Dataset()
    for name in _REQUIRED:
        value = _text(header, name)
        if value is None or not UID(value).is_valid:
            raise HeaderError("invalid_uid", f"the header has no valid {name}")
        setattr(source, name, value)
    for name, longest in _IDENTITY.items():
        setattr(source, name, _identity(header, name, [longest]))
    source.PatientName = _identity(header, "PatientName", [_LARGEST_NAME_GROUP] * 3)
    source.PatientBirthDate = _birth_date(header)
    for name, form in _FILING.items():
        value = _text(header, name) or ""
        known = re.fullmatch(form, value) is not None and _exists(value, _CALENDAR.get(name))
        setattr(source, name, value if known else "")
    source.ReferringPhysicianName = ""
    source.SpecificCharacterSet = "ISO_IR 192"
    source.Modality = "DX" if _text(header, "Modality") == "DX" else "CR"
    source.Rows, source.Columns = int(header.Rows), int(header.Columns)
    source.SamplesPerPixel, source.BitsAllocated, source.PhotometricInterpretation = 1, 16, "MONOCHROME2"
    aspect = _aspect(header)
    if aspect != 1:
        source.PixelAspectRatio = [aspect.numerator, aspect.denominator]
    number = _text(header, "InstanceNumber") or ""
    source.InstanceNumber = max(int(number), 1) if re.fullmatch(r"\d{1,9}", number) else 1
    orientation = [str(part) for part in _value(header, "PatientOrientation") or []]
    known = len(orientation) == 2 and all(re.fullmatch("[LRAPHF]{1,3}", part) for part in orientation)
    source.PatientOrientation = orientation if known else []
    burned = _text(header, "BurnedInAnnotation")
    source.BurnedInAnnotation = burned if burned in ("YES", "NO") else ""
    return source


def _value(header: Dataset, name: str) -> Any:
    """Return the value of an element; None if it is missing, empty or damaged."""
    try:
        return header.get(name)
    except Exception:  # pydicom converts values on access and raises errors of many types, which may quote them
        return None


def _text(header: Dataset, name: str) -> str | None:
    """Return the text of an element without padding, "" if it is missing or empty; None for several or damaged values."""
    if name not in header:
        return ""
    try:
        value = header[name].value
    except Exception:  # see `_value`
        return None
    if isinstance(value, (MultiValue, list, tuple)):
        return None
    return "" if value is None else str(value).strip(" \0")


def _identity(header: Dataset, name: str, longest: Sequence[int]) -> str:
    """Return the value of an element that identifies patient or study.

    Args:
        header: the source image.
        name: keyword of the element.
        longest: largest number of characters of each group; groups are separated by `=` if there are several.

    Raises:
        HeaderError: when the value cannot be copied unchanged.
    """
    value = _text(header, name)
    if value is None or _NOT_PRINTABLE.search(value):
        raise HeaderError(
            "identity_invalid", f"{name} has several values, or characters that cannot be copied unchanged"
        )
    groups = value.split("=") if len(longest) > 1 else [value]
    if len(groups) > len(longest):
        raise HeaderError("identity_invalid", f"{name} has more than {len(longest)} groups")
    if any(len(group) > limit for group, limit in zip(groups, longest, strict=False)):
        raise HeaderError(
            "identity_too_long", f"{name} is longer than the {longest[0]} characters that the standard allows"
        )
    return value


def _birth_date(header: Dataset) -> str:
    """Return the birth date as YYYYMMDD, also from the form YYYY.MM.DD of older versions of the standard.

    Raises:
        HeaderError: when there is a value that is not a date.
    """
    value = _text(header, "PatientBirthDate")
    found = None if value is None else re.fullmatch(r"(\d{4})([.-]?)(\d{2})\2(\d{2})", value)
    if found is not None and _exists(date := found[1] + found[3] + found[4], _DATE):
        return date
    if value == "":
        return ""
    raise HeaderError("identity_invalid", "PatientBirthDate is not a date of the form YYYYMMDD")


def _exists(value: str, form: str | None) -> bool:
    """Return whether a date or time exists in the calendar; True without a form.

    Args:
        value: of the right pattern; a time may end after its hours or minutes, and have fractions of a second.
        form: as for `strptime`.
    """
    if form is None:
        return True
    whole = value.partition(".")[0]
    try:
        datetime.datetime.strptime(whole, form[: len(whole)] if form == _TIME else form)
    except ValueError:
        return False
    return True


def _aspect(header: Dataset) -> Fraction:
    """Return the height of a pixel over its width, from the first spacing or aspect ratio in the header that is usable."""
    for name in _SPACINGS:
        try:
            height, width = (float(part) for part in _value(header, name) or ())
        except (TypeError, ValueError):
            continue
        if not (math.isfinite(height) and math.isfinite(width) and height > 0 and width > 0):
            continue
        if 1 / _LARGEST_ASPECT <= height / width <= _LARGEST_ASPECT:
            return Fraction(height / width).limit_denominator(1000)
    return Fraction(1)
