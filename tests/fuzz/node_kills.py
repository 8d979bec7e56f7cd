"""Kills the DICOM node while an Orthanc sends it radiographs, and counts what is in the archive at the end.

    python -m tests.fuzz.node_kills --images 200 --kills 10 --stops 2

A small model is trained on phantoms. Radiographs made from pydicom-data's RG1 and from phantoms, some of which cannot be
scored, are predicted by `predict` (the bare pipeline), then stored in an Orthanc that sends each of them to the node
(`docs/examples/orthanc`). First nothing is disturbed, for throughput and latency. Then everything begins anew, the node is
killed (SIGKILL) and started again, and the archive is stopped and started. Ends with status 1 unless every radiograph has
exactly one set of results, or one report that says why it has none, and every result passes dciodvfy. Needs Orthanc.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pydicom
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from tests.helpers.dicom_peers import dx, phantom_levels
from tests.helpers.serving import ORTHANC, descendants, free_port

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "orthanc"
ALLOW = ("unlike_a_chest", "suspicious_polarity", "burned_in_annotation")
COMPLETE = (("OT", "SEG", "SEG", "SR"), ("SR",))
"""Modalities of the results of a radiograph: the whole set, or the report with the reason."""


def make_images(folder: Path, count: int) -> list[bytes]:
    """Make radiographs as DICOM files: one of five from RG1, one of ten without a score, the others phantoms of 256 pixels."""
    levels = phantom_levels(folder / "phantoms", count, size=256)
    source = pydicom.dcmread(get_testdata_file("RG1_UNCR.dcm"))
    made = []
    for number in range(count):
        if number % 5 == 0:
            made.append(_from_rg1(source, number))
            continue
        header: dict[str, Any] = {"PatientID": f"P{number}", "PatientName": f"Test^{number}"}
        picture = levels[number]
        if number % 10 == 3:
            header["ViewPosition"] = "LL"
        elif number % 20 == 7:
            picture = np.full_like(picture, 9)
        ds = dx(picture, **header)
        if number % 20 == 17:
            ds.PixelData = ds.PixelData[: len(ds.PixelData) // 2]
        made.append(_encoded(ds))
    return made


def _from_rg1(source: pydicom.Dataset, number: int) -> bytes:
    ds = pydicom.dcmread(io.BytesIO(_encoded(source)))
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()
    ds.PatientID, ds.PatientName = f"R{number}", f"Film^{number}"
    pixels = ds.pixel_array.copy()
    pixels[:100] = np.roll(pixels[:100], number + 1, axis=1)
    ds.PixelData = pixels.tobytes()
    return _encoded(ds)


def _encoded(ds: pydicom.Dataset) -> bytes:
    file = io.BytesIO()
    ds.save_as(file, enforce_file_format=True)
    return file.getvalue()


class ProcessorTime:
    """Processor time of a process and those that it started, sampled while it runs.

    Attributes:
        seconds: user and system time of each process so far.
    """

    def __init__(self, pid: int) -> None:
        self.pid, self.seconds = pid, {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._over.wait(0.2):
            for pid in (self.pid, *descendants(self.pid)):
                with contextlib.suppress(OSError):
                    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                    self.seconds[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> float:
        """Return the sum."""
        self._over.set()
        self._thread.join()
        return sum(self.seconds.values())


class Stand:
    """An Orthanc and a node on the loopback, with their folders.

    Args:
        folder: for everything.
        model: the model's folder.
    """

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model
        self.http, self.dicom, self.port, self.status_port = (free_port() for _ in range(4))
        self.node: subprocess.Popen[bytes] | None = None
        self.orthanc: subprocess.Popen[bytes] | None = None
        settings = json.loads((EXAMPLE / "orthanc.json").read_text())
        settings |= {
            "StorageDirectory": str(folder / "archive"),
            "IndexDirectory": str(folder / "archive"),
            "HttpPort": self.http,
            "DicomPort": self.dicom,
            "DicomModalities": {"WSCXR": ["WSCXR", "127.0.0.1", self.port]},
            "LuaScripts": [str(EXAMPLE / "route.lua")],
            "AuthenticationEnabled": False,
            "StorageCompression": False,
        }
        folder.mkdir(parents=True)
        (folder / "orthanc.json").write_text(json.dumps(settings))
        self.away = threading.Lock()  # held while the archive is stopped

    def start_archive(self) -> None:
        """Start Orthanc and wait until it answers."""
        with open(self.folder / "orthanc.log", "ab") as log:
            self.orthanc = subprocess.Popen([str(ORTHANC), str(self.folder / "orthanc.json")], stdout=log, stderr=log)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                self.rest("GET", "/system")
                return
            time.sleep(0.1)
        raise SystemExit("Orthanc does not start; see orthanc.log")

    def stop_archive(self) -> None:
        """Stop Orthanc in its own time."""
        if self.orthanc is not None:
            self.orthanc.terminate()
            self.orthanc.wait(120)

    def start_node(self) -> None:
        """Start the node."""
        options = [word for reason in ALLOW for word in ("--allow", reason)]
        command = [
            sys.executable,
            "-m",
            "monai_wscxr",
            "node",
            "--model",
            self.model,
            "--folder",
            self.folder / "queue",
        ]
        command += [
            "--archive",
            f"ORTHANC@127.0.0.1:{self.dicom}",
            "--port",
            self.port,
            "--status_port",
            self.status_port,
        ]
        command += ["--reserve", 0, "--accept", "ORTHANC@127.0.0.1", "--device", "cpu", *options]
        with open(self.folder / "node.log", "ab") as log:
            self.node = subprocess.Popen(
                [str(word) for word in command], stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": str(ROOT)}
            )

    def end_node(self, how: int) -> int:
        """End the node with a signal and return its status."""
        assert self.node is not None
        self.node.send_signal(how)
        return self.node.wait(180)

    def rest(self, method: str, path: str, body: bytes | None = None) -> Any:
        """Send a request to Orthanc and return its answer."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}{path}", body, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            content = answer.read()
        return json.loads(content) if answer.headers.get_content_type() == "application/json" else content

    def status(self) -> dict[str, Any] | None:
        """Return the status of the node, None when it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.status_port}/status.json", timeout=5) as answer:
                return json.load(answer)
        except (OSError, ValueError):
            return None

    def store(self, image: bytes) -> None:
        """Store a radiograph in the archive, which may be away for a while."""
        while True:
            with self.away, contextlib.suppress(OSError):
                self.rest("POST", "/instances", image)
                return
            time.sleep(0.2)

    def resubmit(self) -> None:
        """Start failed transfers again, as `resubmit.sh` does."""
        with self.away, contextlib.suppress(OSError):
            for job in self.rest("GET", "/jobs?expand"):
                if job["State"] == "Failure" and job["Type"] == "DicomModalityStore":
                    self.rest("POST", f"/jobs/{job['ID']}/resubmit", b"")

    def sets(self) -> dict[str, tuple[str, ...]]:
        """Return for each study in the archive the modalities of its results, sorted."""
        found = {}
        for study in self.rest("GET", "/studies?expand"):
            series = self.rest("GET", f"/studies/{study['ID']}/series")
            kinds = [entry["MainDicomTags"]["Modality"] for entry in series for _ in entry["Instances"]]
            found[study["ID"]] = tuple(sorted(kind for kind in kinds if kind not in ("CR", "DX")))
        return found

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run both during the block."""
        self.start_archive()
        self.start_node()
        try:
            yield
        finally:
            self.end_node(signal.SIGTERM)
            self.stop_archive()

    def settle(self, images: int, seconds: float) -> dict[str, tuple[str, ...]]:
        """Wait until every radiograph has its results, failed transfers being started again; return the results."""
        end = time.monotonic() + seconds
        while True:
            self.resubmit()
            found = self.sets()
            if sum(kinds in COMPLETE for kinds in found.values()) == images or time.monotonic() > end:
                return found
            time.sleep(0.5)


