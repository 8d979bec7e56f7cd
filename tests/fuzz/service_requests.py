"""Hostile requests and overload for the HTTP service: `python -m tests.fuzz.service_requests --count 5000`.

`monai-wscxr serve` runs on a small model. Good requests with phantoms (PNG and DICOM) are mutated in method, address,
headers, JSON and images, and sent as raw bytes; none may be answered with 500 or hang. Then many callers send good images at
the same time, more than there are places: each must get a score or 503 with Retry-After, and whoever comes again gets a score.
At the end no file and no place may be taken, and the memory must stay below its limit.
"""

from __future__ import annotations

import argparse
import base64
import collections
import io
import json
import random
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image

from monai_wscxr.data.radiograph.base import MEMORY_LIMIT
from tests.fuzz.fuzzing import PeakMemory
from tests.fuzz.node_kills import train
from tests.fuzz.requests_fuzz import HEADERS, METHODS, TEXTS, Mutator, exchange
from tests.helpers.dicom_peers import dx, phantom_levels
from tests.helpers.serving import ROOT, Client, free_port, running

CONNECTIONS = 4
PATHS = (
    "/predict",
    "/predict",
    "/predict/list",
    "/map",
    "/model",
    "/health",
    "/metrics",
    "/openapi.json",
    "/",
    "/docs",
)
QUERIES = (
    "",
    "",
    "?map=png",
    "?map=npy",
    "?format=npy",
    "?map=",
    "?format=gif",
    "?map=png&map=npy",
    "?x=1",
    "?%00",
    "?\xff",
)


class Requests(Mutator):
    """Requests of the service, mutated.

    Args:
        seed: of the choices.
        port: of the service.
        pictures: good images.
    """

    def __init__(self, seed: int, port: int, pictures: list[bytes]) -> None:
        super().__init__(seed, port, ["0"], pictures[0])
        self.pictures = pictures

    def request(self) -> tuple[bytes, bool]:
        """Make one request; return it, and whether its form is that of HTTP."""
        draw, good = self.draw, True
        self.picture = draw.choice(self.pictures)
        path = draw.choice(PATHS)
        posts = path in PATHS[:4]
        method = draw.choice(METHODS) if draw.random() < 0.1 else "POST" if posts else "GET"
        body = b"" if not posts else self._list() if path == "/predict/list" else self._upload()
        if draw.random() < 0.1:
            path = draw.choice(
                (path + "/", "//" + path, path + "%2f..", "/..%2fetc/passwd", "*", "/" + "a/" * 2000, "\xff")
            )
        target = path + (
            draw.choice(QUERIES) if draw.random() < 0.9 else "?map=" + draw.choice(TEXTS).replace("\x00", "%00")
        )
        headers = [("Host", f"127.0.0.1:{self.port}"), ("Connection", "close")]
        if draw.random() < 0.25:
            name, value = draw.choice(HEADERS)
            headers = [(n, v) for n, v in headers if n != name] + [(name, value)]
        if draw.random() < 0.1:
            headers.append(("Transfer-Encoding", "chunked"))
            body = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (body[:7], body[7:]) if p) + b"0\r\n\r\n"
        else:
            good = draw.random() < 0.97
            length = str(len(body)) if good else draw.choice(("-1", "x", "1_0", "9" * 30, "0", "+1", "\xb2"))
            headers.append(("Content-Length", length))
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        version = "1.1" if draw.random() < 0.97 else draw.choice(("1.0", "9.9", ""))
        whole = f"{method} {target} HTTP/{version}\r\n{lines}\r\n".encode("latin-1", "replace") + body
        return (self._bytes_changed(whole), False) if draw.random() < 0.05 else (whole, good)

    def _list(self) -> bytes:
        if self.draw.random() < 0.4:
            return self._json()
        images = [base64.b64encode(self._upload()).decode() for _ in range(self.draw.randrange(6))]
        text = json.dumps({"images": images}).encode()
        return self._bytes_changed(text) if self.draw.random() < 0.3 else text


