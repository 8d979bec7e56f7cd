"""The journal of a prediction run: what is done, line by line, so that a killed run goes on where it was.

Each line is the digest of its text, a blank and the text (JSON). The first says whose journal it is; each further one is
the finished result of one input, written after the input's files. A line that a kill cut short is cut off; a line
whose digest is wrong counts for nothing and its input is done again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from monai_wscxr.errors import InputError

try:
    import fcntl
except ImportError:  # not on this platform: two runs at once are then not noticed
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

NAME = "journal.jsonl"
_FORMAT = 2

Record = dict[str, Any]


class Journal:
    """An open journal; one process at a time.

    Args:
        folder: of the run; must exist.
        identity: what makes results comparable (model, options, inputs), JSON-like.
        extra: kept with a new journal, given back from an old one (`extra`).

    Attributes:
        records: finished results by the number of their input.
        extra: as it was given when the journal was begun.

    Raises:
        InputError: when the journal belongs to another run, is in use, or its head is damaged.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
        self.path = folder / NAME
        self.identity: Record = json.loads(json.dumps(dict(identity)))
        self.records: dict[int, Record] = {}
        self.extra = dict(extra)
        self._file = open(self.path, "a+b")  # noqa: SIM115 - stays open, and locked, as long as the run
        try:
            _lock(self._file, folder)
            self._file.seek(0)
            self._read(self._file.read())
        except BaseException:
            self._file.close()
            raise

    def append(self, records: Iterable[Record]) -> None:
        """Add finished results and wait until they are on the disk."""
        lines = [_line(record) for record in records]
        self._file.write(b"".join(lines))
        self._file.flush()
        os.fsync(self._file.fileno())
        for line in lines:  # as a later run will read it, order of keys included
            record = json.loads(line.partition(b" ")[2])
            self.records[record["number"]] = record

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _read(self, content: bytes) -> None:
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):  # cut short by a kill
            self._file.truncate(len(whole))
        if not whole:
            head = {"format": _FORMAT, "identity": self.identity, "extra": self.extra}
            self._file.write(_line(head))
            self._file.flush()
            os.fsync(self._file.fileno())
            return
        lines = [_parse(line) for line in whole.splitlines()]
        head_read = lines[0]
        if head_read is None:
            raise InputError(f"the head of {self.path} is damaged; start again with --overwrite")
        if head_read.get("format") != _FORMAT:
            raise InputError(f"{self.path} was written by another version of monai_wscxr; start again with --overwrite")
        self._check_owner(head_read["identity"])
        self.extra = head_read["extra"]
        self.records = {record["number"]: record for record in lines[1:] if record is not None}
        damaged = sum(record is None for record in lines)
        if damaged:
            logger.warning("%d damaged lines in %s; their images are predicted again", damaged, self.path)

    def _check_owner(self, before: Record) -> None:
        now = self.identity
        changed = sorted(k for k in {*before, *now} if before.get(k) != now.get(k))
        if changed:
            listed = "; ".join(_difference(k, before.get(k), now.get(k)) for k in changed)
            raise InputError(
                f"{self.path.parent} holds another prediction run ({listed}); "
                "choose another --output, or replace that run with --overwrite"
            )


def check_idle(folder: Path) -> None:
    """Refuse a folder in which a run is going on.

    Raises:
        InputError: saying so.
    """
    with contextlib.suppress(FileNotFoundError), open(folder / NAME, "rb") as file:
        _lock(file, folder)


def _lock(file: IO[bytes], folder: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise InputError(f"another prediction is running in {folder}; wait for it, or stop it") from None


def _difference(name: str, there: Any, now: Any) -> str:
    if max(len(str(there)), len(str(now))) > 40:  # digests tell a reader nothing
        return f"other {name}"
    return f"{name}: {there} there, {now} now"


def _line(record: Record) -> bytes:
    text = json.dumps(record, sort_keys=True).encode()
    return _digest(text) + b" " + text + b"\n"


def _parse(line: bytes) -> Record | None:
    digest, _, text = line.partition(b" ")
    if digest != _digest(text):
        return None
    return json.loads(text)


def _digest(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=8).hexdigest().encode()