def train(folder: Path) -> Path:
    """Train a small model on phantoms."""
    import timm
    import torch

    from monai_wscxr.data.phantom import write_phantoms
    from monai_wscxr.prediction import train as train_model

    write_phantoms(folder / "data", 24, 1, 4, 1, size=128, progress=False)
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet").state_dict(), folder / "weights.pth")
    train_model(
        folder / "data",
        folder / "model",
        backbone="timm/test_resnet",
        weights=str(folder / "weights.pth"),
        image_size=128,
        epochs=3,
        k=4,
        device="cpu",
        copies=0,
        opacities=0,
    )
    return folder / "model"


def bare(folder: Path, model: Path, images: list[bytes]) -> tuple[float, float]:
    """Predict the radiographs as files; return wall time without the start, and processor time, in seconds."""
    (folder / "files").mkdir()
    for number, image in enumerate(images):
        (folder / "files" / f"{number:04d}.dcm").write_bytes(image)
    command = [
        sys.executable,
        "-m",
        "monai_wscxr",
        "predict",
        folder / "files",
        "--model",
        model,
        "--output",
        folder / "out",
    ]
    command += [
        "--dicom",
        "--maps",
        "none",
        "--no-overlays",
        "--no-report",
        "--workers",
        2,
        "--batch_size",
        8,
        "--quiet",
    ]
    command += ["--device", "cpu", *(word for reason in ALLOW for word in ("--allow", reason))]
    done = subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    meter = ProcessorTime(done.pid)
    said, _ = done.communicate()
    used = meter.stop()
    assert done.returncode in (0, 3), said
    return float(said.split(" images in ")[1].split(" s")[0]), used


