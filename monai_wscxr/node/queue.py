"""Queue of the DICOM node on the disk: received images, their results, and what has become of them.

A folder holds the images (`images/ID.dcm`), their results (`results/ID-KIND.dcm`) and a database of their states. An image is
received when it is on the disk under its name and its row is committed; only then may it be acknowledged. Every later step
writes its files first and commits then, and files without a row that needs them are removed at the start. So a process may be
killed at any moment.

Ids are keyed hashes of SOP Instance UIDs, and the database holds neither UIDs of images nor patient data. The images and
results do, so only the owner can open the folder. They are deleted when their results have been sent.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_wscxr.errors import InputError
from monai_wscxr.label.archive.keys import IdKey
from monai_wscxr.node.items import COLUMNS, OPEN, SCHEMA, STATES, Item, claim, item_of
from monai_wscxr.system.atomic import sync
from monai_wscxr.system.folder_lock import FolderLock

_ERRORS_KEPT = 1000


class Queue:
    """The queue in a folder; safe to use from several threads, by one process at a time.

    Args:
        folder: created if missing.
        model: hash of the model's weights. Images that wait are scored by it; a queue may change its model.

    Raises:
        InputError: when another process uses the folder, or it holds something else.
    """

    def __init__(self, folder: Path, model: str = "") -> None:
        self.folder, self.model = folder, model
        self.images, self.results, self.incoming = (folder / name for name in ("images", "results", "incoming"))
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            claim(folder)
            try:
                self._lock_of_folder = FolderLock(folder)
            except InputError:
                raise InputError(f"another node works in {folder}; stop it, or give another --folder") from None
            for place in (self.images, self.results, self.incoming):
                place.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise InputError(f"the folder {folder} cannot be written ({error.strerror})") from error
        self.key = IdKey(folder)
        self._changed = threading.Condition(threading.RLock())
        self._waiting = 0
        try:
            self._database = sqlite3.connect(folder / "queue.sqlite", check_same_thread=False, isolation_level=None)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.executescript(SCHEMA)
            self._clean_up()
            self._waiting = self._count(OPEN)
        except sqlite3.DatabaseError as error:
            raise InputError(
                f"{folder / 'queue.sqlite'} is damaged ({error}); restore it from a copy, or give a new folder and have the "
                "archive send the images again"
            ) from error

    def close(self) -> None:
        """Close the database and release the folder."""
        with self._changed:
            self._database.close()
            self._lock_of_folder.release()

    def _clean_up(self) -> None:
        """Remove the files of a killed process that no row needs."""
        for path in self.incoming.iterdir():
            path.unlink()
        rows = self._database.execute("SELECT id, state, files FROM items WHERE state IN (?, ?, ?, 'failed')", OPEN)
        images, results = set(), set()
        for name, state, files in rows:
            if state == "received":
                images.add(f"{name}.dcm")
            results.update(json.loads(files))
        for folder, needed in ((self.images, images), (self.results, results)):
            for path in folder.iterdir():
                if path.name not in needed:
                    path.unlink()

    # ---- arrival

    def receive(self, uid: str, file: Path, digest: str) -> tuple[str, str]:
        """Take over a received file, which must be on the same disk; it is on the disk and in the queue once this returns.

        Args:
            uid: SOP Instance UID.
            file: a complete DICOM file, which is moved.
            digest: of its data set.

        Returns:
            What happened, and the id: "new"; "repeated" for an image that was received before; "other" for another image with
            the UID of one that was received before, which is not taken.
        """
        name = self.key.id(uid.encode("utf-8", "replace"))
        sync(file)
        with self._changed:
            row = self._database.execute("SELECT digest, state, files FROM items WHERE id = ?", (name,)).fetchone()
            if row is not None and row[0] != digest:
                return "other", name
            if row is not None:
                # what failed has another chance when somebody sends it again
                again = "ready" if row[1] == "failed" and row[2] != "[]" else row[1]
                self._database.execute(
                    "UPDATE items SET repeats = repeats + 1, state = ?, sends = CASE WHEN state = ? THEN sends ELSE 0 END, "
                    "reason = CASE WHEN state = ? THEN reason ELSE '' END WHERE id = ?",
                    (again, again, again, name),
                )
                self._note_change()
                return "repeated", name
            os.replace(file, self.images / f"{name}.dcm")
            sync(self.images)
            self._database.execute(
                "INSERT INTO items (id, digest, state, received) VALUES (?, ?, 'received', ?)",
                (name, digest, time.time()),
            )
            self._note_change()
            return "new", name

    @property
    def waiting(self) -> int:
        """Number of images for which something is left to do."""
        with self._changed:
            return self._waiting

    def room(self, reserve: int) -> bool:
        """Tell whether the disk has more than `reserve` free bytes."""
        return shutil.disk_usage(self.folder).free > reserve

    # ---- work

    def to_score(self, limit: int, without: Iterable[int] = ()) -> list[Item]:
        """Return the oldest images without a score, at most `limit`.

        Args:
            limit: largest number.
            without: numbers of images that are being scored already.
        """
        busy = set(without)
        with self._changed:
            rows = self._database.execute(
                f"SELECT {COLUMNS} FROM items WHERE state = 'received' ORDER BY number LIMIT ?", (limit + len(busy),)
            )
            return [item for item in map(item_of, rows) if item.number not in busy][:limit]

    def trying(self, items: Iterable[Item]) -> None:
        """Note that images are being scored."""
        with self._changed:
            self._many("UPDATE items SET tries = tries + 1 WHERE number = ?", [(item.number,) for item in items])

    def to_send(self, limit: int) -> list[Item]:
        """Return images whose results are due to be sent, at most `limit`: first the oldest of those not sent yet."""
        with self._changed:
            rows = self._database.execute(
                f"SELECT {COLUMNS} FROM items WHERE state = 'ready' AND due <= ? ORDER BY due, number LIMIT ?",
                (time.time(), limit),
            )
            return [item_of(row) for row in rows]

    def not_tried(self, item: Item) -> None:
        """Take back that an image was being scored: it was not its fault that this did not end."""
        with self._changed:
            self._database.execute("UPDATE items SET tries = MAX(tries - 1, 0) WHERE number = ?", (item.number,))

    def image(self, item: Item) -> Path:
        """Return the file of an image that waits for its score."""
        return self.images / f"{item.id}.dcm"

    def scored(self, item: Item, files: Sequence[str], outcome: Mapping[str, Any], reason: str = "") -> None:
        """Note the outcome of an image whose result files are on the disk; without files it has failed.

        Args:
            item: the image.
            files: names of its files in `results/`.
            outcome: JSON values, see `node.status`.
            reason: reason code without a score.
        """
        now = time.time()
        state = "ready" if files else "failed"
        with self._changed:
            self._database.execute(
                "UPDATE items SET state = ?, reason = ?, scored = ?, finished = ?, files = ?, outcome = ? WHERE number = ?",
                (state, reason, now, None if files else now, json.dumps(list(files)), json.dumps(outcome), item.number),
            )
            self._note_change()
        self.image(item).unlink(missing_ok=True)

    def asked(self, items: Sequence[Item], transaction: str, until: float) -> None:
        """Note that the archive has the results and is asked to commit to keep them; they are sent again at `until`."""
        with self._changed:
            self._many(
                "UPDATE items SET state = 'sent', commitment = ?, due = ? WHERE number = ?",
                [(transaction, until, item.number) for item in items],
            )
            self._note_change()

    def in_transaction(self, transaction: str) -> list[Item]:
        """Return the images whose results wait for this storage commitment."""
        with self._changed:
            rows = self._database.execute(
                f"SELECT {COLUMNS} FROM items WHERE state = 'sent' AND commitment = ?",
                (transaction,),
            )
            return [item_of(row) for row in rows]

    def overdue(self) -> list[Item]:
        """Return the images whose storage commitment has not come in time."""
        with self._changed:
            rows = self._database.execute(
                f"SELECT {COLUMNS} FROM items WHERE state = 'sent' AND due <= ?", (time.time(),)
            )
            return [item_of(row) for row in rows]

    def done(self, items: Sequence[Item]) -> None:
        """Note that results are in the archive, and delete them here."""
        with self._changed:
            self._many(
                "UPDATE items SET state = 'done', finished = ?, files = '[]', commitment = '' WHERE number = ?",
                [(time.time(), item.number) for item in items],
            )
            self._note_change()
        for item in items:
            for name in item.files:
                (self.results / name).unlink(missing_ok=True)

    def postponed(self, item: Item, due: float) -> None:
        """Note that results are sent again at a time, seconds since 1970; this counts as no refusal."""
        with self._changed:
            self._database.execute("UPDATE items SET due = ? WHERE number = ?", (due, item.number))

    def refused(self, item: Item, due: float, most: int, reason: str) -> bool:
        """Note that the archive refused results, or did not commit to keep them.

        Args:
            item: the image.
            due: when to send them again.
            most: number of refusals after which they are given up, and kept here.
            reason: reason code for that.

        Returns:
            Whether they are given up.
        """
        last = item.sends + 1 >= most
        with self._changed:
            self._database.execute(
                "UPDATE items SET sends = sends + 1, state = ?, due = ?, finished = ?, commitment = '', "
                "reason = CASE WHEN ? THEN ? ELSE reason END WHERE number = ?",
                ("failed" if last else "ready", due, time.time() if last else None, last, reason, item.number),
            )
            self._note_change()
        return last

    # ---- looking

    def wait(self, states: Sequence[str], seconds: float) -> None:
        """Wait until something changes or an image in one of these states becomes due, at most so long."""
        marks = ", ".join("?" * len(states))
        with self._changed:
            row = self._database.execute(f"SELECT MIN(due) FROM items WHERE state IN ({marks})", states).fetchone()
            due = seconds if row[0] is None else row[0] - time.time()
            if due > 0:
                self._changed.wait(min(seconds, due))

    def wake(self) -> None:
        """Let those that wait look again."""
        with self._changed:
            self._changed.notify_all()

    def states(self) -> dict[str, int]:
        """Return the number of images by state."""
        with self._changed:
            found = dict(self._database.execute("SELECT state, COUNT(*) FROM items GROUP BY state"))
        return {state: found.get(state, 0) for state in STATES}

    def rows(self, limit: int) -> list[dict[str, Any]]:
        """Return the newest images that have been scored or refused, the oldest of them first."""
        names = ("number", "id", "state", "reason", "tries", "received", "scored", "finished", "outcome", "repeats")
        with self._changed:
            found = self._database.execute(
                f"SELECT {', '.join(names)} FROM items WHERE scored IS NOT NULL ORDER BY number DESC LIMIT ?", (limit,)
            ).fetchall()
        entries = [dict(zip(names, row, strict=True)) for row in reversed(found)]
        return [{**entry, "outcome": json.loads(entry["outcome"])} for entry in entries]

    def totals(self) -> dict[str, int]:
        """Return the numbers of images received, received again, and without a score by reason (`reason_CODE`)."""
        with self._changed:
            received, repeats = self._database.execute(
                "SELECT COUNT(*), COALESCE(SUM(repeats), 0) FROM items"
            ).fetchone()
            reasons = self._database.execute(
                "SELECT reason, COUNT(*) FROM items WHERE reason != '' GROUP BY reason"
            ).fetchall()
        return {"received": received, "repeated": repeats, **{f"reason_{code}": count for code, count in reasons}}

    def error(self, reason: str, message: str, name: str = "") -> None:
        """Keep an error for the status page.

        Args:
            reason: short code.
            message: a sentence without patient data.
            name: id of the image, if it concerns one.
        """
        with self._changed:
            self._database.execute("INSERT INTO errors VALUES (?, ?, ?, ?)", (time.time(), name, reason, message))
            self._database.execute(
                "DELETE FROM errors WHERE rowid <= (SELECT MAX(rowid) FROM errors) - ?", (_ERRORS_KEPT,)
            )

    def errors(self, limit: int) -> list[dict[str, Any]]:
        """Return the last errors, the newest first."""
        names = ("time", "id", "reason", "message")
        with self._changed:
            rows = self._database.execute(
                f"SELECT {', '.join(names)} FROM errors ORDER BY rowid DESC LIMIT ?", (limit,)
            ).fetchall()
        return [dict(zip(names, row, strict=True)) for row in rows]

    def forget(self, before: float) -> int:
        """Delete the rows of images that were done before a time, and return their number.

        Sent again, such an image is a new one.
        """
        with self._changed:
            return self._database.execute("DELETE FROM items WHERE state = 'done' AND finished < ?", (before,)).rowcount

    # ---- parts

    def _note_change(self) -> None:
        self._waiting = self._count(OPEN)
        self._changed.notify_all()

    def _count(self, states: Sequence[str]) -> int:
        marks = ", ".join("?" * len(states))
        return int(self._database.execute(f"SELECT COUNT(*) FROM items WHERE state IN ({marks})", states).fetchone()[0])

    def _many(self, statement: str, values: Sequence[tuple[Any, ...]]) -> None:
        """Run a statement for several rows in one transaction."""
        self._database.execute("BEGIN")
        try:
            self._database.executemany(statement, values)
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")
