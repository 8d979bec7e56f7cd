"""Kills trainings (SIGKILL) at random moments and checks that they always end at the same model.

    python -m tests.fuzz.killing --kills 100

A training on a few phantoms is run once undisturbed. Then it is run again and again from nothing, feature cache included: each
process of a run is killed, and the next one goes on, until one comes to its end. Half of the kills come after a random
time, half before or after a random step: a call of `os.fsync` or `os.replace`, where files change hands, or a stage of the
training, however short. Ends with status 1 unless every run ended at the model, the epoch states and the cached features of
the undisturbed one, byte for byte, and left no half file.

Processes are forked from one that has imported everything but computed nothing, so a life takes a second instead of ten.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import mmap
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

CONFIG = Path(__file__).parents[2] / "bundles" / "wscxr_chest_xray" / "configs" / "train.yaml"
OPTIONS = {
    "backbone": "timm/test_resnet",
    "image_size": 64,
    "k": 1,
    "epochs": 6,
    "min_batches": 40,
    "false_positive_rate": 0.3,
    "progress": False,
    "device": "cpu",
    "extractor#shard_images": 4,
    "extractor#batch_size": 4,
}
STAGES = ("start", "extraction", "shard", "mining", "training", "state", "model", "end")


@dataclass
class Kill:
    """One kill: in which run, after how many seconds or at which step, and what was going on."""

    run: int
    when: str
    stage: str


@dataclass
class Tally:
    """What became of the runs."""

    kills: list[Kill] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    lives: int = 0
    seconds: float = 0.0

    @property
    def stages(self) -> dict[str, int]:
        """Number of kills in each stage."""
        found = collections.Counter(kill.stage for kill in self.kills)
        return {stage: found[stage] for stage in STAGES if found[stage]}


class Whiteboard:
    """What a child tells its parent, and what is left when it is killed: its stage and its count of steps."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 16)

    def wipe(self) -> None:
        """Before a life."""
        self.memory[:] = bytes(16)

    @property
    def stage(self) -> str:
        """What the child was doing last."""
        return STAGES[self.memory[0]]

    @stage.setter
    def stage(self, name: str) -> None:
        self.memory[0] = STAGES.index(name)

    @property
    def steps(self) -> int:
        """Steps begun or ended."""
        return int.from_bytes(self.memory[8:16], "little")

    @steps.setter
    def steps(self, count: int) -> None:
        self.memory[8:16] = count.to_bytes(8, "little")