def undisturbed(stand: Stand, images: list[bytes]) -> dict[str, Any]:
    """Send all radiographs at once and measure."""
    with stand.running():
        while stand.status() is None:
            time.sleep(0.2)
        assert stand.node is not None
        meter = ProcessorTime(stand.node.pid)
        began = time.monotonic()
        for image in images:
            stand.store(image)
        while True:
            found = stand.status()
            if found is not None and found["queue"]["done"] + found["queue"]["failed"] == len(images):
                break
            time.sleep(0.2)
        return {"seconds": time.monotonic() - began, "processor": meter.stop(), **found}


def disturbed(stand: Stand, images: list[bytes], kills: int, stops: int, seed: int) -> tuple[list[float], Any]:
    """Send radiographs while the node is killed and the archive stopped; return the moments of the kills and the results."""
    draw = random.Random(seed)
    killed: list[float] = []
    began = time.monotonic()
    over = threading.Event()

    def feed() -> None:
        for number, image in enumerate(images):
            stand.store(image)
            # the last ones come after the last kill
            while not over.is_set() and number >= len(images) * (len(killed) + 1) / (kills + 1):
                time.sleep(0.05)

    with stand.running():
        feeder = threading.Thread(target=feed, daemon=True)
        feeder.start()
        for kill in range(kills):
            end = time.monotonic() + 60
            while stand.status() is None and time.monotonic() < end:
                time.sleep(0.05)
            stand.resubmit()
            if stops and kill in [round((n + 1) * kills / (stops + 1)) for n in range(stops)]:
                with stand.away:
                    stand.stop_archive()
                    time.sleep(3)
                    stand.start_archive()
                stand.resubmit()
            time.sleep(draw.uniform(0.1, 4.0))
            stand.end_node(signal.SIGKILL)
            killed.append(time.monotonic() - began)
            time.sleep(draw.uniform(0, 1))
            stand.start_node()
        over.set()
        feeder.join()
        found = stand.settle(len(images), 1800)
    return killed, found


def validate(stand: Stand, folder: Path) -> tuple[int, int]:
    """Check every result with dciodvfy; return the numbers of results and of errors."""
    if shutil.which("dciodvfy") is None:
        return 0, 0
    stand.start_archive()
    count = errors = 0
    try:
        for instance in stand.rest("GET", "/instances"):
            kind = stand.rest("GET", f"/instances/{instance}/content/0008,0060")
            if kind.strip(b" \0") in (b"CR", b"DX"):
                continue
            file = folder / "result.dcm"
            file.write_bytes(stand.rest("GET", f"/instances/{instance}/file"))
            said = subprocess.run(["dciodvfy", file], capture_output=True, text=True, errors="replace")
            errors += sum(line.startswith("Error") for line in (said.stdout + said.stderr).splitlines())
            count += 1
    finally:
        stand.stop_archive()
    return count, errors


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--stops", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="work in this new folder and leave it")
    given = parser.parse_args()
    if ORTHANC is None:
        raise SystemExit("no Orthanc: apt-get install orthanc")
    work = given.keep or Path(tempfile.mkdtemp(prefix="monai_wscxr-node-"))
    work.mkdir(exist_ok=True)
    problems = []
    try:
        model = train(work)
        images = make_images(work, given.images)
        seconds, used = bare(work, model, images)
        print(
            f"bare pipeline: {len(images)} images in {seconds:.1f} s, {len(images) / seconds:.2f}/s, processor {used:.0f} s"
        )
        calm = Stand(work / "calm", model)
        found = undisturbed(calm, images)
        latency = ", ".join(f"{name} {value:.1f} s" for name, value in found["latency"].items())
        print(
            f"undisturbed: {len(images)} images in {found['seconds']:.1f} s, {len(images) / found['seconds']:.2f}/s; from "
            f"arrival to the archive {latency}; processor {found['processor']:.0f} s; {found['queue']}",
            flush=True,
        )
        if not given.kills and not given.stops:
            return 0
        stand = Stand(work / "kills", model)
        killed, sets = disturbed(stand, images, given.kills, given.stops, given.seed)
        counts = collections.Counter(sets.values())
        moments = ", ".join(f"{at:.0f}" for at in killed)
        print(f"killed {len(killed)} times, after {moments} s; archive stopped {given.stops} times")
        for kinds, count in counts.most_common():
            print(f"{count} radiographs with {' '.join(kinds) or 'nothing'}")
            if kinds not in COMPLETE:
                problems.append(f"{count} radiographs with {kinds}")
        if len(sets) != len(images):
            problems.append(f"{len(sets)} studies instead of {len(images)}")
        count, errors = validate(stand, work)
        print(f"dciodvfy: {count} results, {errors} errors")
        problems += [f"{errors} errors of dciodvfy"] if errors else []
    finally:
        if given.keep is None:
            shutil.rmtree(work, ignore_errors=True)
    for problem in problems:
        print(f"PROBLEM {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
