"""Mutated requests against the real label server: `python -m tests.fuzz.requests_fuzz --count 2000`.

The server runs in MONAI Label's environment on phantoms. Good requests of every kind are mutated in method, address, headers,
JSON, forms and uploads, and sent as raw bytes. None may be answered with 500, none may hang, and the server must answer good
requests afterwards, with no upload left behind. No process of the server may use more than twice the stated memory limit.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import random
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from tests.fuzz.fuzzing import PeakMemory

SECONDS = 60.0
"""Longest time that a request may take, with a training and other requests under way on a busy machine."""
CONNECTIONS = 3
OPTIONS = ("image_size=64", "neighbourhood=3", "epochs=1", "min_batches=2", "copies=0", "device=cpu")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get", "FOO", "M" * 300)
CALLS = (
    "/",
    "/info/",
    "/docs",
    "/openapi.json",
    "/favicon.ico",
    "/infer/wscxr",
    "/infer/wsi_v2/wscxr",
    "/train/",
    "/train/wscxr",
    "/scoring/",
    "/scoring/anomaly_score",
    "/activelearning/random",
    "/activelearning/most_suspicious",
    "/datastore/",
    "/datastore/image",
    "/datastore/image/info",
    "/datastore/label",
    "/datastore/label/info",
    "/datastore/updatelabelinfo",
    "/datastore/dataset",
    "/batch/infer/wscxr",
    "/session/",
    "/logs/",
    "/model/wscxr",
    "/proxy/dicom/qido/studies",
    "/ohif/",
    "/ohif/assets",
    "/static/ohif/index.html",
    "/static/",
    "/wscxr/",
    "/wscxr/page.js",
    "/wscxr/api/status",
    "/wscxr/api/queue",
    "/wscxr/api/items/ID",
    "/wscxr/api/items/ID/label",
    "/wscxr/api/items/ID/map.png",
    "/wscxr/api/items/ID/radiograph.png",
    "/wscxr/api/train",
    "/wscxr/api/changes",
    "/wscxr/api/scale.png",
)
QUERY = (
    "image",
    "id",
    "label",
    "tag",
    "output",
    "session_id",
    "check_sum",
    "run_sync",
    "all",
    "n",
    "offset",
    "strategy",
)
TEXTS = (
    "",
    "0",
    "-1",
    "9" * 400,
    "final",
    "original",
    "map",
    "json",
    "image",
    "dicom_seg",
    "true",
    "varied",
    "most_suspicious",
    "labelled",
    "nothing",
    "../../etc/passwd",
    "/etc/passwd",
    "..%2f..",
    "%",
    "%00",
    "%ff%fe",
    "%ed%a0%80",
    "\x00",
    "ä\u202e\u2028",
    "{}",
    "[1]",
    "x" * 5000,
    "SHA256:0",
    "sha3:0",
    "a:b:c",
)
HEADERS = (
    ("Host", "evil.example"),
    ("Host", ""),
    ("Host", "[::1"),
    ("Origin", "null"),
    ("Origin", "http://[::1"),
    ("Sec-Fetch-Site", "cross-site"),
    ("Sec-Fetch-Mode", "navigate"),
    ("Authorization", "Basic ***"),
    ("Authorization", "Bearer \xff"),
    ("Content-Type", "application/json"),
    ("Content-Type", "application/json; charset=utf-7"),
    ("Content-Type", "multipart/form-data"),
    ("Content-Type", "multipart/form-data; boundary="),
    ("Content-Type", "multipart/form-data; boundary=fuzz; charset=unicode_escape"),
    ("Content-Type", "multipart/form-data; boundary=fuzz; charset=idna"),
    ("Content-Type", "multipart/form-data; boundary=fuzz; charset=utf-7"),
    ("Content-Type", "application/x-www-form-urlencoded"),
    ("Content-Type", "\xff/\xff; ;;="),
    ("Content-Encoding", "gzip"),
    ("Expect", "100-continue"),
    ("Range", "bytes=0-"),
    ("Range", "bytes=9-1,-,x"),
    ("Range", "bytes=" + ",".join(f"{i}-{i}" for i in range(400))),
    ("If-None-Match", '"' * 50),
    ("If-Modified-Since", "yesterday"),
    ("Cookie", "a=b; " * 100),
    ("Upgrade", "websocket"),
    ("X-Long", "x" * 20000),
    ("Accept-Encoding", "\x01"),
    ("Access-Control-Request-Method", "PUT"),
)
VALUES = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    1.5,
    10**400,
    float("nan"),
    float("inf"),
    "",
    "x",
    "\ud800",
    "a\x00b",
    "\u202e",
    "x" * 3000,
    [],
    [1],
    {},
    {"a": {}},
    ["\ud800"],
    {"\udc00": 1},
    "normal",
    "effusion",
    "/etc/passwd",
    ".png",
    [".png"],
)
NAMES = (
    "image_label",
    "label",
    "class",
    "skipped",
    "result_extension",
    "save_label",
    "image",
    "model",
    "method",
    "strategy",
    "client_id",
    "label_tag",
    "params",
    "wscxr",
    "session",
    "user",
    "prediction",
)
GOOD = (
    ("GET", "/info/"),
    ("POST", "/infer/wscxr"),
    ("POST", "/infer/wscxr"),
    ("POST", "/infer/wscxr"),
    ("GET", "/train/"),
    ("POST", "/train/wscxr"),
    ("POST", "/scoring/anomaly_score"),
    ("POST", "/activelearning/random"),
    ("POST", "/activelearning/most_uncertain"),
    ("GET", "/datastore/"),
    ("PUT", "/datastore/image"),
    ("GET", "/datastore/image"),
    ("HEAD", "/datastore/image"),
    ("GET", "/datastore/image/info"),
    ("PUT", "/datastore/image/info"),
    ("PUT", "/datastore/label"),
    ("PUT", "/datastore/label"),
    ("GET", "/datastore/label"),
    ("DELETE", "/datastore/label"),
    ("GET", "/datastore/label/info"),
    ("PUT", "/datastore/label/info"),
    ("GET", "/ohif/"),
    ("GET", "/wscxr/api/queue"),
    ("PUT", "/wscxr/api/items/ID/label"),
    ("PUT", "/wscxr/api/items/ID/label"),
    ("GET", "/wscxr/api/items/ID/map.png"),
    ("GET", "/wscxr/api/items/ID/radiograph.png"),
    ("POST", "/wscxr/api/train"),
)
FILES = (
    "x.png",
    "x.jpg",
    "x.nii.gz",
    "x.dcm",
    "x.bin",
    "",
    ".",
    "..",
    "../x",
    "/etc/x",
    "a." + "x" * 300,
    "\x00",
    '"',
    "ä",
)


@dataclass
class Tally:
    """What became of the requests; `peak` is the largest memory of one process of the server, in bytes."""

    sent: int = 0
    answers: collections.Counter[str] = field(default_factory=collections.Counter)
    problems: list[str] = field(default_factory=list)
    slowest: float = 0.0
    slowest_status: float = 0.0
    peak: int = 0
    seconds: float = 0.0


class Mutator:
    """Makes requests as raw bytes.

    Args:
        seed: of the choices.
        port: of the server.
        ids: ids of images.
        picture: a good radiograph.
    """

    def __init__(self, seed: int, port: int, ids: list[str], picture: bytes) -> None:
        self.draw, self.port, self.ids, self.picture = random.Random(seed), port, ids, picture

    def request(self) -> tuple[bytes, bool]:
        """Make one request; return it, and whether its form is that of HTTP."""
        pick, good = self.draw.choice, True
        method, path = pick(GOOD) if self.draw.random() < 0.7 else (pick(METHODS), pick(CALLS))
        body, kind = self._body(method, path)
        headers = [("Host", f"127.0.0.1:{self.port}"), ("Connection", "close")]
        if kind:
            headers.append(("Content-Type", kind))
        if self.draw.random() < 0.25:
            name, value = pick(HEADERS)
            headers = [(n, v) for n, v in headers if n != name] + [(name, value)]
        if self.draw.random() < 0.1:
            headers.append(("Transfer-Encoding", "chunked"))
            body = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (body[:7], body[7:]) if p) + b"0\r\n\r\n"
        else:
            good = self.draw.random() < 0.97
            headers.append(("Content-Length", str(len(body)) if good else pick(("-1", "x", "1_0", "9" * 30, "0"))))
        head = (
            f"{method} {self._target(path)} HTTP/{'1.1' if self.draw.random() < 0.97 else pick(('1.0', '9.9', ''))}\r\n"
        )
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        whole = (head + lines + "\r\n").encode("latin-1", "replace") + body
        if self.draw.random() < 0.05:
            return self._bytes_changed(whole), False
        return whole, good

    def _target(self, path: str) -> str:
        pick = self.draw.choice
        path = path.replace("ID", pick(self.ids) if self.draw.random() < 0.8 else pick(("nothing", "%2e%2e", "\xff")))
        if self.draw.random() < 0.1:
            at = self.draw.randrange(len(path) + 1)
            path = (
                path[:at]
                + pick(("/", "//", "..", "%2e%2e", "%252e", "%", "%00", "%ff", "\\", ";", "é", "?", "#", "~"))
                + path[at:]
            )
        if self.draw.random() < 0.03:
            path = pick(("*", "http://evil.example/", "", "//evil.example", "/" + "x" * 9000, "/" + "a/" * 2000))
        query = [("image", pick(self.ids)), ("label", pick(self.ids)), ("id", pick(self.ids)), ("tag", "final")]
        query = query if self.draw.random() < 0.8 else []
        if self.draw.random() < 0.5:
            query += [(pick(QUERY), pick([*TEXTS, *self.ids])) for _ in range(self.draw.randrange(3))]
            self.draw.shuffle(query)
        if "queue" in path:
            query.append(("strategy", pick(("random", "labelled", "x"))))
        text = "&".join(f"{name}={quote(value) if self.draw.random() < 0.8 else value}" for name, value in query)
        return path + ("?" + text if text else "")

    def _value(self, depth: int = 0) -> Any:
        if depth < 3 and self.draw.random() < 0.3:
            return {self.draw.choice(NAMES): self._value(depth + 1) for _ in range(self.draw.randrange(4))}
        return self.draw.choice(VALUES)

    def _json(self) -> bytes:
        chance = self.draw.random()
        if chance < 0.15:
            deep = self.draw.choice((20, 900, 5000, 100_000))
            left, right = self.draw.choice((("[", "]"), ('{"a":', "}")))
            return (left * deep + "1" + right * deep).encode()
        if chance < 0.3:
            good: dict[str, Any] = {"label": 1, "class": "effusion", "skipped": False}
            good[self.draw.choice(list(good))] = self._value()
            return json.dumps(good).encode()
        value: Any = {self.draw.choice(NAMES): self._value() for _ in range(self.draw.randrange(5))}
        text = json.dumps(value if self.draw.random() < 0.8 else self._value()).encode()
        return self._bytes_changed(text) if self.draw.random() < 0.2 else text

    def _bytes_changed(self, data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(self.draw.randint(1, 8)):
            if changed:
                changed[self.draw.randrange(len(changed))] = self.draw.randrange(256)
        return bytes(changed)

    def _upload(self) -> bytes:
        chance = self.draw.random()
        if chance < 0.3:
            return self._json()
        if chance < 0.5:
            return self.picture
        if chance < 0.7:
            return self._bytes_changed(self.picture)
        if chance < 0.8:
            return self.picture[: self.draw.randrange(len(self.picture))]
        return self.draw.choice(
            (b"", b"\x89PNG\r\n\x1a\n", bytes(128) + b"DICM" + bytes(99), b"\x1f\x8b\x08" + bytes(50), b"x" * 9999)
        )

    def _body(self, method: str, path: str) -> tuple[bytes, str]:
        chance = self.draw.random()
        form = path.startswith(("/infer", "/datastore"))
        if chance < (0.9 if method in ("GET", "HEAD") else 0.15):
            return b"", ""
        if chance < 0.25 if form else chance < 0.9:
            return self._json(), "application/json"
        if chance < 0.3:
            return self._bytes_changed(self._json()), "application/x-www-form-urlencoded"
        parts = []
        names = ("file", "params", "label", "info", "file", "wsi", "x")
        for name in names[: self.draw.randint(1, 4)] if self.draw.random() < 0.7 else self.draw.sample(names, 3):
            if name in ("file", "label"):
                file = self.draw.choice(FILES)
                part = (
                    f'Content-Disposition: form-data; name="{name}"; filename="{file}"\r\n\r\n'.encode()
                    + self._upload()
                )
            else:
                part = f'Content-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + self._json()
            parts.append(b"--fuzz\r\n" + part + b"\r\n")
        body = b"".join(parts) + b"--fuzz--\r\n"
        return (body if self.draw.random() < 0.9 else self._bytes_changed(body)), "multipart/form-data; boundary=fuzz"


def exchange(port: int, request: bytes, whole: bool) -> str:
    """Send a request; return the status of the answer, "closed" without an answer, or "hang".

    Args:
        port: of the server.
        request: the bytes.
        whole: whether the request is well-formed, so that the server knows its end without the end of the connection.
    """
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as link:
            with contextlib.suppress(OSError):  # the server may answer before it has read everything
                link.sendall(request)
                if not whole:
                    link.shutdown(socket.SHUT_WR)
            answer = b""
            with contextlib.suppress(ConnectionError):
                while block := link.recv(1 << 16):
                    answer += block
    except TimeoutError:
        return "hang"
    except OSError as error:
        return type(error).__name__
    while answer.startswith(b"HTTP/1.1 100 "):
        answer = answer.partition(b"\r\n\r\n")[2]
    parts = answer.split(b" ", 2)
    return parts[1].decode("latin-1") if len(parts) > 2 else "closed"


def fuzz(count: int, seed: int, work: Path, progress: Callable[[str], None]) -> Tally:
    """Start a server in `work`, send it `count` mutated requests, and check it."""
    from monai_wscxr.data.phantom import write_phantoms
    from monai_wscxr.data.radiograph.base import MEMORY_LIMIT
    from tests.helpers.serving import label_server

    began, tally = time.monotonic(), Tally()
    write_phantoms(work / "data", 12, 1, 4, 1, size=64, progress=False)
    (work / "studies").mkdir()
    for path in (work / "data" / "test").rglob("*.png"):
        if "masks" not in path.parts:
            shutil.copy(path, work / "studies" / f"{path.parent.name}-{path.name}")
    buffer = io.BytesIO()
    Image.open(next((work / "studies").iterdir())).save(buffer, "PNG")
    options = ["--normals", work / "data/train/normal", "--max_upload", "1"]
    options += [part for option in OPTIONS for part in ("--set", option)]
    environment = {"MONAI_WSCXR_CACHE": str(work / "cache")}
    server = label_server(work / "studies", work / "log", *options, environment=environment)
    with PeakMemory() as memory, server as client:
        client.json("POST", "/scoring/anomaly_score?run_sync=true")
        ids = list(client.json("GET", "/datastore/?output=all")["objects"])
        port = int(client.base.rpartition(":")[2])
        mutator = Mutator(seed, port, ids, buffer.getvalue())
        requests = [mutator.request() for _ in range(count)]

        def timed(request: tuple[bytes, bool]) -> tuple[bytes, str, float]:
            start = time.monotonic()
            return request[0], exchange(port, *request), time.monotonic() - start

        with ThreadPoolExecutor(CONNECTIONS) as senders:
            for number, (request, status, seconds) in enumerate(senders.map(timed, requests), 1):
                tally.sent, tally.slowest = number, max(tally.slowest, seconds)
                tally.answers[status] += 1
                if status == "hang" or (status.startswith("5") and status not in ("501", "503")):
                    tally.problems.append(f"{status} after {seconds:.1f} s: {request[:600]!r}")
                if number % 50 == 0:
                    start = time.monotonic()
                    client.json("GET", "/wscxr/api/status")
                    tally.slowest_status = max(tally.slowest_status, time.monotonic() - start)
                if number % 500 == 0:
                    progress(f"{number} requests, {len(tally.problems)} problems")
        _check(client, work, tally)
    tally.peak = memory.largest
    if tally.peak > 2 * MEMORY_LIMIT:
        tally.problems.append(f"a process used {tally.peak} bytes; the stated limit is {MEMORY_LIMIT}")
    tally.seconds = time.monotonic() - began
    return tally


def _check(client: Any, work: Path, tally: Tally) -> None:
    """Check that good requests are answered, and that nothing of the mutated ones is left."""
    end = time.monotonic() + SECONDS
    while client.json("GET", "/wscxr/api/train")["state"] == "running" and time.monotonic() < end:
        time.sleep(0.2)
    for address in ("/info/", "/datastore/", "/datastore/?output=all", "/datastore/?output=train", "/wscxr/api/status"):
        status, _, body = client("GET", address)
        if status != 200:
            tally.problems.append(f"at the end {address} answers {status}: {body[:300]!r}")
    for address in ("/train/", "/scoring/"):
        status, _, body = client("GET", address)
        if status not in (200, 404):
            tally.problems.append(f"at the end {address} answers {status}: {body[:300]!r}")
    for image_id in client.json("GET", "/datastore/?output=all")["objects"]:
        status, _, body = client("GET", f"/datastore/image/info?image={image_id}")
        if status != 200:
            tally.problems.append(f"at the end the notes on an image answer {status}: {body[:300]!r}")
    left = [path.name for path in (work / "studies/.wscxr/uploads").iterdir()]
    if left:
        tally.problems.append(f"uploads are left: {left[:5]}")


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="work in this folder and leave it")
    given = parser.parse_args()
    work = given.keep or Path(tempfile.mkdtemp(prefix="monai_wscxr-requests-"))
    work.mkdir(parents=True, exist_ok=True)
    try:
        tally = fuzz(given.count, given.seed, work, lambda line: print(line, flush=True))
    finally:
        if given.keep is None:
            shutil.rmtree(work, ignore_errors=True)
    print(f"{tally.sent} requests in {tally.seconds:.0f} s; answers: {dict(sorted(tally.answers.items()))}")
    print(
        f"slowest answer {tally.slowest:.1f} s, slowest status {tally.slowest_status:.2f} s, "
        f"at most {tally.peak / 2**20:.0f} MiB for one process beyond its start"
    )
    for problem in tally.problems:
        print(f"PROBLEM {problem}")
    print(f"{len(tally.problems)} problems")
    return 1 if tally.problems else 0


if __name__ == "__main__":
    sys.exit(main())
