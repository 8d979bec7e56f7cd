"""Gates: readable pictures that are no frontal chest radiograph are refused with a reason, unless a caller allows them.

Header gates are strict where a standard entry says so (PS3.3 C.8.7.1, C.8.11.1, C.8.11.5, C.7.6.1): a view that is lateral,
oblique or decubitus, a patient who lies on the side or stands on the head in the picture, a body part that is not the chest,
patient data burned into the picture, raw detector data. A missing or empty entry passes, because most files have none. A
mirrored picture (rows run to the patient's right) passes too: mirroring hardly moves a score.

The polarity gate looks at the picture itself and works for every format. In a frontal chest radiograph the mediastinum is
brighter than the lungs beside it and than the air above the shoulders. The gate correlates the picture, averaged to 32 x
32, with a drawing of just that and refuses what is clearly its negative. Pictures of fewer than 64 pixels per side are
not judged.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from PIL import Image
from pydicom.multival import MultiValue
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import DigitalXRayImageStorageForProcessing

from monai_wscxr.data.radiograph.base import GATES, RadiographError

HEADER_TAGS = (
    "ViewPosition",
    "ViewCodeSequence",
    "PatientOrientation",
    "BodyPartExamined",
    "AnatomicRegionSequence",
    "BurnedInAnnotation",
    "PresentationIntentType",
    "SOPClassUID",
)

POLARITY_LIMIT = -0.2
"""Correlation below which a picture counts as a negative; docs/predict.md has the measurement."""

_NOT_FRONTAL_CODES = tuple(
    code
    for name in codes.cid4010.dir()
    for code in [getattr(codes.cid4010, name)]
    if any(word in code.meaning.lower() for word in ("lateral", "oblique", "sagittal"))
)  # views of PS3.16 CID 4010; pydicom knows their older codes as equal
_NOT_FRONTAL = {"LL", "RL", "LLD", "RLD", "LLO", "RLO", "LAO", "RAO", "LPO", "RPO"}
_CHEST_WORDS = ("CHEST", "THORA", "TORAX", "LUNG", "MEDIASTIN")
_UNSPECIFIC = {"UNKNOWN", "OTHER", "DEFAULT", "UNDEFINED", "NONE"}
# defined terms that a message may quote; any other text could be anything
_KNOWN_PARTS = frozenset(
    ("ABDOMEN", "ANKLE", "ARM", "BREAST", "ELBOW", "EXTREMITY", "FEMUR", "FOOT", "HAND", "HEAD", "HIP")
)
_KNOWN_PARTS |= frozenset(("KNEE", "LEG", "NECK", "PELVIS", "RIB", "SHOULDER", "SKULL", "WRIST"))
_SIDE = 32
_SMALLEST = 64


def check_allowed(allow: Collection[str]) -> frozenset[str]:
    """The gates to leave open, checked.

    Raises:
        ValueError: on a name that is no gate.
    """
    unknown = sorted(set(allow) - set(GATES))
    if unknown or isinstance(allow, str):
        raise ValueError(
            f"unknown gate {allow if isinstance(allow, str) else unknown[0]!r}; allowed: {', '.join(GATES)}"
        )
    return frozenset(allow)


def check_header(path: Any, header: Any, allow: Collection[str]) -> None:
    """Refuses by explicit entries of a DICOM header.

    Raises:
        RadiographError: with the gate's name as reason code.
    """
    part = _word(header.get("BodyPartExamined"))
    named = f" ({part})" if part in _KNOWN_PARTS else ""
    checks = (
        (
            "for_processing",
            _is_raw,
            "the header calls it raw detector data (FOR PROCESSING), whose grey values no reader sees. Export the processed "
            "image (FOR PRESENTATION)",
        ),
        (
            "burned_in_annotation",
            _is_annotated,
            "the header says that patient data is burned into the picture. Remove it from the pixels",
        ),
        (
            "other_body_part",
            lambda header: not _is_chest(header),
            f"the header names another body part{named} than the chest. Give chest radiographs",
        ),
        (
            "lateral_view",
            lambda header: not _is_frontal(header),
            "the header names a view that is not frontal (lateral, oblique or decubitus). Give PA or AP views",
        ),
        (
            "not_upright",
            lambda header: not _is_upright(header),
            "the header says that the patient lies on the side or on the head in the picture. Turn it",
        ),
    )
    for code, is_wrong, message in checks:
        if code not in allow and is_wrong(header):
            raise RadiographError(code, path, f"{message}, or allow {code}.")


def check_polarity(path: Any, image: np.ndarray, allow: Collection[str]) -> None:
    """Refuses a picture ``[H, W]`` in [0, 1] that looks like a negative.

    Raises:
        RadiographError: ``suspicious_polarity``.
    """
    if "suspicious_polarity" in allow or min(image.shape) < _SMALLEST:
        return
    likeness = chest_likeness(image)
    if likeness < POLARITY_LIMIT:
        raise RadiographError(
            "suspicious_polarity",
            path,
            f"bright air and dark mediastinum (likeness to a chest {likeness:.2f}, allowed from {POLARITY_LIMIT}): the "
            "picture seems to be inverted. Export it with correct polarity, or allow suspicious_polarity.",
        )


def chest_likeness(image: np.ndarray) -> float:
    """Correlation in [-1, 1] of a picture ``[H, W]`` with bright mediastinum, dark lungs and dark upper corners."""
    small = Image.fromarray(np.ascontiguousarray(image, dtype=np.float32))
    found = np.asarray(small.resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float64)[_PLACES]
    found = found - found.mean()
    return float((found * _EXPECTED).sum() / (np.sqrt((found**2).sum() * (_EXPECTED**2).sum()) + 1e-12))


def _drawing() -> tuple[np.ndarray, np.ndarray]:
    """Where the gate looks, bool ``[32, 32]``, and what it expects there (bright minus mean)."""
    y, x = np.mgrid[0:_SIDE, 0:_SIDE] / (_SIDE - 1) * 2 - 1
    lungs = ((np.abs(x) - 0.5) / 0.28) ** 2 + ((y + 0.1) / 0.5) ** 2 < 1
    mediastinum = np.abs(x) < 0.2
    corners = (np.abs(x) > 0.85) & (y < -0.3)
    places = lungs | mediastinum | corners
    expected = mediastinum[places].astype(np.float64)
    return places, expected - expected.mean()


_PLACES, _EXPECTED = _drawing()


def _word(value: Any) -> str:
    return "" if value is None else str(value).strip().upper()


def _meaning(header: Any, name: str) -> str:
    """Code meaning of the first item of a code sequence, upper case; empty where there is none."""
    sequence = header.get(name)
    return _word(sequence[0].get("CodeMeaning")) if sequence else ""


def _is_annotated(header: Any) -> bool:
    return _word(header.get("BurnedInAnnotation")) == "YES"


def _is_frontal(header: Any) -> bool:
    view, meaning = _word(header.get("ViewPosition")), _meaning(header, "ViewCodeSequence")
    if view in _NOT_FRONTAL or "LAT" in view or "OBL" in view:
        return False
    if any(direction[:1] in ("A", "P") for direction in _orientation(header)):
        return False
    return not any(word in meaning for word in ("LATERAL", "OBLIQUE", "DECUBITUS")) and not _has_side_code(header)


def _has_side_code(header: Any) -> bool:
    sequence = header.get("ViewCodeSequence")
    if not sequence:
        return False
    value, scheme = (str(sequence[0].get(name) or "") for name in ("CodeValue", "CodingSchemeDesignator"))
    found = Code(value, scheme, "")
    return any(found == code for code in _NOT_FRONTAL_CODES)  # equal across schemes, so no look-up by hash


def _orientation(header: Any) -> list[str]:
    """Where rows and columns run to, as letters (PS3.3 C.7.6.1.1.1); empty unless both are given."""
    value = header.get("PatientOrientation")
    both = [_word(part) for part in value] if isinstance(value, (list, MultiValue)) else []
    return both if len(both) == 2 else []


def _is_upright(header: Any) -> bool:
    both = _orientation(header)
    return not both or (both[0][:1] not in ("H", "F") and both[1][:1] != "H")


def _is_raw(header: Any) -> bool:
    raw_class = header.get("SOPClassUID") == DigitalXRayImageStorageForProcessing
    return raw_class or _word(header.get("PresentationIntentType")) == "FOR PROCESSING"


def _is_chest(header: Any) -> bool:
    named = _word(header.get("BodyPartExamined")) or _meaning(header, "AnatomicRegionSequence")
    return not named or named in _UNSPECIFIC or any(word in named for word in _CHEST_WORDS)
