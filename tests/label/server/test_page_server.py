"""The labelling page without MONAI Label: in this environment, from the command line, on a folder and on an archive."""

import importlib.util
import json
import signal
import sys
import time

import pytest

from monai_wscxr.data.phantom import write_phantoms
from monai_wscxr.errors import InputError
from monai_wscxr.label.server.start import ServerOptions, create_server
from tests.helpers.serving import needs_orthanc, orthanc, page_server
from tests.label.archive.test_orthanc import ALLOW, dx_files, listed, stow

API = "/wscxr/api"
SMALL = ["--set", "image_size=96", "--set", "neighbourhood=3", "--set", "epochs=3", "--set", "device=cpu"]


@pytest.fixture(scope="module")
def phantoms_96(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "phantoms"
    write_phantoms(folder, 24, 1, 4, 2, size=96, progress=False)
    return folder


def until(client, path, done, limit=120):
    """Ask until an answer is as wanted; return it."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        found = client.json("GET", path)
        if done(found):
            return found
        time.sleep(0.2)
    raise AssertionError(f"{path} still answers {found}")


def label(client, image_id, **value):
    body = json.dumps(value).encode()
    return client("PUT", f"{API}/items/{image_id}/label", body, {"Content-Type": "application/json"})


def test_monai_label_is_not_here():
    assert importlib.util.find_spec("monailabel") is None


def test_a_whole_session_on_a_folder(phantoms_96, tmp_path):
    options = ["--normals", phantoms_96 / "train/normal", "--work", tmp_path / "work", *SMALL]
    with page_server(phantoms_96 / "test", tmp_path / "log", *options) as client:
        assert b"<title>" in client("GET", "/")[2]  # leads to the page
        assert (
            client("GET", "/openapi.json")[0] == client("GET", "/info/")[0] == client("POST", "/train/wscxr")[0] == 404
        )
        status = until(client, f"{API}/status", lambda found: found["scored"] == 12)
        assert status["model"]["sha256"]
        queue = client.json("GET", f"{API}/queue?strategy=most_suspicious&n=12")
        normal = next(entry["id"] for entry in queue if entry["name"].startswith("normal"))
        ill = next(entry["id"] for entry in queue if not entry["name"].startswith("normal"))
        assert label(client, ill, label=1)[0] == 200
        assert label(client, normal, label=0)[0] == 200
        assert label(client, "unknown", label=0)[0] == 404
        assert client("POST", f"{API}/train")[0] == 202
        done = until(client, f"{API}/train", lambda found: found["state"] in ("done", "failed"))
        assert done["state"] == "done"
        trained = client.json("GET", f"{API}/status")
        assert trained["model"]["sha256"] != status["model"]["sha256"]
        assert client("GET", f"{API}/items/{ill}/map.png")[2][:4] == b"\x89PNG"
        client.process.send_signal(signal.SIGINT)
        assert client.process.wait(30) in (0, 130)
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert (tmp_path / "work" / "model" / "artefact.json").is_file()  # works as --model of every command


@needs_orthanc
def test_labels_are_stored_in_an_archive_and_found_again(phantoms_96, tmp_path):
    with orthanc(tmp_path) as port:
        stow(port, dx_files())
        address = f"http://127.0.0.1:{port}/dicom-web"
        options = ["--normals", phantoms_96 / "train/normal", *SMALL, *ALLOW]
        with page_server(address, tmp_path / "log", "--work", tmp_path / "one", *options) as client:
            until(client, f"{API}/status", lambda found: found["scored"] == 3)
            image_id = client.json("GET", f"{API}/queue?strategy=most_suspicious")[0]["id"]
            assert label(client, image_id, label=1, **{"class": "Verschattung"})[0] == 200
        assert listed(port).count("SR") == 1
        with page_server(address, tmp_path / "log", "--work", tmp_path / "one", *options) as client:
            labelled = client.json("GET", f"{API}/queue?strategy=labelled")
            assert [(e["id"], e["label"], e["class"]) for e in labelled] == [(image_id, 1, "Verschattung")]


@pytest.mark.parametrize("missing", ["fastapi", "dicomweb_client"])
def test_a_missing_package_is_named(studies_folder, tmp_path, monkeypatch, missing):
    for name in [
        name
        for name in sys.modules
        if name.startswith(("monai_wscxr.label.page", "monai_wscxr.label.archive.dicomweb"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    studies = str(studies_folder) if missing == "fastapi" else "http://127.0.0.1:9"
    with pytest.raises(InputError, match=rf"not installed \({missing}\): pip install 'monai-wscxr\[label\]'"):
        create_server(ServerOptions(studies, work=str(tmp_path / "work")))
