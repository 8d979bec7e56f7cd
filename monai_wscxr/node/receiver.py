"""Storage SCP: who may send, what is taken, and the answer to each image.

An image is acknowledged when it is in the queue on the disk, see `node.queue`. Statuses of C-STORE besides success:

* 0xA700: the queue or the disk is full; the same image may come again later.
* 0xA900: the data set is of another SOP class or instance than the request says.
* 0xC000: the data set cannot be read as far as these UIDs.
* 0xC001: another image with this SOP Instance UID was received before.
"""

from __future__ import annotations

import hashlib
import io
import ipaddress
import logging
import re
import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
from pydicom.filereader import read_partial
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pynetdicom import AE, evt
from pynetdicom.dsutils import create_file_meta
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification  # type: ignore[attr-defined]

from monai_wscxr.data.radiograph.base import quiet
from monai_wscxr.data.radiograph.decoders import decodable_syntaxes
from monai_wscxr.errors import InputError
from monai_wscxr.node.association import LARGEST_PDU, BoundedServer, DataSet
from monai_wscxr.node.queue import Queue
from monai_wscxr.system.atomic import DiskFullError, is_disk_full

logger = logging.getLogger("monai_wscxr.node")

STORAGE = (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
)
"""SOP classes that are taken. Secondary Captures are not: the node's own overlays, routed back to it, would go in circles."""
_NATIVE = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
)  # not deflated, which unpacks to any size
SUCCESS, FULL, MISMATCH, UNREADABLE, UID_REUSED = 0x0000, 0xA700, 0xA900, 0xC000, 0xC001
_NO_ARCHIVE = 0x0211  # N-ACTION: unrecognised operation
_HEAD = 2**17  # bytes in which the UIDs must come
_TITLE = re.compile(r"[ !-\[\]-~]{1,16}")  # PS3.5: no backslash, no control characters


@dataclass(frozen=True)
class Peer:
    """A peer that may associate.

    Attributes:
        title: its AE title; "*" for any.
        network: addresses it may come from; None for any.
    """

    title: str
    network: ipaddress.IPv4Network | ipaddress.IPv6Network | None = None

    @classmethod
    def parsed(cls, text: str) -> Peer:
        """Read `TITLE`, or `TITLE@ADDRESS` with an address or a network such as 10.1.2.0/24.

        Raises:
            InputError: when it is neither.
        """
        title, at, address = text.partition("@")
        check_title(title, "--accept")
        try:
            return cls(title.strip(), ipaddress.ip_network(address.strip(), strict=False) if at else None)
        except ValueError:
            raise InputError(
                f"--accept {text}: {address!r} is no address; give TITLE@ADDRESS, for instance ORTHANC@10.1.2.3"
            ) from None

    def covers(self, title: str, address: str) -> bool:
        """Tell whether a peer with this AE title and address is meant."""
        if self.title not in ("*", title):
            return False
        if self.network is None:
            return True
        found = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        return found in self.network


def check_title(title: str, option: str) -> None:
    """Check an AE title.

    Raises:
        InputError: when it is empty, too long or has characters that AE titles may not have.
    """
    if not title.strip() or _TITLE.fullmatch(title) is None:
        raise InputError(
            f"{option} {title!r} is no AE title: these have 1 to 16 printable ASCII characters, no backslash"
        )


def transfer_syntaxes() -> list[str]:
    """Return the transfer syntaxes that can be decoded here, native ones first."""
    return [*_NATIVE, *decodable_syntaxes()]


