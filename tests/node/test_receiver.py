"""The storage SCP: answers by the standard, and peers that do not keep to it."""

import contextlib
import io
import struct
import threading
import time

import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    MPEG2MPML,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    generate_uid,
)
from pynetdicom import build_role
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance

from monai_wscxr.errors import InputError
from monai_wscxr.node import association
from monai_wscxr.node.queue import Queue
from monai_wscxr.node.receiver import Peer, Receiver, transfer_syntaxes
from tests.helpers.dicom_peers import (
    PATIENT,
    associate,
    command_set,
    connect,
    data_pdu,
    dx,
    read_pdu,
    request_bytes,
    send,
)

LEVELS = np.arange(64 * 64, dtype=np.uint32).reshape(64, 64) % 251


@pytest.fixture
def start(tmp_path):
    """Starts a receiver with some options and returns it."""
    started = []

    def make(**options):
        queue = Queue(tmp_path / f"queue{len(started)}")
        started.append(Receiver(queue, "WSCXR", "127.0.0.1", 0, reserve=0, **options))
        started[-1].start()
        return started[-1]

    yield make
    for receiver in started:
        receiver.stop(0.5)
        receiver.queue.close()


def wait_until(condition, seconds=10.0):
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    assert condition()


# ---- answers by the standard


def test_an_image_is_on_the_disk_when_it_is_acknowledged(start):
    receiver = start()
    image = dx(LEVELS)
    assert send(receiver.port, image) == [0x0000]
    [item] = receiver.queue.to_score(1)
    stored = pydicom.dcmread(receiver.queue.image(item))
    assert stored.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert stored.SOPInstanceUID == image.SOPInstanceUID
    assert (stored.pixel_array == image.pixel_array).all()
    assert not list(receiver.queue.incoming.iterdir())


def test_verification(start):
    connection = associate(start().port)
    assert connection.send_c_echo().Status == 0x0000
    connection.release()


def test_sent_again_and_another_picture_with_the_same_uid(start, caplog):
    receiver = start()
    image = dx(LEVELS)
    other = dx(LEVELS.T, uid=image.SOPInstanceUID)
    with caplog.at_level("INFO", "monai_wscxr.node"):
        assert send(receiver.port, image, image, other) == [0x0000, 0x0000, 0xC001]
    assert receiver.queue.totals() == {"received": 1, "repeated": 1}
    assert receiver.queue.errors(1)[0]["reason"] == "uid_reused"
    said = caplog.text + repr(receiver.queue.errors(9))
    assert "uid_reused" in said
    assert not any(text in said for text in (*PATIENT.values(), str(image.SOPInstanceUID), "Zwoelfer"))


def test_a_data_set_of_another_instance_and_one_without_uids(start):
    receiver = start()
    image, bare = dx(LEVELS), dx(LEVELS)
    del bare.SOPInstanceUID
    connection = associate(receiver.port)
    request = pydicom.Dataset()
    request.update(image)
    image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    statuses = [_raw_store(connection, ds, uid) for ds, uid in ((image, generate_uid()), (bare, generate_uid()))]
    connection.release()
    assert statuses == [0xA900, 0xC000]
    assert receiver.queue.states()["received"] == 0
    assert not list(receiver.queue.incoming.iterdir())


def _raw_store(connection, ds, uid):
    """C-STORE of a data set under a UID that is not its own."""
    from pynetdicom.dimse_primitives import C_STORE
    from pynetdicom.dsutils import encode

    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = DigitalXRayImageStorageForPresentation, uid
    request.DataSet = io.BytesIO(encode(ds, False, True))
    [context] = [c for c in connection.accepted_contexts if c.abstract_syntax == request.AffectedSOPClassUID]
    connection._reactor_checkpoint.clear()
    connection.dimse.send_msg(request, context.context_id)
    _, answer = connection.dimse.get_msg(block=True)
    connection._reactor_checkpoint.set()
    return answer.Status


def test_a_full_queue_and_a_full_disk_are_out_of_resources(start, monkeypatch):
    receiver = start(largest_queue=1)
    assert send(receiver.port, dx(LEVELS), dx(LEVELS)) == [0x0000, 0xA700]
    assert receiver.queue.errors(1)[0]["reason"] == "queue_full"
    second = start()
    monkeypatch.setattr(second.queue, "room", lambda reserve: False)
    assert send(second.port, dx(LEVELS)) == [0xA700]
    monkeypatch.undo()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(second.queue, "receive", full)
    assert send(second.port, dx(LEVELS)) == [0xA700]
    assert second.queue.errors(1)[0]["reason"] == "disk_full"
    assert not list(second.queue.incoming.iterdir())


