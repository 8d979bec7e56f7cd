"""Gates: checks that refuse readable images which are not frontal chest radiographs, unless a caller allows them.

Header gates rely on explicit entries of the standard (PS3.3 C.8.7.1, C.8.11.1, C.8.11.5, C.7.6.1). They refuse lateral,
oblique and decubitus views, patients who lie on the side or are upside down, body parts other than the chest, patient data
burned into the pixels, and raw detector data. A missing or empty entry passes, because most files have none. Mirrored images
(rows run to the patient's right) pass too: mirroring hardly changes a score.

The polarity gate looks at the pixels and works for every format. In a frontal chest radiograph the mediastinum is brighter
than the lungs beside it and than the air above the shoulders. The gate averages the image to 32 x 32 pixels, correlates it
with a template of this pattern and refuses clear negatives. Images of fewer than 64 pixels per side are not checked.

The shape gate refuses strips. Whether an image shows a chest is checked later, by its features (`model.chest_check`).
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any

import numpy as np
from PIL import Image
from pydicom.multival import MultiValue
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
"""Correlation with the template below which an image counts as a negative; measured in docs/predict.md."""

LARGEST_ASPECT = 4.0
"""Largest ratio of the longer to the shorter side; detectors have up to 1.3, cropped radiographs seldom over 2.5."""

_NOT_FRONTAL = {"LL", "RL", "LLD", "RLD", "LLO", "RLO", "LAO", "RAO", "LPO", "RPO"}
_CHEST_WORDS = ("CHEST", "THORA", "TORAX", "LUNG", "MEDIASTIN")
_UNSPECIFIC = {"UNKNOWN", "OTHER", "DEFAULT", "UNDEFINED", "NONE"}
# defined terms that a message may quote; any other text may be patient data
# fmt: off
_KNOWN_PARTS = {
    "ABDOMEN", "ANKLE", "ARM", "BREAST", "ELBOW", "EXTREMITY", "FEMUR", "FOOT", "HAND", "HEAD",
    "HIP", "KNEE", "LEG", "NECK", "PELVIS", "RIB", "SHOULDER", "SKULL", "WRIST",
}
# fmt: on
_TEMPLATE_SIDE = 32  # pixels
_SMALLEST_SIDE = 64  # pixels


def check_allowed(allow: Collection[str]) -> frozenset[str]:
    """Check the names of gates that are not applied.

    Raises:
        ValueError: for a name that is not a gate.
    """
    unknown = sorted(set(allow) - set(GATES))
    if unknown or isinstance(allow, str):
        raise ValueError(
            f"unknown gate {allow if isinstance(allow, str) else unknown[0]!r}; allowed: {', '.join(GATES)}"
        )
    return frozenset(allow)


def check_header(header: Any, allow: Collection[str]) -> None:
    """Apply the header gates to a DICOM header.

    Raises:
        RadiographError: with the name of the gate that refuses as reason code.
    """
    part = _word(header.get("BodyPartExamined"))
    named = f" ({part})" if part in _KNOWN_PARTS else ""
    checks = (
        (
            "for_processing",
            _is_raw,
            "the header marks it as raw detector data (FOR PROCESSING), which radiologists never see. Export the processed "
            "image (FOR PRESENTATION)",
        ),
        (
            "burned_in_annotation",
            _is_annotated,
            "by the header patient data is burned into the image. Remove it from the pixels",
        ),
        (
            "other_body_part",
            lambda header: not _is_chest(header),
            f"the header names a body part{named} other than the chest. Give chest radiographs",
        ),
        (
            "lateral_view",
            lambda header: not _is_frontal(header),
            "the header names a view that is not frontal (lateral, oblique or decubitus). Give PA or AP views",
        ),
        (
            "not_upright",
            lambda header: not _is_upright(header),
            "by the header the patient lies on the side or is upside down in the image. Turn it",
        ),
    )
    for code, is_wrong, message in checks:
        if code not in allow and is_wrong(header):
            raise RadiographError(code, f"{message}, or allow {code}.")


def check_shape(image: np.ndarray, allow: Collection[str]) -> None:
    """Apply the shape gate to an image [H, W].

    Raises:
        RadiographError: "unlike_a_chest".
    """
    height, width = image.shape
    if "unlike_a_chest" not in allow and max(height, width) > LARGEST_ASPECT * min(height, width):
        raise RadiographError(
            "unlike_a_chest",
            f"the image is a strip of {height} rows and {width} columns; of a chest radiograph the longer side has at most "
            f"{LARGEST_ASPECT:g} times the pixels of the shorter one. Export the whole image, or allow unlike_a_chest.",
        )


def check_polarity(image: np.ndarray, allow: Collection[str]) -> None:
    """Apply the polarity gate to an image [H, W] in [0, 1].

    Raises:
        RadiographError: "suspicious_polarity".
    """
    if "suspicious_polarity" in allow or min(image.shape) < _SMALLEST_SIDE:
        return
    likeness = chest_likeness(image)
    if likeness < POLARITY_LIMIT:
        raise RadiographError(
            "suspicious_polarity",
            f"air is bright and the mediastinum dark (correlation with a chest {likeness:.2f}, allowed from "
            f"{POLARITY_LIMIT}), so the image seems to be inverted. Export it with correct polarity, or allow "
            "suspicious_polarity.",
        )


def chest_likeness(image: np.ndarray) -> float:
    """Return the correlation in [-1, 1] of an image [H, W] with a bright mediastinum, dark lungs and dark upper corners."""
    small = Image.fromarray(np.ascontiguousarray(image, dtype=np.float32))
    found = np.asarray(small.resize((_TEMPLATE_SIDE,) * 2, Image.Resampling.BOX), dtype=np.float64)[_REGION]
    found = found - found.mean()
    return float((found * _TEMPLATE).sum() / (np.sqrt((found**2).sum() * (_TEMPLATE**2).sum()) + 1e-12))


def _template() -> tuple[np.ndarray, np.ndarray]:
    """Return the region that the gate compares, bool [32, 32], and the zero-mean template [n] of its pixels."""
    y, x = np.mgrid[0:_TEMPLATE_SIDE, 0:_TEMPLATE_SIDE] / (_TEMPLATE_SIDE - 1) * 2 - 1
    lungs = ((np.abs(x) - 0.5) / 0.28) ** 2 + ((y + 0.1) / 0.5) ** 2 < 1
    mediastinum = np.abs(x) < 0.2
    corners = (np.abs(x) > 0.85) & (y < -0.3)
    region = lungs | mediastinum | corners
    template = mediastinum[region].astype(np.float64)
    return region, template - template.mean()


_REGION, _TEMPLATE = _template()


def _word(value: Any) -> str:
    return "" if value is None else str(value).strip().upper()


def _meaning(header: Any, name: str) -> str:
    """Return the code meaning of the first item of a code sequence in upper case; empty without one."""
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
    from pydicom.sr.coding import Code  # slow to import, and few headers have such codes

    value, scheme = (str(sequence[0].get(name) or "") for name in ("CodeValue", "CodingSchemeDesignator"))
    found = Code(value, scheme, "")
    # pydicom compares codes across schemes but hashes them by scheme, so a set would miss some
    return any(found == code for code in _not_frontal_codes())


@functools.cache
def _not_frontal_codes() -> tuple[Any, ...]:
    """Return the views of PS3.16 CID 4010 that are not frontal; pydicom compares them equal to their older codes."""
    from pydicom.sr.codedict import codes

    views = [getattr(codes.cid4010, name) for name in codes.cid4010.dir()]
    return tuple(v for v in views if any(word in v.meaning.lower() for word in ("lateral", "oblique", "sagittal")))


def _orientation(header: Any) -> list[str]:
    """Return the directions of rows and columns as letters (PS3.3 C.7.6.1.1.1); empty unless both are given."""
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
