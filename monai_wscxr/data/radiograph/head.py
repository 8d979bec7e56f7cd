"""Some entries from the beginning of a DICOM file, without reading the rest of it."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Sequence
from typing import Any

from pydicom.datadict import tag_for_keyword
from pydicom.filereader import read_dataset, read_partial
from pydicom.tag import BaseTag, Tag

from monai_wscxr.data.radiograph.dicom import has_preamble, is_bare_dicom

HEAD_BYTES = 2**20
"""Largest number of bytes read of a file; what describes patient and acquisition stands near the beginning of a header."""
_DEFLATED = b"1.2.840.10008.1.2.1.99"


def read_head(path: str | os.PathLike[str], keywords: Sequence[str]) -> Any | None:
    """Read entries of a DICOM header from the first `HEAD_BYTES` of a file.

    Args:
        path: of a regular file.
        keywords: the entries, such as "PatientID".

    Returns:
        a data set with those of the entries that are there, and possibly others; None for a file of another format.

    Raises:
        OSError: when the file cannot be read.
        Exception: any error of pydicom, for a damaged header.
    """
    tags = [Tag(number) for name in keywords if (number := tag_for_keyword(name)) is not None]
    with open(path, "rb") as opened:
        content = opened.read(132)
        if not (has_preamble(content) or is_bare_dicom(content)):
            return None
        content += opened.read(HEAD_BYTES)
    return _parse(content, tags)


def _parse(content: bytes, tags: Sequence[BaseTag]) -> Any:
    """Return the entries of the beginning of a DICOM file."""
    last = max(tags)

    def beyond(tag: Any, _vr: Any, _length: Any) -> bool:
        return int(tag) > int(last)

    if has_preamble(content) and _DEFLATED in content[:2048]:
        start = 144 + int.from_bytes(
            content[140:144], "little"
        )  # behind the file meta information, by its group length
        unpacked = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content[start:], HEAD_BYTES)
        return read_dataset(io.BytesIO(unpacked), False, True, stop_when=beyond)
    return read_partial(io.BytesIO(content), stop_when=beyond, force=True, specific_tags=list(tags))
