"""The whole node: images in, results out, reasons where there are none, and what it says about itself."""

import json
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import Future

import numpy as np
import pytest
from pydicom.uid import ComprehensiveSRStorage

from monai_wscxr.commands.main import create_parser
from monai_wscxr.errors import InputError
from monai_wscxr.node import scoring
from monai_wscxr.node.run import Node, NodeOptions
from tests.helpers.dicom_peers import PATIENT, archive, dx, send


class Running:
    """A node in this process, and its archive."""

    def __init__(self, node, found):
        self.node, self.archive = node, found
        self.thread = threading.Thread(target=node.run)
        self.thread.start()

    def until(self, seconds=60, **states):
        end = time.monotonic() + seconds
        while time.monotonic() < end and not all(
            self.node.queue.states()[state] == count for state, count in states.items()
        ):
            assert self.thread.is_alive()
            time.sleep(0.02)
        assert {state: self.node.queue.states()[state] for state in states} == states

    def get(self, path, **headers):
        request = urllib.request.Request(f"http://127.0.0.1:{self.node.status.port}{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.read().decode()

    def stop(self):
        self.node.stop()
        self.thread.join(30)
        assert not self.thread.is_alive()


def options(model, folder, port, **more):
    return NodeOptions(
        str(model),
        str(folder),
        archive=f"ARCHIVE@127.0.0.1:{port}",
        port=0,
        status_port=0,
        reserve=0,
        device="cpu",
        **more,
    )


@pytest.fixture(scope="module")
def running(model, tmp_path_factory):
    with archive() as found:
        one = Running(Node(options(model, tmp_path_factory.mktemp("node") / "queue", found.port)), found)
        yield one
        one.stop()


def test_results_of_an_image_are_those_of_predict(running, model, levels, tmp_path):
    image = dx(levels[0])
    assert send(running.node.receiver.port, image) == [0]
    running.until(done=1, ready=0, received=0)
    found = [ds for ds in running.archive.stored.values() if ds.StudyInstanceUID == image.StudyInstanceUID]
    assert sorted(ds.Modality for ds in found) == ["OT", "SEG", "SEG", "SR"]
    assert all(ds.PatientID == PATIENT["PatientID"] for ds in found)

    from monai_wscxr.prediction import Options, predict

    image.save_as(tmp_path / "image.dcm")
    predict(
        Options(
            model=str(model),
            paths=(str(tmp_path / "image.dcm"),),
            output=str(tmp_path / "out"),
            dicom=True,
            workers=0,
            device="cpu",
            maps="none",
            overlays=False,
            report=False,
            progress=False,
        )
    )
    import pydicom

    wanted = {ds.SOPInstanceUID: ds for ds in map(pydicom.dcmread, (tmp_path / "out" / "dicom").glob("*.dcm"))}
    assert wanted.keys() == {ds.SOPInstanceUID for ds in found}
    for ds in found:
        if "PixelData" in ds:
            assert ds.PixelData == wanted[ds.SOPInstanceUID].PixelData
        else:
            assert ds.ContentSequence == wanted[ds.SOPInstanceUID].ContentSequence


def test_an_image_without_a_score_gets_a_report_with_the_reason(running, levels, tmp_path):
    before = len(running.archive.stored)
    done = running.node.queue.states()["done"]
    lateral, flat = dx(levels[1], ViewPosition="LL"), dx(np.full((64, 64), 7))
    half = dx(levels[2])
    half.PixelData = half.PixelData[:1000]
    assert send(running.node.receiver.port, lateral, flat, half, lateral) == [0, 0, 0, 0]
    running.until(done=done + 3, ready=0, received=0)
    reports = list(running.archive.stored.values())[before:]
    assert [ds.SOPClassUID for ds in reports] == [ComprehensiveSRStorage] * 3
    found = {ds.StudyInstanceUID: str(ds) for ds in reports}
    for image, words in ((lateral, "Lateral view"), (flat, "No contrast"), (half, "Unreadable")):
        assert words in found[image.StudyInstanceUID]
        assert "Not analysed" in found[image.StudyInstanceUID]
        assert str(image.SOPInstanceUID) in found[image.StudyInstanceUID]
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed")
    reports[0].save_as(tmp_path / "reason.dcm", enforce_file_format=True)
    checked = subprocess.run(["dciodvfy", tmp_path / "reason.dcm"], capture_output=True, text=True)
    assert [line for line in (checked.stdout + checked.stderr).splitlines() if line.startswith("Error")] == []


def test_an_image_whose_identity_cannot_be_copied_has_failed_with_a_reason(running, levels):
    failed = running.node.queue.states()["failed"]
    assert send(running.node.receiver.port, dx(levels[3], AccessionNumber="12345678901234567")) == [0]
    running.until(failed=failed + 1)
    error = running.node.queue.errors(1)[0]
    assert error["reason"] == "identity_too_long"
    assert "12345678901234567" not in error["message"]


def test_the_status_in_all_its_forms(running, levels):
    assert send(running.node.receiver.port, dx(levels[4])) == [0]
    running.until(received=0, ready=0)
    found = json.loads(running.get("/status.json"))
    assert found["queue"]["done"] >= 1
    assert found["latency"]["p95"] > 0
    assert found["drift"]["images"] >= 1
    page, metrics = running.get("/"), running.get("/metrics")
    assert "images done" in page
    assert 'monai_wscxr_images{state="done"}' in metrics
    assert json.loads(running.get("/health")) == {"status": "ok"}
    everything = json.dumps(found) + page + metrics
    assert not any(value in everything for value in (*PATIENT.values(), "2.25.", "1.2.826."))
    for line in metrics.splitlines():
        assert line.startswith("#") or len(line.rsplit(" ", 1)) == 2
    for path, headers, status in (("/x", {}, 404), ("/", {"Host": "evil.example"}, 421), ("/../etc", {}, 404)):
        with pytest.raises(urllib.error.HTTPError) as error:
            running.get(path, **headers)
        assert error.value.code == status


def test_a_stopped_node_keeps_what_waits_and_the_next_one_sends_it(model, levels, tmp_path):
    images = [dx(values) for values in levels[:4]]
    with archive() as found:
        port = found.port
    one = Running(Node(options(model, tmp_path / "queue", port)), None)
    assert send(one.node.receiver.port, *images) == [0] * 4
    one.until(ready=4)
    one.stop()
    with archive(port) as found:
        two = Running(Node(options(model, tmp_path / "queue", port)), found)
        two.until(done=4)
        assert send(two.node.receiver.port, *images) == [0] * 4
        two.stop()
        assert (len(found.stored), found.repeats) == (16, 0)


def test_an_image_that_ends_the_process_again_and_again_is_given_up(model, levels, tmp_path, monkeypatch):
    with archive() as found:
        node = Node(options(model, tmp_path / "queue", found.port))
        for number, values in enumerate(levels[:3]):
            file = node.queue.incoming / "x"
            dx(values).save_as(file)
            node.queue.receive(f"1.{number}", file, str(number))
        second = node.queue.to_score(3)[1]
        for _ in range(scoring.MOST_TRIES):
            node.queue.trying([second])
        assert [entry[0].id for entry in node.scoring._begin([])] != []
        one = Running(node, found)
        one.until(done=2, failed=1)
        one.stop()


def test_a_full_disk_under_the_results_delays_them(model, levels, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "_DISK_SECONDS", 0.2)
    with archive() as found:
        node = Node(options(model, tmp_path / "queue", found.port))
        submit, failures = node.scorer.submit, [OSError(28, "full"), OSError(28, "full")]

        def fail_twice(*arguments, **more):
            if failures:
                future = Future()
                future.set_exception(failures.pop())
                return future
            return submit(*arguments, **more)

        monkeypatch.setattr(node.scorer, "submit", fail_twice)
        one = Running(node, found)
        assert send(node.receiver.port, dx(levels[0])) == [0]
        one.until(done=1)
        assert [error["reason"] for error in node.queue.errors(9)] == ["disk_full"] * 2
        assert node.queue.rows(1)[0]["tries"] == 1
        one.stop()


def test_an_unexpected_error_ends_the_node_so_that_it_is_started_again(model, levels, tmp_path, monkeypatch):
    with archive() as found:
        node = Node(options(model, tmp_path / "queue", found.port))
        monkeypatch.setattr(node.scorer, "score", lambda *arguments: 1 / 0)
        ended = []

        def run():
            try:
                node.run()
            except ZeroDivisionError as error:
                ended.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        assert send(node.receiver.port, dx(levels[0])) == [0]
        thread.join(30)
        assert not thread.is_alive()
        assert ended


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"archive": None}, "--archive TITLE@HOST:PORT or --stow"),
        ({"stow": "http://127.0.0.1/dicom-web"}, "either"),
        ({"archive": "A@10.0.0.1:104"}, "in the clear"),
        ({"archive": None, "stow": "http://pacs.example/dicom-web"}, "in the clear"),
        ({"archive": None, "stow": "http://127.0.0.1/x", "commit": True}, "--commit"),
        ({"host": "0.0.0.0"}, "--certificate and --key"),
        ({"host": "0.0.0.0", "without_tls": True}, "--accept"),
        ({"certificate": "x.pem"}, "belong together"),
        ({"certificate": "x.pem", "key": "y.pem"}, "cannot be used"),
        ({"title": "LONGER THAN SIXTEEN"}, "--title"),
        ({"accept": ("A@nowhere",)}, "--accept"),
        ({"workers": 0}, "--workers"),
        ({"queue": 0}, "--queue"),
        ({"port": 99999}, "--port"),
        ({"allow": ("everything",)}, "--allow"),
        ({"reserve": -1}, "--reserve"),
    ],
)
def test_options_that_cannot_be_used(model, tmp_path, change, message):
    import dataclasses

    with pytest.raises(InputError, match=message):
        Node(dataclasses.replace(options(model, tmp_path / "queue", 104), **change))
    assert not (tmp_path / "queue" / "queue.sqlite").exists()


def test_the_command_has_the_options_of_the_node():
    given = create_parser().parse_args(["node", "--model", "m", "--folder", "f", "--archive", "A@127.0.0.1:104"])
    chosen = {name: value for name, value in vars(given).items() if name in NodeOptions.__dataclass_fields__}
    assert chosen.keys() == NodeOptions.__dataclass_fields__.keys()
    defaults = NodeOptions("m", "f", archive="A@127.0.0.1:104")
    assert NodeOptions(**{**chosen, "accept": tuple(chosen["accept"]), "allow": tuple(chosen["allow"])}) == defaults
