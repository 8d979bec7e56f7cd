"""Results go to the archive once and only once, however it behaves."""

import http.server
import json
import threading
import time

import numpy as np
import pytest
from pydicom.uid import SecondaryCaptureImageStorage

from monai_wscxr.errors import InputError
from monai_wscxr.node import sender as sending
from monai_wscxr.node.archives import DicomArchive, WebArchive
from monai_wscxr.node.queue import Queue
from monai_wscxr.node.sender import Sender, waiting_time
from tests.helpers.dicom_peers import archive, dx


@pytest.fixture
def queue(tmp_path):
    """A queue of three images with two result objects each."""
    found = Queue(tmp_path / "queue")
    for number in range(3):
        file = found.incoming / "a.part"
        file.write_bytes(b"%d" % number)
        found.receive(f"1.2.{number}", file, f"{number}")
        [item] = found.to_score(1)
        names = []
        for kind in ("overlay", "report"):
            ds = dx(np.full((8, 8), number), Modality="OT")
            ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
            names.append(f"{item.id}-{kind}.dcm")
            ds.save_as(found.results / names[-1], enforce_file_format=True)
        found.scored(item, names, {"abnormal": False})
    yield found
    found.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Waits a fiftieth of the time."""
    monkeypatch.setattr(sending, "waiting_time", lambda failures: waiting_time(failures) / 100)
    monkeypatch.setattr(sending, "MOST_REFUSALS", 4)


@pytest.fixture
def run():
    """Runs a sender in a thread."""
    started = []

    def start(sender):
        thread = threading.Thread(target=sender.run)
        started.append((sender, thread))
        thread.start()
        return sender

    yield start
    for sender, thread in started:
        sender.stop()
        thread.join(20)
        assert not thread.is_alive()


def until(queue, **states):
    end = time.monotonic() + 15
    while time.monotonic() < end:
        found = queue.states()
        if all(found[state] == count for state, count in states.items()):
            return
        time.sleep(0.02)
    raise AssertionError(queue.states())


def node_archive(found, **options):
    return DicomArchive("WSCXR", "ARCHIVE", "127.0.0.1", found.port, **options)


def test_everything_is_stored_once_and_deleted_here(queue, run):
    with archive() as found:
        run(Sender(queue, node_archive(found)))
        until(queue, done=3)
        assert (len(found.stored), found.repeats) == (6, 0)
    assert not list(queue.results.iterdir())


def test_an_archive_that_is_away_is_asked_again_without_losing_anything(queue, run):
    with archive() as first:
        port = first.port
    sender = run(Sender(queue, DicomArchive("WSCXR", "ARCHIVE", "127.0.0.1", port)))
    end = time.monotonic() + 10
    while sender.failures < 3 and time.monotonic() < end:
        time.sleep(0.01)
    assert sender.failures >= 3
    assert queue.states()["ready"] == 3
    assert queue.errors(9)[0]["reason"] == "archive_unreachable"
    with archive(port) as second:
        until(queue, done=3)
        assert len(second.stored) == 6
    assert sender.failures == 0


def test_out_of_resources_is_asked_again_and_a_refusal_is_given_up(queue, run):
    answers, refused = {}, []

    def status(ds):
        count = answers[ds.SOPInstanceUID] = answers.get(ds.SOPInstanceUID, 0) + 1
        if ds.pixel_array[0, 0] == 1:
            return 0xA700 if count < 4 else 0x0000
        if ds.pixel_array[0, 0] == 2:
            refused.append(ds.SOPInstanceUID)
            return 0xC000
        return 0x0000

    with archive() as found:
        found.status = status
        run(Sender(queue, node_archive(found)))
        until(queue, done=2, failed=1)
    assert queue.totals()["reason_archive_refused"] == 1
    assert len(refused) == sending.MOST_REFUSALS
    assert len(set(refused)) == 1  # the first refusal ends an attempt
    assert len(list(queue.results.iterdir())) == 2  # kept for whoever looks into it
    assert any("given up" in entry["message"] for entry in queue.errors(9) if entry["reason"] == "archive_refused")


@pytest.mark.parametrize("how", ["out of resources", "abort"])
def test_results_that_the_archive_can_never_take_hold_back_no_others(queue, run, how):
    tried = []

    def status(ds):
        if ds.pixel_array[0, 0] != 0:
            return 0x0000
        tried.append(time.monotonic())
        return 0xA700 if how == "out of resources" else None

    with archive() as found:
        found.status = status
        run(Sender(queue, node_archive(found)))
        until(queue, done=2, ready=1)
        end = time.monotonic() + 10
        while len(queue.errors(9)) < 2 and time.monotonic() < end:
            time.sleep(0.01)
        assert [entry["reason"] for entry in queue.errors(9)] == ["archive_not_now"] * 2  # after 1 and 5 attempts
        assert len(tried) >= 5
        assert queue.states()["failed"] == 0  # asked again without end
        found.status = lambda ds: 0x0000
        until(queue, done=3)


def test_an_archive_that_can_take_nothing_is_given_a_rest(queue, run, monkeypatch):
    asked, pauses = [], []
    monkeypatch.setattr(sending, "waiting_time", lambda failures: pauses.append(failures) or 0.02 * failures)
    with archive() as found:
        found.status = lambda ds: asked.append(len(pauses)) or (0xA701 if len(asked) < 8 else 0x0000)
        run(Sender(queue, node_archive(found)))
        until(queue, done=3)
    assert pauses[:4] == [1, 1, 1, 2]  # the three images, and the first of them again
    assert pauses[4:] == [1, 2, 2, 2, 3, 3, 4]  # from the fourth in a row on, the archive as well


def test_an_archive_that_takes_no_such_class_refuses(queue, run):
    with archive() as found:
        found._server.contexts = [
            c for c in found._server.contexts if c.abstract_syntax != SecondaryCaptureImageStorage
        ]
        run(Sender(queue, node_archive(found)))
        until(queue, failed=3)
    assert "does not take" in queue.errors(1)[0]["message"]


def test_results_are_kept_until_the_archive_commits(queue, run):
    with archive() as found:
        sender = Sender(queue, node_archive(found), commitment=60.0)
        sender.archive.committed = sender.committed
        found.commit = "ignore"
        run(sender)
        until(queue, sent=3)
        assert len(list(queue.results.iterdir())) == 6
        end = time.monotonic() + 10
        while not found.asked and time.monotonic() < end:
            time.sleep(0.01)
        assert sum(len(asked.ReferencedSOPSequence) for asked in found.asked) == 6
        report = found.asked[0]
        assert sender.committed(1, report)
        until(queue, done=3)
        assert not sender.committed(1, report)  # it is over
        assert not list(queue.results.iterdir())


def test_commitment_over_the_same_association(queue, run):
    with archive() as found:
        sender = Sender(queue, node_archive(found), commitment=60.0)
        sender.archive.committed = sender.committed
        run(sender)
        until(queue, done=3)


@pytest.mark.parametrize("commit", ["none", "ignore"])
def test_without_commitment_results_are_sent_again_and_given_up(queue, run, commit):
    with archive() as found:
        sender = Sender(queue, node_archive(found), commitment=0.2)
        found.report_to, found.commit = sender.committed, commit
        run(sender)
        until(queue, failed=3)
        assert len(found.stored) == 6
    assert queue.totals()["reason_not_committed"] == 3
    assert len(list(queue.results.iterdir())) == 6


def test_a_stopped_sender_ends_soon_and_the_next_goes_on(queue, run):
    with archive() as found:
        sender = Sender(queue, node_archive(found))
        found.status = lambda ds: sender.stop() or 0x0000
        thread = threading.Thread(target=sender.run)
        thread.start()
        thread.join(15)
        assert not thread.is_alive()
        assert queue.states() == {"received": 0, "ready": 2, "sent": 0, "done": 1, "failed": 0}
        found.status = lambda ds: 0x0000
        run(Sender(queue, node_archive(found)))
        until(queue, done=3)
        assert (len(found.stored), found.repeats) == (6, 0)


# ---- STOW-RS


@pytest.fixture
def web():
    """A DICOMweb server that answers as `answers` says, request by request; the last answer stays."""
    got, answers = [], [(200, None)]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((self.path, self.headers, body))
            status, answer = answers.pop(0) if len(answers) > 1 else answers[0]
            if answer is None:
                answer = json.dumps({"00081199": {"Value": [{}] * body.count(b"application/dicom\r\n")}}).encode()
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    server.got, server.answers = got, answers
    yield server
    server.shutdown()
    server.server_close()


def test_stow(queue, run, web):
    web.answers[:] = [(503, b""), (500, b""), (200, None)]
    address = f"http://127.0.0.1:{web.server_address[1]}/dicom-web/"
    run(Sender(queue, WebArchive(address, "me", "secret")))
    until(queue, done=3)
    path, headers, body = web.got[-1]
    assert path == "/dicom-web/studies"
    assert headers["Authorization"] == "Basic bWU6c2VjcmV0"
    assert body.count(b"DICM") == 2
    assert len(web.got) == 5
    assert {entry["reason"] for entry in queue.errors(9)} == {"archive_unreachable", "archive_not_now"}


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (409, b""),
        (302, b""),
        (200, b"<html>"),
        (200, b"[]"),
        (200, b'{"00081199": {"Value": [{}]}}'),
        (200, b'{"00081198": {"Value": [{}]}, "00081199": {"Value": [{}, {}]}}'),
    ],
)
def test_answers_of_stow_that_confirm_nothing(queue, run, web, status, answer):
    web.answers[:] = [(status, answer)]
    run(Sender(queue, WebArchive(f"http://127.0.0.1:{web.server_address[1]}")))
    until(queue, failed=3)


def test_waiting_times_double_up_to_a_minute():
    times = [waiting_time(failures) for failures in (1, 2, 3, 4, 50)]
    assert all(0.8 * wanted <= found <= 1.2 * wanted for found, wanted in zip(times, (1, 2, 4, 8, 60), strict=True))


@pytest.mark.parametrize("text", ["", "ORTHANC", "ORTHANC@host", "@host:1", "A@:104", "A@b:0", "A@b:99999", "A@b:x"])
def test_archives_that_are_none(text):
    with pytest.raises(InputError, match="--archive"):
        DicomArchive.parsed("WSCXR", text)


@pytest.mark.parametrize("text", ["", "ftp://a/b", "http://", "127.0.0.1:8042", "http://a/b?c"])
def test_dicomweb_addresses_that_are_none(text):
    with pytest.raises(InputError, match="--stow"):
        WebArchive(text)