class Killing:
    """Lives and deaths of trainings.

    Args:
        work: folder for everything.
        seed: of the moments.
    """

    def __init__(self, work: Path, seed: int = 0) -> None:
        self.work, self.draw = work, random.Random(seed)
        self.board = Whiteboard()
        self.data, self.weights = work / "data", work / "weights.pth"
        self.tally = Tally()

    def prepare(self) -> None:
        """Phantoms and weights, made in a child: this process must not compute before it forks."""
        import monai_wscxr.data.transforms
        import monai_wscxr.training.artefact_handler
        import monai_wscxr.training.mining_handler  # noqa: F401

        def make() -> None:
            import timm
            import torch

            from monai_wscxr.data.phantom import write_phantoms

            write_phantoms(self.data, 20, 1, 0, 0, size=64, progress=False)
            torch.manual_seed(0)
            torch.save(timm.create_model("test_resnet").state_dict(), self.weights)

        if self._child(make):
            raise SystemExit("the phantoms could not be made")

    def _child(self, what: Callable[[], Any], log: Path | None = None) -> int:
        """Status of a forked process, negative for a signal."""
        return os.waitstatus_to_exitcode(os.waitpid(self._fork(what, log), 0)[1])

    def _fork(self, what: Callable[[], Any], log: Path | None) -> int:
        process = os.fork()
        if process:
            return process
        status = 1
        try:
            if log is not None:
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

    def train(self, folder: Path, kill_at: int | None) -> None:
        """In a child: the training of one life; SIGKILL at step `kill_at`."""
        from monai.bundle import create_workflow

        os.environ["MONAI_WSCXR_CACHE"] = str(folder / "cache")
        self._watch(kill_at)
        self.board.stage = "start"
        workflow = create_workflow(
            config_file=str(CONFIG),
            workflow_type="train",
            run_id="training",
            logging_file=False,
            dataset_dir=str(self.data),
            output_dir=str(folder / "run"),
            weights=str(self.weights),
            **OPTIONS,
        )
        workflow.run()
        workflow.finalize()
        self.board.stage = "end"

    def _watch(self, kill_at: int | None) -> None:
        """Note stages and count steps; the training itself is not touched."""
        from monai_wscxr.bank.cache import FeatureCache
        from monai_wscxr.features.extraction import PatchExtractor
        from monai_wscxr.training import artefact_handler as result
        from monai_wscxr.training import banks
        from monai_wscxr.training import epoch_handlers as epochs
        from monai_wscxr.training.run_folder import RunFolder

        board = self.board

        def staged(owner: Any, name: str, stage: str, after: str | None = None) -> None:
            inner = getattr(owner, name)

            def call(*arguments: Any, **options: Any) -> Any:
                before, board.stage = board.stage, stage
                self._step(kill_at)
                found = inner(*arguments, **options)
                self._step(kill_at)
                board.stage = after or before
                return found

            setattr(owner, name, call)

        staged(PatchExtractor, "bank", "extraction")
        staged(FeatureCache, "write", "shard")
        staged(banks, "mine", "mining")
        staged(epochs.EpochStateHandler, "resume", "training", "training")
        staged(RunFolder, "save_state", "state")
        staged(result, "save_model", "model")

        def counted(name: str) -> None:
            inner = getattr(os, name)

            def call(*arguments: Any, **options: Any) -> Any:
                self._step(kill_at)
                found = inner(*arguments, **options)
                self._step(kill_at)
                return found

            setattr(os, name, call)

        counted("fsync")
        counted("replace")

    def _step(self, kill_at: int | None) -> None:
        self.board.steps += 1
        if self.board.steps == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def life(self, folder: Path, seconds: float | None = None, step: int | None = None) -> bool:
        """One process of a run, killed after so many seconds or at that step; whether it came to its end."""
        self.board.wipe()
        self.tally.lives += 1
        folder.mkdir(parents=True, exist_ok=True)
        process = self._fork(lambda: self.train(folder, step), folder / "log")
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                break
            if deadline is not None and time.monotonic() >= deadline:
                os.kill(process, signal.SIGKILL)
                deadline = None
            time.sleep(0.002)
        code = os.waitstatus_to_exitcode(status)
        if code not in (0, -signal.SIGKILL):
            self.tally.problems.append(f"{folder.name}: ended with {code}: {(folder / 'log').read_text()[-1500:]}")
        return code != -signal.SIGKILL

    def run(self, kills: int, progress: bool = True) -> Tally:
        """Kill so many times; every run comes to its end."""
        began = time.monotonic()
        self.prepare()
        first = self.work / "undisturbed"
        started = time.monotonic()
        self.life(first)
        whole, steps = time.monotonic() - started, self.board.steps
        if self.tally.problems:
            return self.tally
        wanted = fingerprint(first)
        number = 0
        while len(self.tally.kills) < kills and not self.tally.problems:
            number += 1
            folder = self.work / f"run_{number:04d}"
            self._one_run(folder, number, kills, whole, steps)
            found = fingerprint(folder) if not self.tally.problems else {}
            self.tally.hashes.append(model_hash(folder))
            for name in sorted({*wanted, *found}):
                if wanted.get(name) != found.get(name):
                    self.tally.problems.append(f"{folder.name}: {name} is not that of the undisturbed run")
            if not self.tally.problems:
                shutil.rmtree(folder)
            if progress:
                print(
                    f"run {number}: {len(self.tally.kills)} kills so far, model {self.tally.hashes[-1][:12]}",
                    flush=True,
                )
        self.tally.seconds = time.monotonic() - began
        return self.tally

    def _one_run(self, folder: Path, number: int, kills: int, whole: float, steps: int) -> None:
        while True:
            last = len(self.tally.kills) >= kills
            seconds = step = None
            if not last and self.draw.random() < 0.5:
                seconds = self.draw.uniform(0, whole)
            elif not last:
                step = self.draw.randint(1, steps)
            if self.life(folder, seconds, step):
                return
            when = f"{seconds:.3f} s" if step is None else f"step {step}"
            self.tally.kills.append(Kill(number, when, self.board.stage))


def model_hash(folder: Path) -> str:
    """Hash of the weights as the artefact names it; empty without one."""
    path = folder / "run" / "artefact.json"
    return json.loads(path.read_text())["model_sha256"] if path.exists() else ""


def fingerprint(folder: Path) -> dict[str, str]:
    """Digests of what must not depend on kills: model, states of the epochs, cached features, names of all other files."""
    found = {"model_sha256": model_hash(folder)}
    for path in sorted((folder / "run").rglob("*")):
        if path.suffix == ".pt":
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.is_file():
            found[str(path.relative_to(folder))] = ""
    found["features"] = _features(folder / "cache")
    return found


def _features(cache: Path) -> str:
    """Digest of the cached features by image, however they are spread over shards."""
    from safetensors import safe_open

    by_image = {}
    for path in cache.rglob("*.safetensors"):
        with safe_open(path, framework="np") as shard:
            for digest, rows in zip(json.loads(shard.metadata()["digests"]), shard.get_tensor("features"), strict=True):
                by_image[digest] = hashlib.sha256(rows.tobytes()).hexdigest()
    return hashlib.sha256(json.dumps(by_image, sort_keys=True).encode()).hexdigest()


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="work in this folder and leave it")
    given = parser.parse_args()
    work = given.keep or Path(tempfile.mkdtemp(prefix="monai_wscxr-killing-"))
    try:
        tally = Killing(work, given.seed).run(given.kills)
    finally:
        if given.keep is None:
            shutil.rmtree(work, ignore_errors=True)
    for kill in tally.kills:
        print(f"run {kill.run}: killed at {kill.when}, {kill.stage}")
    print(f"{len(tally.kills)} kills in {tally.lives} lives, {tally.seconds:.0f} s; by stage: {tally.stages}")
    print(f"{len(tally.hashes)} runs ended, models: {', '.join(sorted(set(tally.hashes)))}")
    for problem in tally.problems:
        print(f"PROBLEM {problem}")
    return 1 if tally.problems else 0


if __name__ == "__main__":
    sys.exit(main())
