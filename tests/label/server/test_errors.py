"""Full disks as answers of the server, and uploads that do not fit."""

import io
import shutil
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from monai_wscxr.label.server.errors import answer_errors
from monai_wscxr.label.server.uploads import Uploads
from monai_wscxr.system.atomic import DiskFullError, full_disk

RAISED = {
    "raw": OSError(28, "No space left on device", "/tmp/secret/place/file"),
    "without a path": OSError(28, "No space left on device"),
    "named": full_disk(Path("/tmp/secret/place"), 1, "/tmp/secret/place/map.png"),
    "quota": OSError(122, "Disk quota exceeded", "/tmp/secret/place/file"),
}


@pytest.fixture
def client():
    app = FastAPI()
    answer_errors(app)

    @app.get("/{name}")
    def fail(name: str):
        raise RAISED.get(name, OSError(5, "Input/output error", "/tmp/secret/place/file"))

    return TestClient(app, raise_server_exceptions=False)


@pytest.mark.parametrize("name", RAISED)
def test_a_full_disk_is_507_and_says_what_is_missing_without_a_path(client, name):
    answer = client.get(f"/{name}")
    assert (answer.status_code, answer.json()["reason"]) == (507, "disk_full")
    assert " missing" in answer.json()["message"]
    assert "/tmp" not in answer.text


def test_another_error_of_the_system_is_no_full_disk(client):
    assert client.get("/other").status_code == 500


def test_an_upload_that_does_not_fit_says_its_size_and_leaves_nothing(tmp_path, monkeypatch):
    uploads = Uploads(tmp_path / "uploads")

    def full(content, file):
        file.write(content.read(100))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 0}))
    said = r"the upload could not be written .* \(51 kB are needed, .* 54 kB are missing\)"
    with pytest.raises(DiskFullError, match=said), uploads.received(io.BytesIO(bytes(51_000))):
        pass
    assert list((tmp_path / "uploads").iterdir()) == []
