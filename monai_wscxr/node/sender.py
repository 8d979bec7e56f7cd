"""Sending of results to the archive, by C-STORE or STOW-RS, until it has taken them.

An archive that does not answer is asked again after 1 s, 2 s, 4 s and so on, at most a minute, without end. Where it answers
but cannot take the results of an image now, such as out of resources, these are sent again after such times, without end as
well, and the results of other images go on meanwhile. Where it refuses them for good, they are sent `MOST_REFUSALS` times;
then the image has failed, and its results stay in the folder. Results have the same UIDs whenever they are sent, so an archive
that has them already keeps one set.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import pydicom
from pydicom.uid import generate_uid

from monai_wscxr.node.items import Item
from monai_wscxr.node.queue import Queue

logger = logging.getLogger("monai_wscxr.node")

MOST_REFUSALS = 8
_LONGEST_WAIT = 60.0
_REPORT_SECONDS = 5.0  # that an association stays open for the report of a storage commitment
_ITEMS = 16  # images whose results share an association or a request for commitment
_MOST_NOT_NOW = 4  # images in a row that the archive cannot take now before it is given a rest


class Unreachable(Exception):  # noqa: N818 - reads as a statement where it is raised
    """The archive does not answer, or cannot take anything now; the message has no patient data."""


class NotNow(Exception):  # noqa: N818 - likewise
    """The archive answers, but cannot take these results now; others may go on. The message has no patient data."""


class Archive(Protocol):
    """Destination of results.

    Attributes:
        commits: whether it can be asked for storage commitment.
    """

    commits: bool

    def store(self, sets: Sequence[Sequence[Path]]) -> list[str]:
        """Store sets of files.

        Returns:
            for each set "" when the archive has all of it, otherwise why it was refused.

        Raises:
            Unreachable: when the archive does not answer; sets before may have been stored.
            NotNow: when it cannot take a set now; likewise.
        """

    def ask(self, files: Sequence[Path], transaction: str) -> None:
        """Ask for storage commitment.

        Raises:
            Unreachable: when the archive does not answer or refuses.
        """

    def close(self) -> None:
        """End open connections."""


def waiting_time(failures: int) -> float:
    """Return how long to wait after so many failures in a row, in seconds: doubled each time, with 20 % of chance."""
    return min(_LONGEST_WAIT, 2.0 ** min(failures - 1, 10)) * random.uniform(0.8, 1.2)


class Sender:
    """Sends the results of a queue until it is stopped.

    Args:
        queue: the queue.
        archive: the destination.
        commitment: seconds to wait for a storage commitment before the results are sent again; None asks for none.
    """

    def __init__(self, queue: Queue, archive: Archive, commitment: float | None = None) -> None:
        self.queue, self.archive, self.commitment = queue, archive, commitment
        self.failures = 0
        """Times in a row that the archive did not answer."""
        self._not_now: dict[int, int] = {}  # by the image's number: times that the archive could not take its results
        self._in_a_row = 0  # images one after the other that it could not take
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Begin nothing more; `run` ends when what is under way is done."""
        self._stopping.set()
        self.queue.wake()

    def run(self) -> None:
        """Send results as they come."""
        asked = -math.inf
        while not self._stopping.is_set():
            self._overdue()
            items = self.queue.to_send(_ITEMS)
            if not items:
                if time.monotonic() - asked > _REPORT_SECONDS:
                    self.archive.close()
                self.queue.wait(("ready", "sent"), 1.0)
                continue
            try:
                self._send(items)
                self.failures = 0
                if self.commitment is not None:
                    asked = time.monotonic()
            except Unreachable as error:
                self.failures += 1
                pause = waiting_time(self.failures)
                if self.failures in (1, 5) or self.failures % 50 == 0:
                    self.queue.error("archive_unreachable", str(error))
                logger.warning("the archive does not answer (%s); next attempt in %.0f s", error, pause)
                self._stopping.wait(pause)
        self.archive.close()

    def _send(self, items: Sequence[Item]) -> None:
        """Send the results of some images, one after the other; what was stored is noted even if the archive ends then."""
        stored: list[Item] = []
        try:
            for item in items:
                if self._stopping.is_set():
                    break
                try:
                    [why] = self.archive.store([self.files(item)])
                except NotNow as reason:
                    self._postponed(item, str(reason))
                    continue
                self._in_a_row = 0
                self._not_now.pop(item.number, None)
                if not why:
                    logger.info("sent %s", item.id)
                    if self.commitment is None:
                        self.queue.done([item])
                    stored.append(item)
                    continue
                self._refused(item, why, "archive_refused")
        finally:
            if stored and self.commitment is not None:
                self._ask(stored)

    def files(self, item: Item) -> list[Path]:
        """Return the result files of an image."""
        return [self.queue.results / name for name in item.files]

    def _postponed(self, item: Item, why: str) -> None:
        """Send the results of an image again later; an archive that could not take several in a row gets a rest as well."""
        times = self._not_now[item.number] = self._not_now.get(item.number, 0) + 1
        pause = waiting_time(times)
        self.queue.postponed(item, time.time() + pause)
        if times in (1, 5) or times % 50 == 0:
            self.queue.error("archive_not_now", why, item.id)
        logger.warning("%s: %s; next attempt in %.0f s", item.id, why, pause)
        self._in_a_row += 1
        if self._in_a_row >= _MOST_NOT_NOW:
            self._stopping.wait(waiting_time(self._in_a_row - _MOST_NOT_NOW + 1))

    def _refused(self, item: Item, why: str, reason: str) -> None:
        due = time.time() + waiting_time(item.sends + 1)
        given_up = self.queue.refused(item, due, MOST_REFUSALS, reason)
        self.queue.error(reason, why + ("; given up" if given_up else ""), item.id)
        logger.warning("%s: %s (%s)", item.id, reason, why)

    # ---- storage commitment

    def _ask(self, items: Sequence[Item]) -> None:
        """Ask the archive to commit to keep results; without an answer in time they are sent again."""
        assert self.commitment is not None
        transaction = generate_uid(prefix=None)
        # noted before it is asked for: the answer may come at once
        self.queue.asked(items, str(transaction), time.time() + self.commitment)
        self.archive.ask([file for item in items for file in self.files(item)], str(transaction))

    def committed(self, kind: int, information: pydicom.Dataset) -> bool:
        """Take the archive's report of a storage commitment.

        Args:
            kind: event type: 1 for success, 2 where some objects are not kept.
            information: event information.

        Returns:
            whether the transaction is known.
        """
        items = self.queue.in_transaction(str(information.get("TransactionUID", "")))
        if not items:
            return False
        failed = {
            str(entry.get("ReferencedSOPInstanceUID", "")) for entry in information.get("FailedSOPSequence") or ()
        }
        if kind != 1 and not failed:  # says that something failed, but not what
            kept: list[Item] = []
        else:
            kept = [item for item in items if not failed & {_uid(file) for file in self.files(item)}]
        self.queue.done(kept)
        for item in items:
            if item not in kept:
                self._refused(item, "the archive does not commit to keep the results", "not_committed")
        return True

    def _overdue(self) -> None:
        for item in self.queue.overdue() if self.commitment is not None else ():
            self._refused(item, "the archive has not answered the request for storage commitment", "not_committed")


def _uid(file: Path) -> str:
    """Return the SOP Instance UID of a result file."""
    return str(pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["SOPInstanceUID"]).SOPInstanceUID)


def references(files: Sequence[Path]) -> list[Any]:
    """Return the items of a Referenced SOP Sequence for result files."""
    found = []
    for file in files:
        ds = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["SOPClassUID", "SOPInstanceUID"])
        entry = pydicom.Dataset()
        entry.ReferencedSOPClassUID, entry.ReferencedSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
        found.append(entry)
    return found
