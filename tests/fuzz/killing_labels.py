"""SIGKILL in the middle of labelling and retraining: `python -m tests.fuzz.killing_labels --kills 100`.

A workbench labels images one after the other while it trains again and again, and is killed at a random moment. After each
kill, every label that it had acknowledged must be there, the one under way may be there or not, and the model must load. Two
readings of the labels must agree. At the end, a training in the folder that survived all kills must give the labels, the
weights and the scores, to the last bit, of a training in a new folder that was given the same labels.

Processes are forked from one that has imported everything but computed nothing, as in `killing`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

OPTIONS = {
    "image_size": 64,
    "neighbourhood": 3,
    "epochs": 2,
    "min_batches": 5,
    "device": "cpu",
    "backbone": "timm/test_resnet",
    "false_positive_rate": 0.3,
}
CHOICES = (
    (0, None, False),
    (1, "effusion", False),
    (1, "nodule " * 8, False),
    (1, None, False),
    (None, None, True),
    (None, None, False),
)
Given = list[Any]
"""Label, class and whether skipped, as JSON values; all None or False for a label withdrawn."""


@dataclass
class Tally:
    """What became of the workbench; `model` is the hash of the weights that it ended with."""

    kills: int = 0
    acknowledged: int = 0
    trainings: int = 0
    in_training: int = 0
    problems: list[str] = field(default_factory=list)
    model: str = ""
    seconds: float = 0.0


class KillingLabels:
    """Lives and deaths of a workbench.

    Args:
        work: folder for everything.
        seed: of the moments and labels.
    """

    def __init__(self, work: Path, seed: int = 0) -> None:
        self.work, self.draw, self.tally = work, random.Random(seed), Tally()
        self.data, self.weights = work / "data", work / "weights.pth"
        self.expected: dict[str, Given] = {}  # acknowledged, by name of the image

    def run(self, kills: int, progress: Callable[[str], None]) -> Tally:
        """Kill so many times."""
        began = time.monotonic()
        os.environ["MONAI_WSCXR_CACHE"] = str(self.work / "cache")
        import monai_wscxr.data.transforms
        import monai_wscxr.label.workbench
        import monai_wscxr.training.artefact_handler
        import monai_wscxr.training.mining_handler  # noqa: F401

        self._child(self._prepare)
        for name in self._child(self._modules)[1]:  # otherwise every life would import them again
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        while self.tally.kills < kills and not self.tally.problems:
            self._life()
            if self.tally.kills % 10 == 0:
                progress(f"{self.tally.kills} kills, {self.tally.acknowledged} labels acknowledged")
        if not self.tally.problems:
            self._compare()
        self.tally.seconds = time.monotonic() - began
        return self.tally

    def _prepare(self, _: int) -> None:
        import timm
        import torch

        from monai_wscxr.data.phantom import write_phantoms

        write_phantoms(self.data, 12, 1, 8, 2, size=64, progress=False)
        torch.manual_seed(0)
        torch.save(timm.create_model("test_resnet").state_dict(), self.weights)

    def _modules(self, pipe: int) -> None:
        """In a child: tell the modules that a workbench imports."""
        self._open().close()
        os.write(pipe, "".join(f"{name}\n" for name in sys.modules if not name.startswith("__")).encode())

    def _child(self, what: Callable[[int], Any], deadline: float | None = None) -> tuple[int, list[str]]:
        """Run a function in a forked process, given a pipe to write to; return its status and the lines that it wrote.

        Args:
            what: the function.
            deadline: seconds after the line "ready" at which the process is killed.
        """
        here, there = os.pipe()
        process = os.fork()
        if not process:
            status = 1
            try:
                os.close(here)
                log = os.open(self.work / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(log, 1)
                os.dup2(log, 2)
                what(there)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(status)
        os.close(there)
        written, end = b"", None
        os.set_blocking(here, False)
        while True:
            with contextlib.suppress(BlockingIOError):
                while part := os.read(here, 1 << 16):
                    written += part
            if end is None and deadline is not None and b"ready\n" in written:
                end = time.monotonic() + deadline
            if end is not None and time.monotonic() >= end:
                os.kill(process, signal.SIGKILL)
                end = float("inf")
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                with contextlib.suppress(BlockingIOError):
                    while part := os.read(here, 1 << 16):
                        written += part
                os.close(here)
                return os.waitstatus_to_exitcode(status), written.decode().split("\n")[:-1]
            time.sleep(0.002)

    def _compare(self) -> None:
        """Train in the folder that was killed so often and in a new one, and compare what they end with."""
        ends = []
        for folder in ("bench", "undisturbed"):
            status, told = self._child(lambda pipe, folder=folder: self._end(pipe, folder))  # type: ignore[misc]
            if status or not told:
                self.tally.problems.append(f"{folder}: the last training failed: {self._log()}")
                return
            ends.append(json.loads(told[0]))
        for what, killed in ends[0].items():
            if killed != ends[1][what]:
                self.tally.problems.append(f"at the end, {what} differ: {killed}, undisturbed {ends[1][what]}")
        self.tally.model = ends[0]["weights"]

    def _end(self, pipe: int, folder: str) -> None:
        """In a child: give the labels where they are missing, train once more, and tell the result."""
        bench = self._open(folder)
        ids = {bench.studies.name(image_id): image_id for image_id in bench.studies.ids()}
        name = min(ids)
        for one, given in {**self.expected, name: [1, "effusion", False]}.items():  # one is abnormal in any case
            bench.set_label(ids[one], *given)
        bench.train()
        found = {
            bench.studies.name(i): [one.label, one.image_class, one.skipped]
            for i, one in bench.studies.labels().items()
        }
        files = sorted(path.name for path in (self.work / folder).rglob("*") if path.name.endswith(".partial"))
        scores = {entry["name"]: entry["anomaly_score"] for entry in bench.items()}
        weights = bench.status()["model"]["sha256"]
        told = {"labels": found, "weights": weights, "scores": scores, "half files": files}
        os.write(pipe, (json.dumps(told) + "\n").encode())
        bench.close()

    def _log(self) -> str:
        return (self.work / "log").read_text()[-2000:]

    def _open(self, folder: str = "bench") -> Any:
        from monai_wscxr.label.archive.folder import FolderStudies
        from monai_wscxr.label.workbench import Workbench

        studies = FolderStudies(self.data / "test", self.work / folder)
        options = {**OPTIONS, "weights": str(self.weights)}
        return Workbench(studies, self.work / folder, self.data / "train" / "normal", options=options)

    def _label(self, pipe: int, seed: int) -> None:
        """In a child: label and train until killed."""
        from monai_wscxr.label.archive.studies import Refused

        def say(*words: Any) -> None:
            os.write(pipe, (" ".join(map(str, words)) + "\n").encode())

        bench, draw = self._open(), random.Random(seed)
        self._tell_labels(bench.studies, say)
        bench.refresh()
        say("ready")
        ids, before = bench.studies.ids(), "idle"
        while True:
            training = bench.training()
            state = training["state"]
            if state != before:
                say("training", state, *[training["message"].replace("\n", " ")] * (state == "failed"))
                before = state
            if state != "running":
                with contextlib.suppress(Refused):
                    bench.start_training()
            image_id, given = draw.choice(ids), draw.choice(CHOICES)
            name = bench.studies.name(image_id)
            say("begin", json.dumps([name, *given]))
            bench.set_label(image_id, *given)
            say("done", json.dumps([name, *given]))
            time.sleep(draw.uniform(0, 0.02))

    def _tell_labels(self, studies: Any, say: Callable[..., None]) -> None:
        found = {studies.name(i): [one.label, one.image_class, one.skipped] for i, one in studies.labels().items()}
        say("labels", json.dumps(found))

    def _look(self, pipe: int) -> None:
        """In a child: tell the labels, and load the model."""
        from monai_wscxr.label.archive.folder import FolderStudies
        from monai_wscxr.model.artefact import load_model

        studies = FolderStudies(self.data / "test", self.work / "bench")
        self._tell_labels(studies, lambda *words: os.write(pipe, (" ".join(words) + "\n").encode()))
        if (self.work / "bench" / "model").exists():
            load_model(self.work / "bench" / "model")

    def _life(self) -> None:
        seconds = self.draw.uniform(0, 3.0)
        seed = self.draw.getrandbits(32)
        status, lines = self._child(lambda pipe: self._label(pipe, seed), seconds)
        if status != -signal.SIGKILL:
            self.tally.problems.append(f"ended with {status}: {self._log()}")
            return
        self.tally.kills += 1
        begun: tuple[str, Given] | None = None
        training = "idle"
        for line in lines:
            word, _, rest = line.partition(" ")
            if word == "labels" and json.loads(rest) != self.expected:
                self.tally.problems.append(f"kill {self.tally.kills}: labels changed between two starts")
            elif word == "begin":
                name, *given = json.loads(rest)
                begun = name, _stored(given)
            elif word == "done" and begun is not None:
                self.expected = _with(self.expected, *begun)
                self.tally.acknowledged += 1
                begun = None
            elif word == "training":
                training = rest
                self.tally.trainings += rest == "done"
            if rest.startswith("failed") and "no image is labelled abnormal" not in rest:
                self.tally.problems.append(f"kill {self.tally.kills}: a training failed: {rest}")
        self.tally.in_training += training == "running"
        status, told = self._child(self._look)
        if status or not told:
            self.tally.problems.append(f"kill {self.tally.kills}: does not open: {self._log()}")
            return
        found = json.loads(told[0].partition(" ")[2])
        possible = [self.expected] + ([_with(self.expected, *begun)] if begun is not None else [])
        if found not in possible:
            self.tally.problems.append(f"kill {self.tally.kills}: found {found}, acknowledged {self.expected}")
        self.expected = found


def _stored(given: Given) -> Given:
    """Return a label as the archive shows it."""
    label, image_class, skipped = given
    return [label, " ".join(image_class.split()) if image_class else "abnormal" if label == 1 else None, skipped]


def _with(labels: dict[str, Given], name: str, given: Given) -> dict[str, Given]:
    """Return the labels after one more decision."""
    rest = {key: value for key, value in labels.items() if key != name}
    return rest if given == [None, None, False] else {**rest, name: given}


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="work in this folder and leave it")
    given = parser.parse_args()
    work = given.keep or Path(tempfile.mkdtemp(prefix="monai_wscxr-labels-"))
    work.mkdir(parents=True, exist_ok=True)
    try:
        tally = KillingLabels(work, given.seed).run(given.kills, lambda line: print(line, flush=True))
    finally:
        if given.keep is None:
            shutil.rmtree(work, ignore_errors=True)
    print(
        f"{tally.kills} kills in {tally.seconds:.0f} s, {tally.in_training} of them during a training; "
        f"{tally.acknowledged} labels acknowledged, {tally.trainings} trainings ended; last model {tally.model}"
    )
    for problem in tally.problems:
        print(f"PROBLEM {problem}")
    print(f"{len(tally.problems)} problems")
    return 1 if tally.problems else 0


if __name__ == "__main__":
    sys.exit(main())
