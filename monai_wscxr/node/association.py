"""Associations that cost a bounded amount of memory and time, whatever the peer sends.

pynetdicom reads a PDU of any length that its header claims, waits for its bytes without end, collects command sets and data
sets in memory without a limit, and shakes hands for TLS in the thread that accepts connections. Here a PDU may be as long as
the node has announced and must arrive in time, messages have a size and a time limit, and data sets go to a file as they
arrive. What exceeds a limit is answered with A-ABORT, as the standard asks for invalid PDUs.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import socket
import ssl
import struct
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any, cast

from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

logger = logging.getLogger("monai_wscxr.node")

LARGEST_PDU = 2**17
"""Longest P-DATA-TF PDU in bytes, as the node announces it."""
_LARGEST_NEGOTIATION = 2**18  # an A-ASSOCIATE-RQ with 128 presentation contexts has about 20 kB
_LARGEST_COMMAND = 2**16
_LARGEST_COMMITMENT = 2**22  # a storage commitment of some thousand instances
_PDU_SECONDS = 30.0
_MESSAGE_SECONDS = 600.0
_MESSAGES_AHEAD = 4  # that a peer sends without waiting for answers, which the node has not agreed to


class DataSet(io.BytesIO):
    """The data set of a message. That of a C-STORE request goes to a file as it arrives, and the buffer stays empty.

    Args:
        folder: folder for the file.
        message: the message, whose command set comes before its data set.

    Attributes:
        path: the file, or None as long as nothing has arrived.
        size: bytes so far.
    """

    def __init__(self, folder: Path, message: DIMSEMessage) -> None:
        super().__init__()
        self.folder, self.message = folder, message
        self.path, self.size = cast("Path | None", None), 0
        self._file: io.BufferedWriter | None = None

    def write(self, data: Any) -> int:
        """Append bytes."""
        self.size += len(data)
        if not _is_store(self.message):
            return super().write(data)
        if self._file is None:
            descriptor, name = tempfile.mkstemp(dir=self.folder, suffix=".part")
            self._file, self.path = os.fdopen(descriptor, "wb"), Path(name)
        return self._file.write(data)

    def finish(self) -> Path | None:
        """Close the file and return its path; None without a data set."""
        if self._file is not None:
            self._file.close()
        return self.path

    def discard(self) -> None:
        """Close and delete the file."""
        if self._file is not None:
            self._file.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)


class BoundedMessages(DIMSEServiceProvider):
    """DIMSE provider that writes data sets to files and ends associations whose messages exceed the limits.

    Args:
        assoc: the association.
        folder: folder for data sets.
        largest: largest data set in bytes.
    """

    def __init__(self, assoc: Association, folder: Path, largest: int) -> None:
        super().__init__(assoc)
        self.folder, self.largest = folder, largest
        self._began = 0.0
        self._over = False
        self._latest: deque[DataSet] = deque(maxlen=2 * _MESSAGES_AHEAD)

    def receive_primitive(self, primitive: Any) -> None:
        """Take a P-DATA primitive, as the base class does, unless the message is over a limit."""
        if self._over:
            return
        if self.message is None:
            self.message, self._began = DIMSEMessage(), time.monotonic()
            self.message.data_set = DataSet(self.folder, self.message)
            self._latest.append(self.message.data_set)
        message = self.message
        try:
            super().receive_primitive(primitive)
        except Exception as error:  # whatever the command set makes pydicom raise
            self._end(f"sends a message that cannot be decoded ({type(error).__name__})")
            return
        if self.message is None and self.msg_queue.qsize() > _MESSAGES_AHEAD:
            self._end("sends messages without waiting for answers")
        if self.message is None:
            return
        data = cast(DataSet, message.data_set)
        if message.encoded_command_set.tell() > _LARGEST_COMMAND:
            self._end("sends an endless command set")
        elif data.size > self._limit(message):
            self._end(f"sends a data set of more than {self._limit(message)} bytes")
        elif time.monotonic() - self._began > _MESSAGE_SECONDS:
            self._end(f"takes more than {_MESSAGE_SECONDS:.0f} s for a message")

    def _limit(self, message: DIMSEMessage) -> int:
        return self.largest if _is_store(message) else _LARGEST_COMMITMENT

    def _end(self, what: str) -> None:
        logger.warning("association ended: the peer %s", what)
        self._over = True
        self.discard()
        self.dul.event_queue.put("Evt19")  # invalid PDU: A-ABORT by the provider

    def discard(self) -> None:
        """Delete the files of messages that nobody will handle any more."""
        for data in self._latest:
            data.discard()


def _is_store(message: DIMSEMessage) -> bool:
    return type(message).__name__ == "C_STORE_RQ"


class BoundedSocket(AssociationSocket):
    """Socket that refuses PDUs which are longer than announced, or do not arrive in time."""

    def recv(self, nr_bytes: int) -> bytearray:
        """Read bytes; fewer when the connection ends, the time is over or the PDU is too long."""
        received = bytearray()
        association = self.assoc
        largest = LARGEST_PDU + 6 if association.is_established else _LARGEST_NEGOTIATION
        if nr_bytes > largest:
            logger.warning("association ended: the peer announces a PDU of %d bytes", nr_bytes)
            association.dul.event_queue.put("Evt19")
            return received
        assert self.socket is not None
        until = time.monotonic() + _PDU_SECONDS
        while len(received) < nr_bytes:
            left = until - time.monotonic()
            if left <= 0:
                logger.warning("association ended: the peer is too slow")
                raise TimeoutError
            self.socket.settimeout(left)
            part = self.socket.recv(min(nr_bytes - len(received), 2**16))
            if not part:
                break
            received += part
        self.socket.settimeout(_PDU_SECONDS)  # for sending
        return received

    def _shutdown_socket(self) -> None:
        """Close the connection, also one that the peer has closed."""
        if self.socket is not None:
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)
            self.socket.close()


class _Handler(RequestHandler):
    """Start of an association over a new connection."""

    server: BoundedServer

    def handle(self) -> None:
        """Shake hands for TLS if the node asks for it, then start the association."""
        connection = cast(socket.socket, self.request)
        connection.settimeout(_PDU_SECONDS)
        if self.server.tls is not None:
            try:
                self.request = self.server.tls.wrap_socket(connection, server_side=True)
            except (OSError, ValueError) as error:
                logger.warning("a connection was refused: no TLS (%s)", type(error).__name__)
                connection.close()
                self.server.release()
                return
        super().handle()

    def _create_association(self) -> Association:
        association = super()._create_association()
        association.dul.socket = BoundedSocket(association, client_socket=self.request)
        association.dul.event_queue.get(block=False)  # that of the socket which was replaced
        messages = BoundedMessages(association, self.server.folder, self.server.largest)
        association.dimse = messages
        run, exchange = association.run, association.dul.run

        def finish() -> None:
            try:
                run()
            except Exception as error:
                logger.warning("an association ended with %s", type(error).__name__)
            finally:
                messages.discard()
                association.dul.socket.close()  # type: ignore[union-attr]
                self.server.release()

        def exchange_quietly() -> None:
            try:
                exchange()
            except Exception as error:  # events that the state machine of the standard does not have
                logger.warning("an association ended with %s", type(error).__name__)
            finally:
                association.dul.to_user_queue.put(None)  # type: ignore[arg-type]  # wakes one that waits for a request

        association.run = finish  # type: ignore[method-assign]
        association.dul.run = exchange_quietly  # type: ignore[method-assign]
        return association


class BoundedServer(ThreadedAssociationServer):
    """Server of associations with a limit on their number, also of those that have not been negotiated.

    Args:
        arguments, options: of the base class.
        folder: folder for data sets that arrive.
        largest: largest data set in bytes.
        connections: largest number of open connections.
        tls: context for TLS, or None.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        *arguments: Any,
        folder: Path,
        largest: int,
        connections: int,
        tls: ssl.SSLContext | None = None,
        **options: Any,
    ) -> None:
        self.folder, self.largest, self.connections, self.tls = folder, largest, connections, tls
        self.open = 0
        self._counting = threading.Lock()
        options["request_handler"] = _Handler
        super().__init__(*arguments, **options)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Tell whether a connection is taken: not beyond the limit, where the node cannot even answer."""
        with self._counting:
            if self.open >= self.connections:
                logger.warning("a connection was closed: %d are open", self.open)
                with contextlib.suppress(OSError):  # no lingering: a reset tells the peer at once
                    request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return False
            self.open += 1
        return True

    def release(self) -> None:
        """Note that a connection has ended."""
        with self._counting:
            self.open -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log the error of a connection by its type: its text may quote what came."""
        logger.warning("a connection ended with an error")
        self.release()
