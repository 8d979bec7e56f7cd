"""Kills `predict --dicom`, `bank add`, `bank merge`, `bank compact` and `protocol` (SIGKILL) in the middle of their work.

    python -m tests.fuzz.killing_commands --kills 100

Each command is run once undisturbed. Then it is run again and again from its beginning: each process is killed, after a
random time or at a random call of `os.fsync`, `os.replace`, `os.link` or `os.unlink`, and the next one is given the same
command, until one comes to its end. Kills of `predict` come after the first result is in its journal. Ends with status 1 unless
every run ended at the results of the undisturbed one, byte for byte, and nothing that was acknowledged (a line of the journal,
an image in the index of a bank, a cell of the table) was ever lost.

Processes are forked from one that has imported everything but computed nothing, so a life takes a second instead of ten.
"""

from __future__ import annotations

import argparse
import hashlib
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

from tests.fuzz.killing import Whiteboard

COMMANDS = ("predict", "add", "merge", "compact", "protocol")
NETWORK = ("--backbone", "timm/test_resnet", "--image_size", "64", "--device", "cpu")


@dataclass
class Tally:
    """Outcomes of the runs of one command."""

    kills: int = 0
    runs: int = 0
    acknowledged: int = 0
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Killing:
    """Lives and deaths of one command.

    Args:
        name: one of `COMMANDS`.
        work: folder for everything.
        seed: of the moments.
    """

    def __init__(self, name: str, work: Path, seed: int = 0) -> None:
        self.name, self.work, self.draw = name, work, random.Random(f"{name} {seed}")
        self.board, self.tally = Whiteboard(), Tally()
        self.data, self.weights, self.model = work / "data", work / "weights.pth", work / "model"

    def prepare(self) -> None:
        """Import everything here, and make inputs in a child: this process must not compute before it forks."""
        import monai_wscxr.bank.folder
        import monai_wscxr.commands.main
        import monai_wscxr.experiments.protocol.run
        import monai_wscxr.prediction.run
        import monai_wscxr.report.dicom
        import monai_wscxr.training.once  # noqa: F401

        if self._wait(self._fork(self._make, self.work / "log")):
            raise SystemExit(f"the inputs could not be made: {(self.work / 'log').read_text()}")

    def _make(self) -> None:
        import timm
        import torch

        from monai_wscxr.data.phantom import write_phantoms
        from tests.fuzz.fuzzing import tiny_model

        write_phantoms(self.data, 8, 1, 3, 1, size=64, progress=False)
        torch.manual_seed(0)
        torch.save(timm.create_model("test_resnet").state_dict(), self.weights)
        if self.name == "predict":
            tiny_model(self.model)
            self._make_studies()
        if self.name in ("merge", "compact"):
            for number in range(3):
                self._add(self.work / f"bank{number}", self._images(number), 1)

    def _make_studies(self) -> None:
        """DICOM files of different sizes, and one that is refused."""
        import numpy as np

        from monai_wscxr.data.phantom import make_phantom
        from tests.helpers.radiograph_files import dicom

        folder = self.work / "studies"
        folder.mkdir()
        for number in range(10):
            pixels = np.asarray(make_phantom(number, 96).image, dtype=np.float64)
            levels = (pixels / pixels.max() * 4095).astype(np.uint16)
            elements = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1", "Modality": "DX", "BitsStored": 12, "HighBit": 11}
            elements |= {
                "StudyInstanceUID": "1.2.3",
                "SeriesInstanceUID": "1.2.3.4",
                "SOPInstanceUID": f"1.2.3.{number + 9}",
            }
            dicom(folder / f"{number}.dcm", levels, **elements)
        (folder / "broken.dcm").write_bytes((folder / "0.dcm").read_bytes()[:500])

    def _network(self) -> tuple[str, ...]:
        return (*NETWORK, "--weights", str(self.weights))

    def _images(self, number: int) -> list[str]:
        return [str(path) for path in sorted(self.data.glob("train/normal/*.png"))[3 * number : 3 * number + 4]]

    def _add(self, bank: Path, images: list[str], shard: int) -> None:
        """Add images to a bank, with shards of as many images."""
        from monai_wscxr.commands import bank as command

        inner = command.extractor_of

        def small(options: argparse.Namespace) -> Any:
            extractor = inner(options)
            extractor.shard_images = shard
            return extractor

        command.extractor_of = small
        self._command("bank", "add", str(bank), *images, "--workers", "0", *self._network())

    def _command(self, *arguments: str) -> None:
        from monai_wscxr.commands.main import create_parser

        options = create_parser().parse_args(arguments)
        options.arguments = list(arguments)
        status = options.run(options)
        if status not in (None, 0, 3):
            raise SystemExit(status)

    def begin(self, folder: Path) -> None:
        """Make what the command changes, before the first life of a run."""
        folder.mkdir(parents=True)
        if self.name == "compact":
            shutil.copytree(self.work / "bank0", folder / "out")
            from monai_wscxr.bank.folder import BankFolder

            bank = BankFolder(folder / "out")
            for number in (1, 2):
                bank.merge(BankFolder(self.work / f"bank{number}"))
            bank.remove(bank.digests()[::3])

    def work_on(self, folder: Path, kill_at: int | None) -> None:
        """Give the command, in a child; SIGKILL at step `kill_at`."""
        os.environ["MONAI_WSCXR_CACHE"] = str(folder / "cache")
        self._watch(folder, kill_at)
        out = str(folder / "out")
        if self.name == "predict":
            from monai_wscxr.prediction import run

            # the time of creation is part of DICOM results
            run.datetime = _FixedTime  # type: ignore[assignment]
            studies = str(self.work / "studies")
            words = ["--model", str(self.model), "--output", out, "--dicom", "--workers", "0", "--batch_size", "2"]
            self._command("predict", *words, "--quiet", "--device", "cpu", studies)
        elif self.name == "add":
            images = [*self._images(0), *self._images(1), *self._images(2)]
            self._add(folder / "out", images, 2)
        elif self.name == "merge":
            self._command("bank", "merge", out, *(str(self.work / f"bank{n}") for n in range(3)))
        elif self.name == "compact":
            self._command("bank", "compact", out)
        else:
            options = ("epochs=1", "min_batches=3", "simplenet_epochs=1", "false_positive_rate=0.3")
            words = ["--dataset_dir", str(self.data), "--output_dir", out, "--k", "1", "--seeds", "2"]
            words += ["--methods", "patchcore,simplenet,wscxr", *self._network()]
            self._command("protocol", "table1", *words, *(part for option in options for part in ("--set", option)))

    def _watch(self, folder: Path, kill_at: int | None) -> None:
        """Count the steps from which kills are drawn."""
        journal = folder / "out" / "journal.jsonl"

        def step() -> None:
            if self.name == "predict" and (not journal.exists() or journal.read_bytes().count(b"\n") < 2):
                return
            self.board.steps += 1
            if self.board.steps == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        for name in ("fsync", "replace", "link", "unlink"):
            inner = getattr(os, name)

            def call(*arguments: Any, inner: Callable[..., Any] = inner, **options: Any) -> Any:
                step()
                found = inner(*arguments, **options)
                step()
                return found

            setattr(os, name, call)

    def _fork(self, what: Callable[[], Any], log: Path) -> int:
        process = os.fork()
        if process:
            return process
        status = 1
        try:
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            what()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)

    def _wait(self, process: int, deadline: float | None = None) -> int:
        """Status of a process, negative for a signal; it is killed at the deadline."""
        while True:
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            if deadline is not None and time.monotonic() >= deadline and self._may_die():
                os.kill(process, signal.SIGKILL)
                deadline = None
            time.sleep(0.002)

    def _may_die(self) -> bool:
        return self.name != "predict" or self.board.steps > 0

    def life(self, folder: Path, seconds: float | None = None, step: int | None = None) -> bool:
        """Run one process, killed after so many seconds or at that step; returns whether it came to its end."""
        self.board.wipe()
        process = self._fork(lambda: self.work_on(folder, step), folder / "log")
        code = self._wait(process, None if seconds is None else time.monotonic() + seconds)
        if code not in (0, -signal.SIGKILL):
            self.tally.problems.append(f"{folder.name}: ended with {code}: {(folder / 'log').read_text()[-2500:]}")
        return code != -signal.SIGKILL

    def run(self, kills: int) -> Tally:
        """Kill so many times; every run comes to its end."""
        began = time.monotonic()
        self.prepare()
        first = self.work / "undisturbed"
        self._in_child(lambda: self.begin(first))
        started = time.monotonic()
        self.life(first)
        whole, steps = time.monotonic() - started, self.board.steps
        if self.tally.problems:
            return self.tally
        wanted = self.fingerprint(first)
        while self.tally.kills < kills and not self.tally.problems:
            self.tally.runs += 1
            folder = self.work / f"run_{self.tally.runs:04d}"
            self._in_child(lambda folder=folder: self.begin(folder))  # type: ignore[misc]
            self._one_run(folder, kills, whole, steps)
            found = self.fingerprint(folder) if not self.tally.problems else wanted
            for name in sorted({*wanted, *found}):
                if wanted.get(name) != found.get(name):
                    self.tally.problems.append(f"{folder.name}: {name} is not that of the undisturbed run")
            if not self.tally.problems:
                shutil.rmtree(folder)
        self.tally.seconds = time.monotonic() - began
        return self.tally

    def _in_child(self, what: Callable[[], None]) -> None:
        if self._wait(self._fork(what, self.work / "log")):
            raise SystemExit((self.work / "log").read_text())

    def _one_run(self, folder: Path, kills: int, whole: float, steps: int) -> None:
        before: set[str] = set()
        for lives in range(1000):
            seconds = step = None
            if self.tally.kills < kills and lives < 12:  # then it may come to its end
                if self.draw.random() < 0.4:
                    seconds = self.draw.uniform(0, whole)
                else:
                    step = self.draw.randint(1, max(1, steps // (1 + lives // 4)))
            ended = self.life(folder, seconds, step)
            now = self.acknowledged(folder)
            lost = before - now
            if lost and not (self.name == "compact" and ended):
                self.tally.problems.append(f"{folder.name}: lost after a kill: {sorted(lost)[:3]}")
            before = now
            self.tally.acknowledged += len(now)
            if ended or self.tally.problems:
                return
            self.tally.kills += 1

    def acknowledged(self, folder: Path) -> set[str]:
        """Everything that is finished by the command's own records."""
        out = folder / "out"
        if self.name == "predict":
            journal = out / "journal.jsonl"
            lines = journal.read_bytes().splitlines(keepends=True)[1:] if journal.exists() else []
            return {line.decode() for line in lines if line.endswith(b"\n")}
        if self.name == "protocol":
            return {str(path.name) for path in out.glob("cells/*.json")}
        return set(_bank(out))

    def fingerprint(self, folder: Path) -> dict[str, str]:
        """Digests of everything that must not depend on kills."""
        out = folder / "out"
        if self.name == "predict":  # the journal's order of lines depends on what was done before, and stamps on times
            files = [path for path in sorted(out.rglob("*")) if path.is_file() and path.name != "journal.jsonl"]
            return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
        if self.name == "protocol":
            return _protocol(out)
        return _bank(out)


def _bank(out: Path) -> dict[str, str]:
    """Digest of the features of each living image of a bank; its shards have random names."""
    from monai_wscxr.bank.folder import BankFolder

    if not (out / "bank.json").exists():
        return {}
    bank = BankFolder(out)
    found: dict[str, str] = {}
    for place, (shard, position) in enumerate(bank.places()):
        digest, values = shard.digests[position], _values(shard, position)
        found[digest] = f"{place} {hashlib.sha256(values).hexdigest()}"
    return found


def _values(shard: Any, position: int) -> bytes:
    import torch

    rows = torch.empty(shard.shape[1:], dtype=shard.dtype)
    shard.read(position, rows)
    return rows.numpy().tobytes()


def _protocol(out: Path) -> dict[str, str]:
    """Digests of the cells and tables, without times."""

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: timeless(v) for k, v in value.items() if "seconds" not in k}
        return [timeless(v) for v in value] if isinstance(value, list) else value

    found = {}
    for path in sorted(out.rglob("*.json")):
        if path.parent.name == "cells":
            text = json.dumps(timeless(json.loads(path.read_text())), sort_keys=True)
            found[path.name] = hashlib.sha256(text.encode()).hexdigest()
    found["summary.csv"] = hashlib.sha256((out / "summary.csv").read_bytes()).hexdigest()
    found["runs"] = str((out / "runs").exists())
    return found


class _FixedTime:
    """Stands for the module `datetime` in a prediction run, with a clock that does not move."""

    class datetime:  # noqa: N801 - the name of the standard library
        """Class with the one method that a run calls."""

        @staticmethod
        def now() -> Any:
            """Return a fixed time."""
            import datetime

            return datetime.datetime(2026, 1, 2, 3, 4, 5)


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="of each command")
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=COMMANDS)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    problems = 0
    for name in given.commands:
        work = Path(tempfile.mkdtemp(prefix=f"monai_wscxr-killing-{name}-"))
        tally = Killing(name, work, given.seed).run(given.kills)
        print(
            f"{name}: {tally.kills} kills in {tally.runs} runs, {tally.seconds:.0f} s; {len(tally.problems)} problems",
            flush=True,
        )
        for problem in tally.problems:
            print(f"PROBLEM {problem}", flush=True)
        problems += len(tally.problems)
        if not tally.problems:
            shutil.rmtree(work)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