class Receiver:
    """The storage SCP.

    Args:
        queue: takes the images.
        title: AE title.
        host, port: address to listen on; port 0 takes a free one.
        accept: peers that may associate; none means everybody.
        tls: context for TLS, or None.
        largest_queue: images that may wait.
        reserve: bytes that stay free on the disk.
        largest_image: largest data set in bytes.
        associations: largest number of associations at a time.
        committed: called with the event information of a storage commitment that came over an association of the archive;
            returns whether it is known.

    Attributes:
        port: port it listens on.
    """

    def __init__(
        self,
        queue: Queue,
        title: str,
        host: str,
        port: int,
        accept: Sequence[Peer] = (),
        tls: ssl.SSLContext | None = None,
        largest_queue: int = 10_000,
        reserve: int = 2**30,
        largest_image: int = 2**29,
        associations: int = 64,
        committed: Callable[[int, pydicom.Dataset], bool] | None = None,
    ) -> None:
        self.queue, self.accept, self.largest_queue, self.reserve = queue, tuple(accept), largest_queue, reserve
        self.committed = committed
        self.rejected = 0
        ae = AE(ae_title=title)
        ae.maximum_associations = associations
        ae.maximum_pdu_size = LARGEST_PDU
        ae.acse_timeout, ae.dimse_timeout, ae.network_timeout = 30, 60, 60
        ae.require_called_aet = True
        ae.add_supported_context(Verification, list(_NATIVE))
        for storage in STORAGE:
            ae.add_supported_context(storage, transfer_syntaxes())
        # the archive is the SCP of storage commitment, also on associations that it opens for its reports
        ae.add_supported_context(StorageCommitmentPushModel, list(_NATIVE), scu_role=True, scp_role=True)
        handlers: list[Any] = [
            (evt.EVT_REQUESTED, self._requested),
            (evt.EVT_C_ECHO, lambda event: SUCCESS),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_N_ACTION, lambda event: (_NO_ARCHIVE, None)),
            (evt.EVT_N_EVENT_REPORT, self._event_report),
        ]
        limits: dict[str, Any] = {
            "folder": queue.incoming,
            "largest": largest_image,
            "connections": associations + 16,
            "tls": tls,
        }
        try:
            self.server: Any = ae.make_server((host, port), evt_handlers=handlers, server_class=BoundedServer, **limits)
        except OSError as error:
            raise InputError(
                f"cannot listen on {host}, port {port} ({error.strerror or error}); choose another --port"
            ) from error
        ae._servers.append(self.server)
        self.ae = ae
        self.port = int(self.server.server_address[1])
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.1,), daemon=True)

    def start(self) -> None:
        """Begin to accept associations."""
        self._thread.start()

    def stop(self, seconds: float = 5.0) -> None:
        """Accept no more associations, and give those under way a time to end before they are aborted."""
        self.server.shutdown()
        self._thread.join(5.0)
        for association in self.server.active_associations:
            association.join(seconds)
            seconds = max(0.0, seconds - 1.0)
        for association in self.server.active_associations:
            association.abort()

    # ---- events

    def _requested(self, event: Any) -> None:
        """Reject a peer that is not on the list: calling AE title not recognised."""
        title = str(event.assoc.requestor.primitive.calling_ae_title).strip()
        address = event.assoc.requestor.address
        if self.accept and not any(peer.covers(title, address) for peer in self.accept):
            self.rejected += 1
            logger.warning("association rejected: a title or address that is not on the list, from %s", address)
            event.assoc.acse.send_reject(0x01, 0x01, 0x03)
            event.assoc.kill()

    def _store(self, event: Any) -> int:
        """Take an image and return the status of the answer."""
        data = event.request.DataSet
        if not isinstance(data, DataSet) or data.path is None:
            return UNREADABLE
        try:
            return self._take(event, data)
        except OSError as error:
            full = isinstance(error, DiskFullError) or is_disk_full(error)
            self._refuse("disk_full" if full else "disk_error", "an image could not be written to the queue")
            return FULL
        finally:
            data.discard()

    def _take(self, event: Any, data: DataSet) -> int:
        path = data.finish()
        assert path is not None
        if self.queue.waiting >= self.largest_queue:
            self._refuse("queue_full", f"{self.largest_queue} images wait already; an image was refused")
            return FULL
        if not self.queue.room(self.reserve + data.size):
            self._refuse("disk_full", "the disk has no room for more images; one was refused")
            return FULL
        request, syntax = event.request, event.context.transfer_syntax
        found = _uids(path, pydicom.uid.UID(syntax))
        if found is None:
            self._refuse("unreadable", "the UIDs of a data set could not be read; it was refused")
            return UNREADABLE
        if found != (str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID)):
            self._refuse(
                "uid_mismatch", "a data set is of another SOP class or instance than its request; it was refused"
            )
            return MISMATCH
        digest = _digest(path)
        whole = path.with_suffix(".dcm")
        try:
            _write_file(whole, path, _meta(found[0], found[1], syntax))
            what, name = self.queue.receive(found[1], whole, digest)
        finally:
            whole.unlink(missing_ok=True)
        if what == "other":
            self._refuse("uid_reused", "another image with the same SOP Instance UID was received before", name)
            return UID_REUSED
        logger.info("%s %s", "received" if what == "new" else "received again", name)
        return SUCCESS

    def _refuse(self, reason: str, message: str, name: str = "") -> None:
        logger.warning("refused %s: %s", name or "an image", reason)
        self.queue.error(reason, message, name)

    def _event_report(self, event: Any) -> tuple[int, None]:
        """Take the report of a storage commitment from an association that the archive has opened."""
        if self.committed is None:
            return 0x0112, None  # no such SOP instance: nothing was asked for
        return (SUCCESS if self.committed(event.event_type, event.event_information) else 0x0112), None


def _uids(path: Path, syntax: pydicom.uid.UID) -> tuple[str, str] | None:
    """Return the SOP class and instance of a data set, read from its first bytes; None when they do not come there."""
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    try:
        with quiet:
            found = read_partial(
                io.BytesIO(_with_meta(head, syntax)), stop_when=lambda tag, vr, length: tag > 0x00080018, force=True
            )
            return str(found.SOPClassUID), str(found.SOPInstanceUID)
    except Exception:  # pydicom raises errors of every type
        return None


def _with_meta(head: bytes, syntax: pydicom.uid.UID) -> bytes:
    buffer = io.BytesIO()
    _write_meta(buffer, _meta("1.2", "1.2", syntax))
    return buffer.getvalue() + head


def _meta(sop_class: str, sop_instance: str, syntax: str) -> Any:
    return create_file_meta(
        sop_class_uid=pydicom.uid.UID(sop_class),
        sop_instance_uid=pydicom.uid.UID(sop_instance),
        transfer_syntax=pydicom.uid.UID(syntax),
    )


def _write_meta(file: Any, meta: Any) -> None:
    from pydicom.filewriter import write_file_meta_info

    file.write(b"\0" * 128 + b"DICM")
    write_file_meta_info(file, meta)


def _write_file(target: Path, source: Path, meta: Any) -> None:
    """Write a DICOM file from a data set."""
    with open(target, "wb") as file, open(source, "rb") as content:
        _write_meta(file, meta)
        while block := content.read(2**20):
            file.write(block)


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
