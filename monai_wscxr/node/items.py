"""Images of the node's queue, the states that they go through, and the tables that hold them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_wscxr.errors import InputError
from monai_wscxr.system.atomic import write_text_atomic

STATES = (
    "received",  # waits for its score
    "ready",  # waits to be sent
    "sent",  # waits until the archive commits to keep the results
    "done",  # its results, or the reason why there are none, are in the archive
    "failed",  # nothing could be stored in the archive; the reason says why
)
OPEN = ("received", "ready", "sent")
"""States in which something is left to do."""

_FORMAT = 1
SCHEMA = """
CREATE TABLE IF NOT EXISTS items (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, digest TEXT NOT NULL, state TEXT NOT NULL,
    reason TEXT NOT NULL DEFAULT '', tries INTEGER NOT NULL DEFAULT 0, sends INTEGER NOT NULL DEFAULT 0,
    due REAL NOT NULL DEFAULT 0, received REAL NOT NULL, scored REAL, finished REAL, outcome TEXT NOT NULL DEFAULT '{}',
    files TEXT NOT NULL DEFAULT '[]', repeats INTEGER NOT NULL DEFAULT 0, commitment TEXT NOT NULL DEFAULT '');
CREATE INDEX IF NOT EXISTS by_state ON items (state, due, number);
CREATE TABLE IF NOT EXISTS errors (time REAL NOT NULL, id TEXT NOT NULL, reason TEXT NOT NULL, message TEXT NOT NULL);
"""


@dataclass(frozen=True)
class Item:
    """One image of the queue.

    Attributes:
        number: in order of arrival.
        id: 16 hexadecimal digits, see `IdKey`.
        digest: SHA-256 of its data set.
        state: one of `STATES`.
        reason: reason code when there is no score, or nothing could be sent; otherwise "".
        tries: number of times that scoring it has begun.
        sends: number of times that the archive refused its results or did not commit to keep them.
        received: when it was received, seconds since 1970.
        files: names of its result files in `results/`.
    """

    number: int
    id: str
    digest: str
    state: str
    reason: str
    tries: int
    sends: int
    received: float
    files: tuple[str, ...]


COLUMNS = "number, id, digest, state, reason, tries, sends, received, files"


def claim(folder: Path) -> None:
    """Mark a folder as a queue, or check that it is one."""
    mark = folder / "node.json"
    if mark.is_file():
        try:
            found = json.loads(mark.read_text(encoding="utf-8"))["format"]
        except (ValueError, KeyError, TypeError, OSError):
            found = None
        if found != _FORMAT:
            raise InputError(f"{mark} is damaged or of another version of monai_wscxr; give another folder")
        return
    others = [path.name for path in folder.iterdir() if path.name not in (".lock", "secret")]
    if others:
        raise InputError(f"{folder} is not empty and holds no queue of a node; give an empty or new folder")
    write_text_atomic(mark, json.dumps({"format": _FORMAT}) + "\n")


def item_of(row: tuple[Any, ...]) -> Item:
    """Return the image of a row with `COLUMNS`."""
    number, name, digest, state, reason, tries, sends, received, files = row
    return Item(number, name, digest, state, reason, tries, sends, received, tuple(json.loads(files)))