def test_unknown_classes_and_syntaxes_are_refused_in_the_negotiation(start):
    contexts = [
        (CTImageStorage, [ExplicitVRLittleEndian]),
        (DigitalXRayImageStorageForPresentation, [MPEG2MPML]),
        (DigitalXRayImageStorageForPresentation, [DeflatedExplicitVRLittleEndian]),
        (StorageCommitmentPushModel, [DeflatedExplicitVRLittleEndian]),
        (DigitalXRayImageStorageForPresentation, [JPEG2000Lossless]),
    ]
    connection = associate(start().port, contexts=contexts)
    assert connection.is_established
    assert [(c.abstract_syntax, c.transfer_syntax) for c in connection.accepted_contexts] == [
        (DigitalXRayImageStorageForPresentation, [JPEG2000Lossless])
    ]
    assert sorted(c.result for c in connection.rejected_contexts) == [3, 4, 4, 4]
    connection.release()
    assert JPEG2000Lossless in transfer_syntaxes()


def test_only_listed_titles_and_addresses_may_associate(start):
    receiver = start(accept=[Peer.parsed("GOOD@127.0.0.0/8"), Peer.parsed("FAR@10.0.0.1")])
    assert send(receiver.port, dx(LEVELS), title="GOOD") == [0x0000]
    for title in ("OTHER", "FAR"):
        connection = associate(receiver.port, title=title)
        assert connection.is_rejected
        assert connection.acceptor.primitive.diagnostic == 3
    assert associate(receiver.port, title="GOOD", called="ELSE").is_rejected
    assert receiver.rejected == 2
    wait_until(lambda: receiver.server.open == 0)


def test_a_request_to_commit_is_refused_because_a_node_is_no_archive(start):
    receiver = start()
    connection = associate(receiver.port, contexts=[(StorageCommitmentPushModel, None)])
    information = pydicom.Dataset()
    information.TransactionUID, information.ReferencedSOPSequence = generate_uid(), []
    status, _ = connection.send_n_action(information, 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance)
    assert status.Status == 0x0211
    connection.release()


def test_a_commitment_comes_over_an_association_of_the_archive(start):
    reports = []

    def committed(kind, information):
        reports.append((kind, str(information.TransactionUID)))
        return information.TransactionUID == "1.2.3"

    receiver = start(committed=committed)
    role = build_role(StorageCommitmentPushModel, scp_role=True)
    connection = associate(receiver.port, contexts=[(StorageCommitmentPushModel, None)], ext_neg=[role])
    assert connection.is_established
    statuses = []
    for transaction in ("1.2.3", "1.2.4"):
        report = pydicom.Dataset()
        report.TransactionUID = transaction
        status, _ = connection.send_n_event_report(
            report, 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        statuses.append(status.Status)
    connection.release()
    assert reports == [(1, "1.2.3"), (1, "1.2.4")]
    assert statuses == [0x0000, 0x0112]


@pytest.mark.parametrize("text", ["", "@1.2.3.4", "A@", "A@1.2.3", "TITLE WITH TOO MANY", "A\\B", "Ä"])
def test_entries_of_the_list_that_are_none(text):
    with pytest.raises(InputError, match=r"--accept"):
        Peer.parsed(text)


# ---- peers that do not keep to it


def ends(receiver, connection):
    """The node ends an association with A-ABORT or by closing it, and answers others."""
    connection.settimeout(15)
    kind, _ = read_pdu(connection)
    assert kind in (7, None)
    connection.close()
    wait_until(lambda: receiver.server.open == 0)
    assert not list(receiver.queue.incoming.iterdir())
    assert send(receiver.port, dx(LEVELS)) == [0x0000]


@pytest.mark.parametrize("established", [True, False])
@pytest.mark.parametrize("length", [2**31, 2**32 - 1, 2**20])
def test_a_pdu_that_is_longer_than_announced_is_not_read(start, length, established):
    receiver = start()
    connection = connect(receiver.port, established)
    connection.sendall(struct.pack(">BBL", 4 if established else 1, 0, length) + b"x" * 1000)
    ends(receiver, connection)


@pytest.mark.parametrize(
    "content",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\xff" * 100,
        struct.pack(">BBL", 4, 0, 2) + b"ab",
        struct.pack(">BBL", 9, 0, 4) + b"abcd",
        data_pdu(b"\xff" * 50, 1, 1),
        data_pdu(command_set(field=0x7777), 1, 1),
        data_pdu(command_set(), 1, 1, context=77) + data_pdu(b"\0" * 8, 0, 1, context=77),
    ],
    ids=["http", "ones", "short", "type_9", "no_command", "unknown_command", "unknown_context"],
)
def test_what_is_no_dicom_is_answered_with_an_abort(start, content):
    receiver = start()
    connection = connect(receiver.port)
    connection.sendall(content)
    ends(receiver, connection)


def test_half_sent_images_leave_nothing(start):
    receiver = start()
    connection = connect(receiver.port)
    connection.sendall(data_pdu(command_set(), 1, 1) + data_pdu(b"\0" * 10_000, 0, 0))
    wait_until(lambda: list(receiver.queue.incoming.iterdir()))
    connection.close()
    wait_until(lambda: receiver.server.open == 0)
    assert not list(receiver.queue.incoming.iterdir())
    assert receiver.queue.states()["received"] == 0


