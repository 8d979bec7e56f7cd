"""Numbers in DICOM headers, with errors that name the entry but quote nothing of it, because it may be patient data."""

from __future__ import annotations

from typing import Any

from pydicom.multival import MultiValue

from monai_wscxr.data.radiograph.base import RadiographError


def numbers(header: Any, name: str) -> list[float]:
    """Return the numbers of a header entry; empty where it is missing or empty.

    Args:
        header: pydicom data set.
        name: keyword of the entry.

    Raises:
        RadiographError: "unreadable" when the entry cannot be decoded or holds something else than numbers, for instance a
            decimal comma.
    """
    try:
        value = header.get(name)
        if value is None or value == "":
            return []
        several: list[Any] = list(value) if isinstance(value, (list, tuple, MultiValue)) else [value]
        return [float(one) for one in several if one is not None and one != ""]
    except Exception as error:
        raise not_a_number(name) from error


def whole_number(header: Any, name: str, default: int) -> int:
    """Return the whole number of a header entry, or `default` where it is missing or empty; raises like `numbers`."""
    found = numbers(header, name)
    if not found:
        return default
    if not float(found[0]).is_integer():
        raise not_a_number(name)
    return int(found[0])


def not_a_number(name: str) -> RadiographError:
    """Return the error of an entry that should be a number, for the caller to raise."""
    return RadiographError(
        "unreadable",
        f"the DICOM header entry {name} is not a number by the standard (a decimal comma, text or a wrong length). "
        "Correct the entry and export it again.",
    )
