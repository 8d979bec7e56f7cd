"""Servers for tests, MONAI Label and Orthanc, and a client that needs only the standard library."""

import base64
import contextlib
import gzip
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from email import policy
from email.parser import BytesParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("MONAI_WSCXR_LABEL_PYTHON") or ROOT / ".venv-label" / "bin" / "python")
ORTHANC = shutil.which("Orthanc") or shutil.which("orthanc")

needs_label_environment = pytest.mark.skipif(
    not PYTHON.exists(), reason=f"no MONAI Label environment ({PYTHON}); `make label-setup` makes it"
)
needs_orthanc = pytest.mark.skipif(ORTHANC is None, reason="no Orthanc: apt-get install orthanc orthanc-dicomweb")


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def descendants(pid):
    """List the processes that a process has started, and those that they have started."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # has ended
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for parent in found:
        found += [child for child, its in parents.items() if its == parent]
    return found[1:]


@contextlib.contextmanager
def stopped(processes):
    """Stop processes during the block."""
    assert processes
    try:
        for process in processes:
            os.kill(process, signal.SIGSTOP)
        yield
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)


class Client:
    def __init__(self, port, password=None, process=None):
        self.process = process
        self.base = f"http://127.0.0.1:{port}"
        self.headers = {}
        if password:
            self.headers["Authorization"] = "Basic " + base64.b64encode(f"x:{password}".encode()).decode()

    def __call__(self, method, path, body=None, headers=None):
        """Send one request; return status, headers and body."""
        request = urllib.request.Request(self.base + path, body, {**self.headers, **(headers or {})}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                body = answer.read()
                if answer.headers["Content-Encoding"] == "gzip":  # an answer of the archive, passed on unchanged
                    body = gzip.decompress(body)
                return answer.status, answer.headers, body
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read()

    def headers_only(self, method, path, headers):
        """Send the head of a request and no body; return the status."""
        connection = http.client.HTTPConnection(self.base.partition("//")[2], timeout=30)
        with contextlib.closing(connection):
            connection.putrequest(method, path)
            for name, value in {**self.headers, **headers}.items():
                connection.putheader(name, value)
            connection.endheaders()
            return connection.getresponse().status

    def json(self, method, path, value=None):
        """Send a request that must succeed; return the body as JSON."""
        body = None if value is None else json.dumps(value).encode()
        status, _, answer = self(method, path, body, {"Content-Type": "application/json"} if body else None)
        assert status == 200, (method, path, status, answer[:500])
        return json.loads(answer)

    def form(self, method, path, fields=None, files=None):
        """Send a multipart form with fields by name and files as name -> (file name, bytes)."""
        return self(method, path, *self._form(fields, files))

    @staticmethod
    def _form(fields=None, files=None):
        """Encode a multipart form; return its body and headers."""
        mark = uuid.uuid4().hex
        parts = [
            f'--{mark}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
            for name, value in (fields or {}).items()
        ]
        for name, (file, data) in (files or {}).items():
            head = f'--{mark}\r\nContent-Disposition: form-data; name="{name}"; filename="{file}"\r\n\r\n'
            parts.append(head.encode() + data + b"\r\n")
        parts.append(f"--{mark}--\r\n".encode())
        return b"".join(parts), {"Content-Type": f"multipart/form-data; boundary={mark}"}

    @contextlib.contextmanager
    def sending(self, path, name, data):
        """Send the first half of an upload; yield a function that sends the rest and returns the status."""
        body, headers = self._form(files={"file": (name, data)})
        connection = http.client.HTTPConnection(self.base.partition("//")[2], timeout=120)
        with contextlib.closing(connection):
            connection.putrequest("POST", path)
            for key, value in {**self.headers, **headers, "Content-Length": str(len(body))}.items():
                connection.putheader(key, value)
            connection.endheaders()
            connection.send(body[: len(body) // 2])

            def finish():
                connection.send(body[len(body) // 2 :])
                return connection.getresponse().status

            yield finish

    def label(self, image_id, value):
        """Save an image-level label as MONAI Label's clients do."""
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        return self.form(
            "PUT", f"/datastore/label?image={image_id}&tag=final", {"params": "{}"}, {"label": ("a.json", data)}
        )

    def train(self, limit=120):
        """Start a training, wait for its end and return MONAI Label's record of it."""
        task = self.json("POST", "/train/wscxr", {})
        assert task["status"] in ("SUBMITTED", "RUNNING")
        end = time.monotonic() + limit
        while time.monotonic() < end:
            task = self.json("GET", "/train/")
            if task["status"] in ("DONE", "ERROR"):
                return task
            time.sleep(0.2)
        raise AssertionError(f"the training has not ended after {limit} s")


def multipart(headers, body):
    """Split a multipart answer into its parts: name -> (content type, bytes)."""
    text = b"Content-Type: " + headers["Content-Type"].encode() + b"\r\n\r\n" + body
    message = BytesParser(policy=policy.HTTP).parsebytes(text)
    return {
        part.get_param("name", header="content-disposition"): (part.get_content_type(), part.get_payload(decode=True))
        for part in message.iter_parts()
    }


@contextlib.contextmanager
def running(command, port, log, ready, environment=None, limit=400):
    """Run a server process during the block, which starts once the server answers at `ready`; its output goes to `log`."""
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}
        )
    try:
        end = time.monotonic() + limit
        while True:
            with contextlib.suppress(OSError):
                if Client(port)("GET", ready)[0] in (200, 401):
                    break
            if process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"the server has not started:\n{Path(log).read_text(errors='replace')[-3000:]}")
            time.sleep(0.2)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def label_server(studies, log, *options, environment=None, password=None):
    """Run this package's MONAI Label server in its own environment; yield a client."""
    port = free_port()
    command = [PYTHON, "-m", "monai_wscxr", "label", studies, "--monailabel", "--port", port, *options]
    environment = {
        "PYTHONPATH": str(ROOT),
        "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",
        "OMP_WAIT_POLICY": "PASSIVE",
        **(environment or {}),
    }
    with running([str(part) for part in command], port, log, "/info/", environment) as process:
        yield Client(port, password, process)


@contextlib.contextmanager
def page_server(studies, log, *options):
    """Run the labelling page without MONAI Label, in this environment; yield a client."""
    port = free_port()
    command = [sys.executable, "-m", "monai_wscxr", "label", studies, "--port", port, *options]
    environment = {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"}
    with running([str(part) for part in command], port, log, "/wscxr/", environment) as process:
        yield Client(port, None, process)


@contextlib.contextmanager
def orthanc(folder):
    """Run an Orthanc with DICOMweb on the loopback; yield its port."""
    port = free_port()
    configuration = {
        "Name": "test",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "index"),
        "HttpPort": port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomServerEnabled": False,
        "Plugins": ["/usr/share/orthanc/plugins/libOrthancDicomWeb.so"],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    with running([ORTHANC, str(folder / "orthanc.json")], port, folder / "orthanc.log", "/system"):
        yield port
