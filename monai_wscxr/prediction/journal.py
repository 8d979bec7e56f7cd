"""Journal of a prediction run: the finished inputs, line by line, so that a killed run can resume.

Each line is the digest of its text, a blank and the text (JSON). The first line identifies the run. Each further line is the
result of one input and is written after the input's files. An incomplete last line is cut off; a line with a wrong digest is
ignored, and its input is predicted again.
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
except ImportError:  # not on this platform: two concurrent runs are not detected there
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

NAME = "journal.jsonl"
_FORMAT = 2

Record = dict[str, Any]


class Journal:
    """An open journal, locked against other processes.

    Args:
        folder: folder of the run; must exist.
        identity: everything that the results depend on (model, options, inputs), JSON-like.
        extra: further values, stored in a new journal.

    Attributes:
        records: finished results by the number of their input.
        extra: the values stored when the journal was created.

    Raises:
        InputError: when the journal belongs to another run, is in use, or its first line is damaged.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
        self.path = folder / NAME
        self.identity: Record = json.loads(json.dumps(dict(identity)))
        self.records: dict[int, Record] = {}
        self.extra = dict(extra)
        self._file = open(self.path, "a+b")  # noqa: SIM115 - stays open and locked during the run
        try:
            _lock(self._file, folder)
            self._file.seek(0)
            self._read(self._file.read())
        except BaseException:
            self._file.close()
            raise

    def append(self, records: Iterable[Record]) -> None:
        """Append finished results and wait until they are on disk."""
        lines = [_line(record) for record in records]
        self._file.write(b"".join(lines))
        self._file.flush()
        os.fsync(self._file.fileno())
        for (
            line
        ) in lines:  # parsed from the line, so that records are the same in a resumed run, order of keys included
            record = json.loads(line.partition(b" ")[2])
            self.records[record["number"]] = record

    def close(self) -> None:
        """Close the file and release its lock."""
        self._file.close()

    def _read(self, content: bytes) -> None:
        """Read the lines of an existing journal, or write the first line of a new one."""
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):  # the run was killed while it wrote a line
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
            raise InputError(f"the first line of {self.path} is damaged; start again with --overwrite")
        if head_read.get("format") != _FORMAT:
            raise InputError(f"{self.path} was written by another version of monai_wscxr; start again with --overwrite")
        self._check_owner(head_read["identity"])
        self.extra = head_read["extra"]
        self.records = {record["number"]: record for record in lines[1:] if record is not None}
        damaged = sum(record is None for record in lines)
        if damaged:
            logger.warning("%s has damaged lines (%d); their images are predicted again", self.path, damaged)

    def _check_owner(self, before: Record) -> None:
        """Raise InputError, naming the differences, when the journal was created by another run."""
        now = self.identity
        changed = sorted(k for k in {*before, *now} if before.get(k) != now.get(k))
        if changed:
            listed = "; ".join(_difference(k, before.get(k), now.get(k)) for k in changed)
            raise InputError(
                f"{self.path.parent} holds another prediction run ({listed}); "
                "choose another --output, or replace that run with --overwrite"
            )


def check_idle(folder: Path) -> None:
    """Check that no run is active in a folder.

    Raises:
        InputError: when one is.
    """
    with contextlib.suppress(FileNotFoundError), open(folder / NAME, "rb") as file:
        _lock(file, folder)


def _lock(file: IO[bytes], folder: Path) -> None:
    """Lock an open journal; InputError if another process holds the lock."""
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise InputError(f"another prediction is running in {folder}; wait for it, or stop it") from None


def _difference(name: str, there: Any, now: Any) -> str:
    """Describe a difference between two runs."""
    if max(len(str(there)), len(str(now))) > 40:  # a digest, which tells a reader nothing
        return f"other {name}"
    return f"{name}: {there} there, {now} now"


def _line(record: Record) -> bytes:
    """Encode a record as a line."""
    text = json.dumps(record, sort_keys=True).encode()
    return _digest(text) + b" " + text + b"\n"


def _parse(line: bytes) -> Record | None:
    """Decode a line; None if its digest is wrong."""
    digest, _, text = line.partition(b" ")
    if digest != _digest(text):
        return None
    return json.loads(text)


def _digest(text: bytes) -> bytes:
    """Return the digest of a line's text."""
    return hashlib.blake2b(text, digest_size=8).hexdigest().encode()