def cut_off(receiver, connection, content, times):
    """Send something again and again; the node must have ended the association."""
    connection.settimeout(20)
    with contextlib.suppress(ConnectionError):  # it may close while this side sends
        for _ in range(times):
            connection.sendall(content)
    kind, _ = read_pdu(connection)  # a timeout fails the test
    assert kind in (7, None)
    connection.close()
    wait_until(lambda: receiver.server.open == 0)
    assert not list(receiver.queue.incoming.iterdir())


def test_an_image_that_does_not_end_is_cut_off(start):
    receiver = start(largest_image=100_000)
    connection = connect(receiver.port)
    connection.sendall(data_pdu(command_set(), 1, 1))
    cut_off(receiver, connection, data_pdu(b"\0" * 16_000, 0, 0), 50)


def test_endless_commands_are_cut_off(start):
    receiver = start()
    cut_off(receiver, connect(receiver.port), data_pdu(b"\0" * 16_000, 1, 0), 50)


def test_messages_without_waiting_for_answers_are_cut_off(start, monkeypatch):
    receiver = start()
    monkeypatch.setattr(receiver, "_take", lambda event, data: time.sleep(0.5) or 0)  # cannot keep up
    content = data_pdu(command_set(), 1, 1) + data_pdu(b"\0" * 8, 0, 1)
    connection = connect(receiver.port)
    with contextlib.suppress(ConnectionError):
        for _ in range(50):
            connection.sendall(content)
    kinds = [read_pdu(connection)[0] for _ in range(3)]
    assert 7 in kinds or None in kinds
    connection.close()
    wait_until(lambda: receiver.server.open == 0)
    assert not list(receiver.queue.incoming.iterdir())


def test_slow_peers_are_cut_off(start, monkeypatch):
    monkeypatch.setattr(association, "_PDU_SECONDS", 0.6)
    receiver = start()
    connection = connect(receiver.port)
    pdu = data_pdu(command_set(), 1, 1)
    began = time.monotonic()
    with pytest.raises((ConnectionError, TimeoutError)):  # noqa: PT012
        for byte in pdu:
            connection.sendall(bytes([byte]))
            time.sleep(0.1)
        raise AssertionError("the node waited for a peer that sends ten bytes per second")
    assert time.monotonic() - began < 10
    connection.close()
    wait_until(lambda: receiver.server.open == 0)


def test_a_message_that_takes_too_long_is_cut_off(start, monkeypatch):
    monkeypatch.setattr(association, "_MESSAGE_SECONDS", 0.3)
    receiver = start()
    connection = connect(receiver.port)
    connection.sendall(data_pdu(command_set(), 1, 1) + data_pdu(b"\0" * 10, 0, 0))
    time.sleep(0.5)
    connection.sendall(data_pdu(b"\0" * 10, 0, 0))
    ends(receiver, connection)


def test_many_associations_at_once_and_one_more(start):
    receiver = start(associations=12)
    images = [dx(LEVELS + number) for number in range(12)]
    held = [associate(receiver.port) for _ in images]
    assert all(connection.is_established for connection in held)
    one_more = associate(receiver.port)
    assert one_more.is_rejected
    assert one_more.acceptor.primitive.result == 2  # transient: local limit exceeded
    statuses = []
    threads = [
        threading.Thread(target=lambda c=c, i=i: statuses.append(c.send_c_store(i).Status))
        for c, i in zip(held, images, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert statuses == [0x0000] * 12
    for connection in held[:6]:
        connection.abort()
    for connection in held[6:]:
        connection.release()
    wait_until(lambda: receiver.server.open == 0)
    assert receiver.queue.states()["received"] == 12


def test_connections_beyond_the_limit_are_closed(start):
    receiver = start(associations=2)
    held = [connect(receiver.port, associated=False) for _ in range(18)]
    wait_until(lambda: receiver.server.open == 18)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # closed before the connection was complete here
        more = connect(receiver.port, associated=False)
        held.append(more)
        more.settimeout(10)
        assert read_pdu(more) == (None, 0)
    assert receiver.server.open == 18
    for connection in held:
        connection.close()
    wait_until(lambda: receiver.server.open == 0)
    wait_until(lambda: not receiver.server.active_associations)  # whose threads count for the next one
    assert send(receiver.port, dx(LEVELS)) == [0x0000]


def test_a_peer_without_tls_does_not_stop_one_with_it(start, tmp_path):
    import ssl

    from monai_wscxr.node.addresses import server_tls

    certificate, key = make_certificate(tmp_path)
    receiver = start(tls=server_tls(certificate, key, None))
    silent = connect(receiver.port, associated=False)  # never shakes hands
    plain = connect(receiver.port, associated=False)
    plain.sendall(request_bytes())
    context = ssl.create_default_context(cafile=certificate)
    connection = associate(receiver.port, tls_args=(context, "localhost"))
    assert connection.is_established
    assert connection.send_c_store(dx(LEVELS)).Status == 0x0000
    connection.release()
    assert read_pdu(plain) != (2, 0)
    silent.close()
    plain.close()


def make_certificate(folder):
    """Make a self-signed certificate for localhost with the openssl program."""
    import shutil
    import subprocess

    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost "
        "-addext subjectAltName=DNS:localhost"
    )
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return str(certificate), str(key)
