"""Columns of a datalist: those that are read, and mistyped ones among the others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

COLUMNS = ("image", "split", "label", "class", "patient", "mask")
DESCRIPTIONS = ("findings", "sex", "age", "view", "site", "device")
"""Optional columns that an evaluation reports by; see `data.description`."""
_OTHER_NAMES = {"subject": "patient", "subjectid": "patient", "person": "patient", "personid": "patient"}
_ADDITIONS = frozenset(
    ("code", "file", "filename", "id", "ids", "index", "key", "lesion", "name", "no", "number", "path")
)


def mistaken(name: str, present: Iterable[str], allowed: Sequence[str] = COLUMNS) -> str | None:
    """Return the column that an unknown one was probably meant to be, or None for an additional column.

    A column is mistyped if it comes close to one of ours that is not there, as in `pateint`, `Patient`, `patient_id` or
    `mask_path`. If ours is there, the other one is additional.

    Args:
        name: the unknown column.
        present: all columns of the datalist.
        allowed: our columns.
    """
    plain = re.sub(r"[^a-z]", "", name.lower())
    if not plain:
        return None
    missing = [column for column in allowed if column not in set(present)]
    for column in missing:
        words = re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
        renamed = column in words and _ADDITIONS.issuperset(word for word in words if word not in ("", column))
        limit = 1 if len(plain) <= 5 else 2
        if renamed or _OTHER_NAMES.get(plain) == column or _distance(plain, column) <= limit:
            return column
    return None


def _distance(one: str, other: str) -> int:
    """Count missing, added and swapped letters between two words; a wrong letter counts two, so `mass` is not `mask`."""
    previous: list[int] = []
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, start=1):
        before, previous, row = previous, row, [i]
        for j, b in enumerate(other, start=1):
            best = min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (0 if a == b else 2))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                best = min(best, before[j - 2] + 1)
            row.append(best)
    return row[-1]
