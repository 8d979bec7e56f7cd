"""The DICOM node from its options to its end: receiver, scorer, sender and status page around one queue."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import pydicom

from monai_wscxr.errors import InputError
from monai_wscxr.node.addresses import is_loopback, server_tls
from monai_wscxr.node.archives import DicomArchive, WebArchive
from monai_wscxr.node.queue import Queue
from monai_wscxr.node.receiver import Peer, Receiver, check_title
from monai_wscxr.node.scoring import QueueScorer
from monai_wscxr.node.sender import Sender
from monai_wscxr.node.status import Status, StatusServer
from monai_wscxr.prediction.network import check_openable, open_network
from monai_wscxr.prediction.options import Options
from monai_wscxr.prediction.scoring import PRELOAD, Scorer
from monai_wscxr.system.workers import start_server

logger = logging.getLogger("monai_wscxr.node")

_PRELOAD = ("monai_wscxr.node.results",)
_DAY = 86400.0
_LONGEST_STOP = 120.0


@dataclass(frozen=True)
class NodeOptions:
    """Options of the node.

    Attributes:
        model: output folder of a training.
        folder: folder of the queue.
        archive: `TITLE@HOST:PORT` of the archive, or None.
        stow: address of its DICOMweb service, or None; one of the two must be given.
        title: AE title of the node.
        host, port: address to listen on.
        accept: peers, see `Peer.parsed`; none means everybody on this machine.
        certificate, key: PEM files for TLS of the port.
        authority: PEM file of the authority that signs the peers' and the archive's certificates; None lets peers come without
            one, and takes the system's authorities for the archive.
        archive_tls: whether to speak TLS with the archive.
        without_tls: whether other machines may be talked to without TLS.
        commit: whether to ask the archive for storage commitment.
        status_port: port of the status page on 127.0.0.1.
        workers, batch_size, device, runtime, allow, seconds: as of `predict`.
        queue: images that may wait.
        reserve: MiB that stay free on the disk.
        largest: MiB of the largest image.
        associations: largest number of associations.
        days: how long images are known after their results were sent.
    """

    model: str
    folder: str
    archive: str | None = None
    stow: str | None = None
    title: str = "WSCXR"
    host: str = "127.0.0.1"
    port: int = 11112
    accept: Sequence[str] = ()
    certificate: str | None = None
    key: str | None = None
    authority: str | None = None
    archive_tls: bool = False
    without_tls: bool = False
    commit: bool = False
    status_port: int = 11180
    workers: int = 2
    batch_size: int = 8
    device: str | None = None
    runtime: str = "auto"
    allow: Sequence[str] = ()
    seconds: float = 10.0
    queue: int = 10_000
    reserve: int = 1024
    largest: int = 512
    associations: int = 64
    days: float = 30.0

    def check(self) -> None:
        """Check the options that need no file.

        Raises:
            InputError: when one cannot be used.
        """
        check_title(self.title, "--title")
        prediction(self).check()
        if (self.archive is None) == (self.stow is None):
            raise InputError("give the archive that gets the results, either --archive TITLE@HOST:PORT or --stow URL")
        if self.workers < 1:
            raise InputError(
                f"--workers must be at least 1, got {self.workers}: files from the network are read in processes"
            )
        for name in ("queue", "largest", "associations", "days"):
            if getattr(self, name) <= 0:
                raise InputError(f"--{name} must be greater than 0, got {getattr(self, name):g}")
        if self.reserve < 0:
            raise InputError(f"--reserve must be at least 0, got {self.reserve}")
        for name in ("port", "status_port"):
            if not 0 <= getattr(self, name) <= 65535:
                raise InputError(f"--{name} must lie between 0 and 65535, got {getattr(self, name)}")
        if bool(self.certificate) != bool(self.key):
            raise InputError("--certificate and --key belong together")
        if not is_loopback(self.host):
            if self.certificate is None and not self.without_tls:
                raise InputError(
                    f"--host {self.host} lets other machines connect: give --certificate and --key for TLS, or --without_tls "
                    "if the network protects patient data by other means"
                )
            if not self.accept:
                raise InputError(
                    f"--host {self.host} lets other machines connect: name them with --accept TITLE@ADDRESS"
                )
        if self.commit and self.stow is not None:
            raise InputError("--commit needs --archive: STOW-RS has no storage commitment")


def prediction(options: NodeOptions) -> Options:
    """Return the options that the node shares with `predict`."""
    return Options(
        model=options.model,
        paths=(),
        output=options.folder,
        dicom=True,
        workers=options.workers,
        batch_size=options.batch_size,
        device=options.device,
        runtime=options.runtime,
        allow=tuple(options.allow),
        seconds=options.seconds,
    )


class Node:
    """A node with its parts; `run` returns when it was stopped.

    Args:
        options: checked.

    Raises:
        InputError: when the model, the folder, an address or a file cannot be used.
    """

    def __init__(self, options: NodeOptions) -> None:
        options.check()
        self.options = options
        check_openable(options.model, options.device, options.runtime)
        archive = self._archive()
        tls = server_tls(options.certificate, options.key, options.authority)
        peers = [Peer.parsed(text) for text in options.accept]
        self.queue = Queue(Path(options.folder))
        try:
            self.sender = Sender(self.queue, archive, 600.0 if options.commit else None)
            self.receiver = Receiver(
                self.queue,
                options.title,
                options.host,
                options.port,
                peers,
                tls,
                options.queue,
                options.reserve << 20,
                options.largest << 20,
                options.associations,
                self._committed,
            )
            start_server((*PRELOAD, *_PRELOAD))  # imports in parallel with loading the model
            network = open_network(options.model, options.device, options.runtime)
            self.scorer = Scorer(network, options.workers, options.allow, options.seconds, _PRELOAD)
            self.scoring = QueueScorer(self.queue, self.scorer, options.batch_size)
            self.status = StatusServer(Status(self.queue, network.model, self._more), "127.0.0.1", options.status_port)
        except BaseException:
            self.queue.close()
            raise
        self._stop = threading.Event()
        self._problem: BaseException | None = None

    def _archive(self) -> DicomArchive | WebArchive:
        options = self.options
        if options.stow is not None:
            names = ("MONAI_WSCXR_STOW_USERNAME", "MONAI_WSCXR_STOW_PASSWORD")
            web = WebArchive(options.stow, *(os.environ.get(name) for name in names))
            self._check_private(web.host, web.encrypted, "an https address for --stow")
            return web
        tls = None
        if options.archive_tls:
            try:
                tls = ssl.create_default_context(cafile=options.authority)
                if options.certificate is not None:
                    tls.load_cert_chain(options.certificate, options.key)
            except (OSError, ssl.SSLError) as error:
                raise InputError(f"--authority or --certificate cannot be used ({error.strerror or error})") from error
        assert options.archive is not None
        found = DicomArchive.parsed(options.title, options.archive, tls=tls, committed=self._committed)
        self._check_private(found.host, tls is not None, "--archive_tls")
        return found

    def _check_private(self, host: str, encrypted: bool, how: str) -> None:
        if not encrypted and not self.options.without_tls and not is_loopback(host):
            raise InputError(
                f"results for {host} would cross the network in the clear: give {how}, or --without_tls if the network "
                "protects patient data by other means"
            )

    def _committed(self, kind: int, information: pydicom.Dataset) -> bool:
        return self.sender.committed(kind, information)

    def _more(self) -> dict[str, int]:
        return {
            "archive_failures": self.sender.failures,
            "rejected_associations": self.receiver.rejected,
            "open_associations": self.receiver.server.open,
        }

    def stop(self) -> None:
        """Let `run` finish what is under way and return."""
        self._stop.set()

    def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Receive, score and send until the node is stopped.

        Args:
            ready: called when the node has begun to listen.

        Raises:
            Exception: what ended the scorer or the sender.
        """
        threads = [
            threading.Thread(target=self._part, args=(part,), daemon=True)
            for part in (self.scoring.run, self.sender.run)
        ]
        for thread in threads:
            thread.start()
        self.receiver.start()
        self.status.start()
        logger.info("listening on %s port %d as %s", self.options.host, self.receiver.port, self.options.title)
        ready()
        swept = 0.0
        try:
            while not self._stop.wait(1.0):
                if time.time() - swept > _DAY / 24:
                    self.queue.forget(time.time() - self.options.days * _DAY)
                    swept = time.time()
        finally:
            logger.info("stopping: what is under way will be finished")
            self.receiver.stop()
            self.scoring.stop()
            self.sender.stop()
            until = time.monotonic() + _LONGEST_STOP
            for thread in threads:
                thread.join(max(0.0, until - time.monotonic()))
            self.status.stop()
            self.scorer.close()
            self.queue.close()
        if self._problem is not None:
            raise self._problem
        logger.info("stopped")

    def _part(self, run: Callable[[], None]) -> None:
        """Run a part in its thread; an error that it does not expect ends the node, so that a supervisor starts it again."""
        try:
            run()
        except BaseException as error:
            self._problem = error
            logger.error("the node ends: %s", type(error).__name__)
            self._stop.set()


@contextlib.contextmanager
def stopping(stop: Callable[[], None]):  # type: ignore[no-untyped-def]
    """Call `stop` on SIGTERM and Ctrl-C during the block; a second signal ends the process at once."""

    def handle(number: int, frame: FrameType | None) -> None:
        for again in before:
            signal.signal(again, signal.SIG_DFL)
        stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
