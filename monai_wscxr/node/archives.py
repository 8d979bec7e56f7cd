"""Archives that take results: by C-STORE over an association, or by STOW-RS over HTTP."""

from __future__ import annotations

import base64
import json
import ssl
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pydicom
from pydicom.uid import (
    ComprehensiveSRStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)
from pynetdicom import AE, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from monai_wscxr.errors import InputError
from monai_wscxr.node.receiver import check_title
from monai_wscxr.node.sender import NotNow, Unreachable, references

RESULTS = (SecondaryCaptureImageStorage, SegmentationStorage, ComprehensiveSRStorage)
_TAKEN = (0x0000, 0xB000, 0xB006, 0xB007, 0x0111)  # success, with warnings, or already there
_STOW_SECONDS = 120.0
_COMMIT = 1  # action and event type


class DicomArchive:
    """An archive that takes C-STORE requests.

    Args:
        own: AE title of the node.
        title: AE title of the archive.
        host, port: its address.
        tls: context for TLS, or None.
        committed: called with event type and information of a storage commitment that comes over this association.
    """

    commits = True

    def __init__(
        self,
        own: str,
        title: str,
        host: str,
        port: int,
        tls: ssl.SSLContext | None = None,
        committed: Callable[[int, pydicom.Dataset], bool] | None = None,
    ) -> None:
        self.title, self.host, self.port, self.tls, self.committed = title, host, port, tls, committed
        self._ae = AE(ae_title=own)
        self._ae.acse_timeout, self._ae.dimse_timeout, self._ae.network_timeout = 30, 120, 120
        self._ae.connection_timeout = 10
        for uid in RESULTS:
            self._ae.add_requested_context(uid, [ExplicitVRLittleEndian])
            self._ae.add_requested_context(uid, [ImplicitVRLittleEndian])
        self._ae.add_requested_context(StorageCommitmentPushModel)
        self._association: Any = None

    @classmethod
    def parsed(cls, own: str, text: str, **options: Any) -> DicomArchive:
        """Read `TITLE@HOST:PORT`.

        Raises:
            InputError: when it is something else.
        """
        title, at, place = text.partition("@")
        host, colon, port = place.rpartition(":")
        if not (at and colon and host and port.isdigit() and 0 < int(port) < 65536):
            raise InputError(f"--archive {text}: give TITLE@HOST:PORT, for instance ORTHANC@127.0.0.1:4242")
        check_title(title, "--archive")
        return cls(own, title.strip(), host.strip("[]"), int(port), **options)

    def store(self, sets: Sequence[Sequence[Path]]) -> list[str]:
        """Store sets of files, see `Archive`."""
        return [next((why for file in files if (why := self._store(file))), "") for files in sets]

    def _store(self, file: Path) -> str:
        """Store a file; return why it was refused, or ""."""
        association = self._open()
        ds = pydicom.dcmread(file)
        accepted = {context.abstract_syntax for context in association.accepted_contexts}
        if ds.SOPClassUID not in accepted:
            return f"the archive does not take {ds.SOPClassUID.name}"
        try:
            status = association.send_c_store(ds)
        except (RuntimeError, OSError):  # the association has ended meanwhile
            status = pydicom.Dataset()
        except ValueError as error:
            return f"the object cannot be sent ({type(error).__name__})"
        if "Status" not in status:
            self.close()
            # perhaps because of these results; where the archive has gone, the next ones find that out
            raise NotNow("the association ended while results were sent")
        if status.Status in _TAKEN:
            return ""
        if 0xA700 <= status.Status <= 0xA7FF:
            raise NotNow(f"the archive is out of resources, status 0x{status.Status:04X}")
        return f"the archive answered with status 0x{status.Status:04X}"

    def ask(self, files: Sequence[Path], transaction: str) -> None:
        """Ask for storage commitment (N-ACTION), see `Archive`."""
        association = self._open()
        information = pydicom.Dataset()
        information.TransactionUID = transaction
        information.ReferencedSOPSequence = references(files)
        try:
            status, _ = association.send_n_action(
                information, _COMMIT, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
            )
        except (RuntimeError, OSError, ValueError) as error:  # not accepted, or the association has ended
            raise Unreachable("the archive does not take requests for storage commitment") from error
        if status.get("Status") != 0x0000:
            raise Unreachable(f"the archive refuses storage commitment, status 0x{status.get('Status', 0xFFFF):04X}")

    def close(self) -> None:
        """Release the association."""
        association, self._association = self._association, None
        if association is not None and association.is_established:
            association.release()

    def _open(self) -> Any:
        if self._association is None or not self._association.is_established:
            handlers: list[Any] = [(evt.EVT_N_EVENT_REPORT, self._event_report)]
            tls = None if self.tls is None else (self.tls, self.host)
            self._association = self._ae.associate(
                self.host, self.port, ae_title=self.title, evt_handlers=handlers, tls_args=tls
            )
        if not self._association.is_established:
            rejected = self._association.is_rejected
            self._association = None
            raise Unreachable("the archive rejected the association" if rejected else "no connection to the archive")
        return self._association

    def _event_report(self, event: Any) -> tuple[int, None]:
        known = self.committed is not None and self.committed(event.event_type, event.event_information)
        return (0x0000 if known else 0x0112), None


