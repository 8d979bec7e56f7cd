"""Full disks under `predict --dicom`, `bank add`, `bank merge`, `bank compact`, `protocol`, and labelling with retraining.

    python -m tests.fuzz.disk_full --sizes 10 --moments 10

Each command is run with room first. Then it is given on a small disk of ten sizes, from no room at all to almost as much
as it needs, and on a disk that another program fills at ten moments: after a random number of steps (calls of `os.fsync`,
`os.replace`, `os.link`, `os.unlink`). It must end with status 2 and one sentence that says how much is missing, twice in
a row, and leave no half file. Then exactly as much is freed as the sentence asks for, and the same command is given again,
until it comes to its end. Ends with status 1 unless that takes few rounds, every trial ended at the results of the
undisturbed run, byte for byte, and nothing acknowledged (a line of the journal, an image of a bank, a cell of a table, a
label) was ever lost.

The small disk is a tmpfs, or an ext4 image with `--file_system ext4`; mounting needs root. Ballast on it sets the room. The
reserve that trainings keep free counts as needed. The feature cache is on another disk.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from tests.fuzz.killing_commands import COMMANDS, Killing
from tests.fuzz.killing_labels import Given, KillingLabels, _stored

SHARES = (0.0, 0.03, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97)  # of the room that the command needs
LABELS = "labels"
DISK_BYTES = 96 << 20
RESERVE = {"protocol": 16 << 20, LABELS: 16 << 20}  # bytes that trainings leave free
MOST_ROUNDS = 20
_MISSING = re.compile(r"([\d.,]+) (k|M|G|)(?:B|bytes) are missing|room for at least 1 file is missing")
_STEPS = ("fsync", "replace", "link", "unlink")


class NoDiskError(Exception):
    """A small disk cannot be mounted here."""


class Disk:
    """A small disk, whose room is set by a file of ballast.

    Args:
        folder: where it is mounted; created.
        kind: "tmpfs" or "ext4".
        size: of the disk in bytes.

    Raises:
        NoDiskError: when it cannot be mounted.
    """

    def __init__(self, folder: Path, kind: str = "tmpfs", size: int = DISK_BYTES) -> None:
        self.folder, self.ballast = folder, folder / "ballast"
        folder.mkdir(parents=True)
        image = folder.with_name("disk.img")
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        try:
            if kind == "ext4":
                with open(image, "wb") as file:
                    file.truncate(size)
                subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True, capture_output=True)
                mount = ["mount", "-o", "loop", str(image), str(folder)]
            subprocess.run(mount, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            why = getattr(error, "stderr", b"") or str(error).encode()
            raise NoDiskError(why.decode(errors="replace").strip()) from error

    def free(self) -> int:
        """Return the free bytes."""
        status = os.statvfs(self.folder)
        return status.f_bavail * status.f_frsize

    def leave(self, room: int | None) -> None:
        """Set the free bytes to `room`, rounded up to a block; None removes the ballast."""
        if room is None:
            self.ballast.unlink(missing_ok=True)
            return
        with open(self.ballast, "ab") as file:
            for _ in range(8):  # what the ballast itself takes for its list of blocks depends on its size
                size, surplus = file.seek(0, os.SEEK_END), (self.free() - room) // 4096 * 4096
                if not surplus:
                    return
                if surplus < 0:
                    file.truncate(max(0, size + surplus))
                    continue
                with contextlib.suppress(OSError):
                    os.posix_fallocate(file.fileno(), size, surplus)

    def close(self) -> None:
        """Unmount it."""
        subprocess.run(["umount", "-l", str(self.folder)], check=True)


class Watch:
    """Count steps in a child, note the least free room, and fill the disk at one of the steps.

    Args:
        disk: the disk.
    """

    def __init__(self, disk: Disk) -> None:
        self.disk, self.memory = disk, mmap.mmap(-1, 16)

    def wipe(self) -> None:
        """Before a run."""
        self.memory[:] = bytes(8) + b"\xff" * 7 + b"\0"

    @property
    def steps(self) -> int:
        """Steps begun or ended."""
        return int.from_bytes(self.memory[:8], "little")

    @property
    def least(self) -> int:
        """Least number of free bytes seen at a step."""
        return int.from_bytes(self.memory[8:], "little")

    def start(self, fill_at: int | None, left: int) -> None:
        """In a child: begin to count; at step `fill_at`, all but `left` bytes of the disk are taken."""

        def step() -> None:
            self.memory[:8] = (self.steps + 1).to_bytes(8, "little")
            self.memory[8:] = min(self.least, self.disk.free()).to_bytes(8, "little")
            if self.steps == fill_at:
                self.disk.leave(min(left, self.disk.free()))

        for name in _STEPS:
            inner = getattr(os, name)

            def call(*arguments: Any, inner: Callable[..., Any] = inner, **options: Any) -> Any:
                step()
                found = inner(*arguments, **options)
                step()
                return found

            setattr(os, name, call)


@dataclass
class Tally:
    """Outcomes of one command.

    Attributes:
        trials: sizes and moments tried.
        untouched: moments after which the command wrote nothing more.
        sentences: runs that ended with a sentence.
        rounds: most runs that a trial needed when exactly what they asked for was freed each time.
        peak: bytes that the command needs.
    """

    trials: int = 0
    untouched: int = 0
    sentences: int = 0
    rounds: int = 0
    peak: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    last: str = ""


class Command(Killing):
    """One command on a small disk.

    Args:
        name: one of `COMMANDS`.
        work: folder for everything else.
        disk: the disk.
        seed: of the moments.
    """

    def __init__(self, name: str, work: Path, disk: Disk, seed: int = 0) -> None:
        super().__init__(name, work, seed)
        self.disk, self.watch = disk, Watch(disk)
        self.fill: tuple[int | None, int] = (None, 0)

    def _command(self, *arguments: str) -> None:
        from monai_wscxr.commands.main import main

        main(list(arguments))

    def _network(self) -> tuple[str, ...]:
        words = list(super()._network())
        words[words.index("--image_size") + 1] = "320"  # shards of several blocks, of which a disk may hold some
        return tuple(words)

    def _add(self, bank: Path, images: list[str], shard: int) -> None:
        # with several images in each shard, compacting has to write
        super()._add(bank, images, 4 if self.name in ("merge", "compact") else shard)

    def _watch(self, folder: Path, kill_at: int | None) -> None:
        os.environ["MONAI_WSCXR_CACHE"] = str(self.work / "cache")
        self.watch.start(*self.fill)

    def _fork(self, what: Callable[[], Any], log: Path) -> int:
        process = os.fork()
        if process:
            return process
        status: Any = 1
        try:
            descriptor = os.open(self.work / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            what()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def once(self, folder: Path, fill_at: int | None = None, left: int = 0) -> tuple[int, str]:
        """Give the command; return its status and what it printed."""
        self.watch.wipe()
        self.fill = (fill_at, left)
        code = self._wait(self._fork(lambda: self.work_on(folder, None), self.work / "log"))
        return (0 if code == 3 else code), (self.work / "log").read_text(errors="replace")  # 3: some were rejected

    def start(self, folder: Path) -> None:
        """Make what the command changes."""
        self._in_child(lambda: self.begin(folder))


class Labelling(KillingLabels):
    """Labelling with retraining on a small disk: a fixed list of labels, a training in the middle, and one at the end.

    Args:
        work: folder for everything else.
        disk: the disk, which holds the work folder of the workbench.
        seed: of the moments.
    """

    name = LABELS

    def __init__(self, work: Path, disk: Disk, seed: int = 0) -> None:
        super().__init__(work, seed)
        self.disk, self.watch, self.folder = disk, Watch(disk), work
        self.told: list[str] = []
        self.end = ""

    def prepare(self) -> None:
        """Import everything here, and make inputs in a child."""
        os.environ["MONAI_WSCXR_CACHE"] = str(self.work / "cache")
        import monai_wscxr.data.transforms
        import monai_wscxr.label.workbench
        import monai_wscxr.training.artefact_handler
        import monai_wscxr.training.mining_handler  # noqa: F401

        self._child(self._prepare)

    def _open(self, folder: str = "bench") -> Any:
        from monai_wscxr.label.archive.folder import FolderStudies
        from monai_wscxr.label.workbench import Workbench
        from tests.fuzz.killing_labels import OPTIONS

        studies = FolderStudies(self.data / "test", self.folder)
        options = {**OPTIONS, "weights": str(self.weights)}
        return Workbench(studies, self.folder, self.data / "train" / "normal", options=options)

    def _plan(self, names: list[str]) -> dict[str, Given]:
        choices: tuple[Given, ...] = ([1, "effusion", False], [0, None, False], [1, "nodule", False])
        return {name: choices[number % len(choices)] for number, name in enumerate(sorted(names))}

    def _annotate(self, pipe: int, fill_at: int | None, left: int) -> None:
        """In a child: label and train as an annotator does; end with status 2 and a sentence as the program does."""
        from monai_wscxr.errors import InputError
        from monai_wscxr.system.atomic import as_disk_full

        def say(*words: str) -> None:
            os.write(pipe, (" ".join(words) + "\n").encode())

        self.watch.start(fill_at, left)
        bench = None
        try:
            bench = self._open()
            bench.refresh()
            ids = {bench.studies.name(image_id): image_id for image_id in bench.studies.ids()}
            plan = self._plan(list(ids))
            for number, (name, given) in enumerate(plan.items()):
                one = bench.studies.labels().get(ids[name])
                if one is None or [one.label, one.image_class, one.skipped] != _stored(given):
                    bench.set_label(ids[name], *given)
                    say("done", name)
                    if number == len(plan) // 2:
                        bench.train()
            bench.train()
            say("end", json.dumps(self._result(bench)))
        except (InputError, OSError) as error:
            shown = error if isinstance(error, InputError) else as_disk_full(error)
            if shown is None:
                raise
            state = None if bench is None else bench.training()
            if state is not None and state["state"] == "failed" and "missing" not in state["message"]:
                print(f"the state of the training does not say what is missing: {state['message']}")
            if bench is not None:
                bench.close()
            print(f"error: {shown}")
            sys.stdout.flush()
            os._exit(2)
        finally:
            if bench is not None:
                bench.close()

    def _result(self, bench: Any) -> dict[str, Any]:
        labels = {
            bench.studies.name(i): [one.label, one.image_class, one.skipped]
            for i, one in bench.studies.labels().items()
        }
        scores = {entry["name"]: entry["anomaly_score"] for entry in bench.items()}
        return {"labels": labels, "scores": scores, "weights": bench.status()["model"]["sha256"]}

    def start(self, folder: Path) -> None:
        """Do nothing: the first run makes the folder."""
        self.told = []

    def once(self, folder: Path, fill_at: int | None = None, left: int = 0) -> tuple[int, str]:
        """Annotate; return the status and what was printed."""
        self.watch.wipe()
        self.folder = folder
        (self.work / "log").unlink(missing_ok=True)
        status, lines = self._child(lambda pipe: self._annotate(pipe, fill_at, left))
        self.told += [line.removeprefix("done ") for line in lines if line.startswith("done ")]
        self.end = next((line for line in lines if line.startswith("end ")), "")
        said = (self.work / "log").read_text(errors="replace")
        lost = set(self.told) - self.acknowledged(folder)
        models, used = folder / "models", (folder / "model").resolve().name if (folder / "model").exists() else ""
        left = sorted(path.name for path in models.iterdir() if path.stem > used) if models.exists() else []
        if lost or left:
            return 1, f"lost labels {sorted(lost)}, leftovers of trainings {left}: {said}"
        return status, said

    def acknowledged(self, folder: Path) -> set[str]:
        """Return what the label file holds."""
        path = folder / "labels.jsonl"
        return {json.loads(line)["name"] for line in path.read_text().splitlines()} if path.exists() else set()

    def fingerprint(self, folder: Path) -> dict[str, str]:
        """Return labels, scores and the hash of the weights."""
        return {"the result": self.end}


class Filling:
    """Trials of one command.

    Args:
        command: the command.
        progress: called with a line now and then.
    """

    def __init__(self, command: Command | Labelling, progress: Callable[[str], None]) -> None:
        self.command, self.progress, self.tally = command, progress, Tally()
        self.disk, self.draw = command.disk, random.Random(f"{command.name} {1}")
        self.folder = self.disk.folder / "run"
        self.wanted: dict[str, str] = {}

    def run(self, sizes: int, moments: int) -> Tally:
        """Try so many sizes and moments."""
        began = time.monotonic()
        self.command.prepare()
        steps = self._undisturbed()
        if not self.tally.problems:
            room = self.tally.peak + RESERVE.get(self.command.name, 0)
            for share in SHARES[:: max(1, len(SHARES) // sizes)][:sizes] if sizes else ():
                self._trial(f"{share:.0%} of {room / 1e6:.2f} MB", room=int(share * room) // 4096 * 4096)
            for _ in range(moments):
                step = self.draw.randint(1, steps)
                self._trial(f"filled at step {step} of {steps}", moment=(step, self.draw.choice((0, 0, 4096, 16384))))
        self.tally.seconds = time.monotonic() - began
        return self.tally

    def _undisturbed(self) -> int:
        """Run once with room; note the results and the room that it takes."""
        for number in range(2):  # the first one fills the feature cache, so that all others take the same steps
            self._clear()
            before = self.disk.free()
            status, said = self.command.once(self.folder)
            if status:
                self.tally.problems.append(f"undisturbed: status {status}: {said[-2000:]}")
                return 0
            found = self.command.fingerprint(self.folder)
            if number and found != self.wanted:
                self.tally.problems.append("two undisturbed runs differ")
            self.wanted = found
            self.tally.peak = before - min(self.command.watch.least, self.disk.free())
        return self.command.watch.steps

    def _clear(self) -> None:
        self.disk.leave(None)
        for path in self.disk.folder.iterdir():
            if path.is_dir() and path.name != "lost+found":
                shutil.rmtree(path)
        self.command.start(self.folder)

    def _trial(self, what: str, room: int | None = None, moment: tuple[int, int] | None = None) -> None:
        self._clear()
        self.tally.trials += 1
        if room is not None:
            self.disk.leave(room)
        before, rounds, freed = self.command.acknowledged(self.folder), 0, 0
        while True:
            status, said = self.command.once(self.folder, *(moment if moment and not rounds else ()))
            now = self.command.acknowledged(self.folder)
            if before - now:
                self._problem(what, f"lost: {sorted(before - now)[:3]}")
            before = now
            if status == 0:
                break
            missing = self._sentence(what, status, said)
            if missing is None:
                return
            rounds += 1
            if rounds > 1:  # the second time nothing has changed
                freed += 1
                self.disk.leave(self.disk.free() + missing)
            if freed > MOST_ROUNDS:
                self._problem(what, f"does not end though it was given what it asked for {freed} times: {said[-500:]}")
                return
        if not rounds and room is not None and self.command.name not in RESERVE:  # a reserve is checked early on
            self._problem(what, "ended although there was too little room")
        self.tally.untouched += not rounds
        self.tally.rounds = max(self.tally.rounds, freed)
        found = self.command.fingerprint(self.folder)
        for name in sorted({*self.wanted, *found}):
            if self.wanted.get(name) != found.get(name):
                self._problem(what, f"{name} is not that of the undisturbed run")
        self.progress(f"{self.command.name}: {what}: {rounds} failures, then the same result")

    def _sentence(self, what: str, status: int, said: str) -> int | None:
        """Check how a run on a full disk has ended; return the number of missing bytes, or None after a problem."""
        lines = [line for line in said.splitlines() if line.startswith("error: ")]
        found = _MISSING.search(lines[0]) if lines else None
        halves = [str(path.relative_to(self.folder)) for path in self.folder.rglob("*.partial")]
        if status != 2 or "Traceback" in said or len(lines) != 1 or said.rstrip().splitlines()[-1] != lines[0]:
            self._problem(what, f"status {status}, no single sentence: {said[-2500:]}")
        elif found is None or "does not say" in said:
            self._problem(what, f"does not say how much is missing: {said[-500:]}")
        elif halves:
            self._problem(what, f"left half files: {halves[:3]}")
        else:
            self.tally.sentences += 1
            self.tally.last = lines[0]
            if found[1] is None:
                return 4096
            number = float(found[1].replace(",", ""))
            return int(number * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[found[2]])
        return None

    def _problem(self, what: str, text: str) -> None:
        self.tally.problems.append(f"{self.command.name}: {what}: {text}")


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = (*COMMANDS, LABELS)
    parser.add_argument("--commands", nargs="+", choices=every, default=every)
    parser.add_argument("--sizes", type=int, default=10, help="sizes of the disk, of each command")
    parser.add_argument("--moments", type=int, default=10, help="moments at which the disk is filled, of each command")
    parser.add_argument("--file_system", choices=("tmpfs", "ext4"), default="tmpfs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true", help="print every trial and the last sentence")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the disk is unmounted
    problems = 0
    for name in given.commands:
        work = Path(tempfile.mkdtemp(prefix=f"monai_wscxr-disk-{name}-"))
        try:
            disk = Disk(work / "disk", given.file_system)
        except NoDiskError as error:
            print(f"a small disk cannot be mounted here ({error}); run this as root, where mounting is allowed")
            return 2
        try:
            command = Labelling(work, disk, given.seed) if name == LABELS else Command(name, work, disk, given.seed)
            progress = (lambda line: print(line, flush=True)) if given.verbose else (lambda line: None)
            tally = Filling(command, progress).run(given.sizes, given.moments)
        finally:
            disk.close()
        print(
            f"{name}: {tally.trials} full disks in {tally.seconds:.0f} s, it needs {tally.peak / 1e6:.2f} MB; "
            f"{tally.sentences} runs ended with a sentence, {tally.untouched} had nothing left to write; after at most "
            f"{tally.rounds} rounds, what was asked for sufficed; {len(tally.problems)} problems",
            flush=True,
        )
        if given.verbose:
            print(f"  {tally.last}", flush=True)
        for problem in tally.problems:
            print(f"PROBLEM {problem}", flush=True)
        problems += len(tally.problems)
        shutil.rmtree(work)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