def overload(
    client: Client, picture: bytes, callers: int, seconds: float
) -> tuple[collections.Counter[str], list[float]]:
    """Let callers send good images for some seconds, and wait as they are told; return answers and times of scores."""
    answers: collections.Counter[str] = collections.Counter()
    times: list[float] = []
    until = time.monotonic() + seconds
    lock = threading.Lock()

    def call(_: int) -> None:
        while time.monotonic() < until:
            began = time.monotonic()
            status, headers, _ = client("POST", "/predict", picture, {"Content-Type": "application/octet-stream"})
            with lock:
                answers[str(status) if status != 503 or headers["Retry-After"] else "503 without Retry-After"] += 1
                if status == 200:
                    times.append(time.monotonic() - began)
            if status == 503:
                time.sleep(random.uniform(0.5, 1) * int(headers["Retry-After"] or 1))

    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(call, range(callers)))
    return answers, times


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=30.0, help="of overload")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="monai_wscxr-service-") as name:
        work = Path(name)
        model = train(work)
        levels = phantom_levels(work / "phantoms", 4, size=128)
        pictures = []
        for values in levels[:2]:
            file, scan = io.BytesIO(), io.BytesIO()
            Image.fromarray(values).save(file, "PNG")
            dx(values).save_as(scan, enforce_file_format=True)
            pictures += [file.getvalue(), scan.getvalue()]
        port = free_port()
        temporary = work / "tmp"
        temporary.mkdir()
        command = [sys.executable, "-m", "monai_wscxr", "serve", "--model", str(model), "--port", str(port)]
        command += ["--max_upload", "1", "--places", "16", "--device", "cpu"]
        environment = {"PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
        with PeakMemory() as memory, running(command, port, work / "log", "/health", environment):
            client = Client(port)
            mutator = Requests(given.seed, port, pictures)
            requests = [mutator.request() for _ in range(given.count)]

            def timed(request: tuple[bytes, bool]) -> tuple[bytes, str, float]:
                start = time.monotonic()
                return request[0], exchange(port, *request), time.monotonic() - start

            began, slowest = time.monotonic(), 0.0
            answers: collections.Counter[str] = collections.Counter()
            with ThreadPoolExecutor(CONNECTIONS) as senders:
                for request, status, seconds in senders.map(timed, requests):
                    slowest = max(slowest, seconds)
                    answers[status] += 1
                    if status == "hang" or (status.startswith("5") and status not in ("501", "503")):
                        problems.append(f"{status} after {seconds:.1f} s: {request[:400]!r}")
            print(
                f"{given.count} requests in {time.monotonic() - began:.0f} s, slowest {slowest:.1f} s: {dict(answers)}",
                flush=True,
            )
            answers, times = overload(client, pictures[0], given.callers, given.seconds)
            times.sort()
            p50, p95 = (times[int(share * (len(times) - 1))] for share in (0.5, 0.95))
            print(
                f"overload by {given.callers} callers for {given.seconds:.0f} s: {dict(answers)}; "
                f"{len(times) / given.seconds:.1f} scores/s, p50 {p50:.2f} s, p95 {p95:.2f} s"
            )
            problems += [f"overload: {status}" for status in answers if status not in ("200", "503")]
            end = time.monotonic() + 30
            while "under_way 0\n" not in (text := client("GET", "/metrics")[2].decode()) and time.monotonic() < end:
                time.sleep(0.2)
            if "under_way 0\n" not in text:
                problems.append("places are taken at the end")
            left = [path for folder in temporary.glob("monai_wscxr-serve-*") for path in folder.iterdir()]
            problems += [f"{len(left)} files are left"] if left else []
            if client("POST", "/predict", pictures[1])[0] != 200:
                problems.append("a good request is not answered at the end")
        print(f"at most {memory.largest / 2**20:.0f} MiB for one process beyond its start")
        if memory.largest > 2 * MEMORY_LIMIT:
            problems.append("a process used too much memory")
        traces = [line for line in (work / "log").read_text(errors="replace").splitlines() if "Traceback" in line]
        problems += [f"{len(traces)} stack traces in the log"] if traces else []
    for problem in problems:
        print(f"PROBLEM {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