class WebArchive:
    """An archive that takes STOW-RS requests.

    Args:
        url: address of the DICOMweb service.
        user, password: for HTTP Basic, or None.
    """

    commits = False

    def __init__(self, url: str, user: str | None = None, password: str | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise InputError(
                f"--stow {url} is no address of a DICOMweb service, such as http://127.0.0.1:8042/dicom-web"
            )
        self.url, self.host, self.encrypted = url.rstrip("/") + "/studies", parts.hostname, parts.scheme == "https"
        self._headers = {"Accept": "application/dicom+json"}
        if user and password:
            self._headers["Authorization"] = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        self._opener = urllib.request.build_opener(_NoRedirect)

    def store(self, sets: Sequence[Sequence[Path]]) -> list[str]:
        """Store sets of files, see `Archive`."""
        return [self._store(files) for files in sets]

    def _store(self, files: Sequence[Path]) -> str:
        mark = uuid.uuid4().hex
        head = f"--{mark}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        body = b"".join(head + file.read_bytes() + b"\r\n" for file in files) + f"--{mark}--\r\n".encode()
        kind = f'multipart/related; type="application/dicom"; boundary={mark}'
        request = urllib.request.Request(self.url, body, {**self._headers, "Content-Type": kind}, method="POST")
        try:
            with self._opener.open(request, timeout=_STOW_SECONDS) as answer:
                return _stored(answer.read(2**24), len(files))
        except urllib.error.HTTPError as error:
            with error:
                if error.code in (500, 507):  # perhaps because of these results, or full
                    raise NotNow(f"the archive answered with HTTP status {error.code}") from None
                if error.code > 500 or error.code in (401, 403, 408, 429):
                    raise Unreachable(f"the archive answered with HTTP status {error.code}") from None
                return f"the archive answered with HTTP status {error.code}"
        except (OSError, ValueError, EOFError) as error:
            raise Unreachable(f"no connection to the archive ({type(error).__name__})") from error

    def ask(self, files: Sequence[Path], transaction: str) -> None:
        """Refuse: DICOMweb has no storage commitment that archives offer."""
        raise Unreachable("STOW-RS has no storage commitment")

    def close(self) -> None:
        """Do nothing: each request has its own connection."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Redirects would send patient data and the password to another address."""

    def redirect_request(self, *arguments: Any) -> None:
        """Follow no redirect; the answer becomes an error."""
        return None


def _stored(answer: bytes, count: int) -> str:
    """Return why an answer of STOW-RS does not confirm so many objects, or ""."""
    try:
        found = json.loads(answer)
        failed = len(found.get("00081198", {}).get("Value", []))
        stored = len(found.get("00081199", {}).get("Value", []))
    except (ValueError, AttributeError):
        return "the answer of the archive is not DICOM JSON"
    return "" if not failed and stored == count else f"the archive took {stored} of {count} objects"
