"""The node killed in the middle of its work: every acknowledged image has one set of results in the archive."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers.dicom_peers import archive, associate, dx, phantom_levels
from tests.helpers.serving import ROOT, free_port


@pytest.fixture
def start(make_model, tmp_path):
    """Starts the node on the same folder, again and again."""
    make_model(tmp_path / "model")
    port, started = free_port(), []

    def run(archive_port):
        command = [
            sys.executable,
            "-m",
            "monai_wscxr",
            "node",
            "--model",
            tmp_path / "model",
            "--folder",
            tmp_path / "queue",
        ]
        command += ["--archive", f"ARCHIVE@127.0.0.1:{archive_port}", "--port", port, "--status_port", free_port()]
        command += ["--reserve", 0, "--device", "cpu", "--workers", 1]
        with open(tmp_path / "log", "ab") as log:
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            started.append(subprocess.Popen([str(word) for word in command], stdout=log, stderr=log, env=environment))
        return started[-1], port

    yield run
    for process in started:
        process.kill()
        process.wait()


def send_until_acknowledged(port, image):
    """Send an image until the node says that it has it."""
    end = time.monotonic() + 90
    while time.monotonic() < end:
        association = associate(port)
        if association.is_established:
            status = association.send_c_store(image).get("Status")
            association.release() if association.is_established else None
            if status == 0x0000:
                return
        time.sleep(0.1)
    raise AssertionError("the node does not answer")


def test_nothing_acknowledged_is_lost_and_nothing_is_twice(start, tmp_path):
    images = [dx(levels) for levels in phantom_levels(tmp_path / "phantoms", 8)]
    with archive() as found:
        for kill in range(2):
            process, port = start(found.port)
            for image in images[4 * kill : 4 * kill + 4]:
                send_until_acknowledged(port, image)
            time.sleep(0.4 * kill)
            process.send_signal(signal.SIGKILL)  # they are read, scored, written or sent
            process.wait()
        process, port = start(found.port)
        end = time.monotonic() + 90
        while len(found.stored) < 32 and time.monotonic() < end:
            time.sleep(0.05)
        send_until_acknowledged(port, images[0])
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        kinds = {}
        for ds in found.stored.values():
            kinds.setdefault(ds.StudyInstanceUID, []).append(ds.Modality)
        assert {uid: sorted(each) for uid, each in kinds.items()} == {
            image.StudyInstanceUID: ["OT", "SEG", "SEG", "SR"] for image in images
        }
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert not any(str(image.SOPInstanceUID) in log or image.PatientID in log for image in images)
