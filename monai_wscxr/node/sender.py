"""Sending of results to the archive, by C-STORE or STOW-RS, until it has taken them.

An archive that does not answer is asked again after 1 s, 2 s, 4 s and so on, at most a minute, without end. One that answers
and refuses is asked again after such times for each image, `MOST_REFUSALS` times; then the image has failed, and its results
stay in the folder. Results have the same UIDs whenever they are sent, so an archive that has them already keeps one set.
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


class Unreachable(Exception):  # noqa: N818 - reads as a statement where it is raised
    """The archive does not answer, or cannot take anything now; the message has no patient data."""


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
                [why] = self.archive.store([self.files(item)])
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
