"""What reaches the archive and what comes back. `requests` is in MONAI Label's environment, where `test_server` runs this."""

import base64
import http.server
import threading
from typing import ClassVar

import pytest

from monai_wscxr.errors import InputError
from monai_wscxr.label.server.proxy import ArchiveProxy

pytest.importorskip("requests")
pytest.importorskip("dicomweb_client")


class Archive(http.server.BaseHTTPRequestHandler):
    """Answers /dicom-web/studies, redirects /dicom-web/away to another address, and records every request."""

    seen: ClassVar[list] = []

    def do_GET(self):
        self.seen.append((self.server.server_port, self.path, self.headers["Authorization"]))
        if self.path.startswith("/dicom-web/away"):
            self.send_response(302)
            self.send_header("Location", f"http://127.0.0.1:{self.server.other}/stolen")
            self.end_headers()
            return
        self.send_response(200)
        for name, value in (("Content-Type", "application/json"), ("Set-Cookie", "a=b"), ("Content-Length", "2")):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"[]")

    def log_message(self, *_):
        pass


@pytest.fixture
def archive():
    """Address of an archive, and the requests that it and the address that it redirects to have got."""
    Archive.seen.clear()
    servers = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), Archive) for _ in range(2)]
    servers[0].other, servers[1].other = servers[1].server_port, servers[0].server_port
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{servers[0].server_port}/dicom-web", Archive.seen
    for server in servers:
        server.shutdown()
        server.server_close()


def test_the_password_of_the_archive_goes_to_the_archive_alone(archive):
    address, seen = archive
    port = int(address.split(":")[2].split("/")[0])
    proxy = ArchiveProxy(address + "/", ("user", "word"), {"wado": "rs"})
    answer = proxy.get("qido/studies")
    assert answer is not None
    assert (answer.status, b"".join(answer.content)) == (200, b"[]")
    assert {name.lower() for name in answer.headers} == {"content-type", "content-length"}
    login = "Basic " + base64.b64encode(b"user:word").decode()
    assert seen == [(port, "/dicom-web/studies", login)]
    assert proxy.get("away") is None
    assert proxy.get("qido/studies/1.2/metadata") is not None
    assert proxy.get("../patients") is None
    assert seen[1:] == [(port, "/dicom-web/away", login), (port, "/dicom-web/rs/studies/1.2/metadata", login)]
    assert ArchiveProxy("http://127.0.0.1:1/dicom-web").get("studies") is None


def test_the_client_of_the_archive_follows_no_redirect_either(archive, tmp_path, monkeypatch):
    from monai_wscxr.label.archive.dicomweb import DicomWebStudies

    address, seen = archive
    monkeypatch.setenv("MONAI_LABEL_DICOMWEB_USERNAME", "user")
    monkeypatch.setenv("MONAI_LABEL_DICOMWEB_PASSWORD", "word")
    with pytest.raises(InputError, match="does not answer as expected"):
        DicomWebStudies(address + "/away", tmp_path)
    assert {port for port, _, _ in seen} == {int(address.split(":")[2].split("/")[0])}
