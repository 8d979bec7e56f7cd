"""Fuzzing of prediction runs with broken files.

    python -m tests.fuzz.fuzzing --count 10000

Every tenth file is a broken version of a whole radiograph, the others of crops. The exit status is 1 when an input has no row,
a rejected row has no reason, or a process uses more than twice the stated memory limit. Files on which a decoder crashed, hung
or ran out of memory are listed and kept in the folder for temporary files.
"""

from __future__ import annotations

import argparse
import collections
import csv
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.fuzz.mutations import large_seeds, mutate, small_seeds

SECONDS = 10.0


@dataclass
class Tally:
    """Outcomes of the inputs.

    Attributes:
        inputs: number of files.
        reasons: number of rows by reason code; "ok" for predicted files.
        problems: violated promises, as sentences.
        lost: files on which a decoder crashed, hung or ran out of memory.
        peak: largest memory of one process beyond its start, in bytes.
        seconds: duration.
    """

    inputs: int = 0
    reasons: collections.Counter[str] = field(default_factory=collections.Counter)
    problems: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    peak: int = 0
    seconds: float = 0.0


class PeakMemory:
    """Peak resident memory (Linux) of any descendant process, beyond its peak when first seen."""

    def __init__(self) -> None:
        self._first: dict[int, int] = {}
        self.largest = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            for pid in _descendants(os.getpid()):
                peak = _peak(pid)
                self.largest = max(self.largest, peak - self._first.setdefault(pid, peak))


def _descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    children.setdefault(int(file.read().rpartition(")")[2].split()[1]), []).append(int(entry))
            except (OSError, ValueError, IndexError):
                continue
    found, waiting = [], [root]
    while waiting:
        more = children.get(waiting.pop(), [])
        found += more
        waiting += more
    return found


def _peak(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/status") as file:
            return next((int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:")), 0)
    except OSError:
        return 0


def tiny_model(folder: Path) -> None:
    """Write an untrained but complete model with a network of a few thousand weights."""
    import torch

    from monai_wscxr.data.preprocessing import Preprocessing
    from monai_wscxr.features.backbones import create_backbone
    from monai_wscxr.features.patches import PatchFeatures
    from monai_wscxr.model.artefact import save_model
    from monai_wscxr.model.calibration import calibrate
    from monai_wscxr.model.networks import Discriminator, WSCXRNet

    torch.manual_seed(0)
    backbone = create_backbone("timm/test_resnet", ("3",), weights="none")
    features = PatchFeatures(backbone, 3)
    network = WSCXRNet(features, Discriminator(features.channels)).eval()
    calibration = calibrate([0.1 * i for i in range(19)], [3.0])
    folder.mkdir(parents=True)
    save_model(folder, network, Preprocessing(64, backbone.mean, backbone.std), calibration, 2.0, {}, {})


def fuzz(count: int, seed: int, workers: int = 2, large_share: float = 0.1, chunk: int = 250) -> Tally:
    """Make and predict broken files and delete them.

    Args:
        count: number of files.
        seed: of the mutations.
        workers: number of worker processes.
        large_share: share of broken versions of whole radiographs.
        chunk: files per prediction run.
    """
    from monai_wscxr.data.radiograph.base import GATES, MEMORY_LIMIT, REASON_CODES
    from monai_wscxr.prediction.options import Options
    from monai_wscxr.prediction.run import predict

    generator = np.random.default_rng(seed)
    small, large = small_seeds(), large_seeds() if large_share else {}
    tally, began = Tally(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, PeakMemory() as memory:
        root = Path(folder)
        tiny_model(root / "model")
        for first in range(0, count, chunk):
            names = _write(root / "in", min(chunk, count - first), first, generator, small, large, large_share)
            options = Options(
                model=str(root / "model"),
                paths=tuple(names),
                output=str(root / "out"),
                maps="none",
                overlays=False,
                report=False,
                workers=workers,
                seconds=SECONDS,
                overwrite=True,
                progress=False,
                device="cpu",
                allow=GATES if first // chunk % 2 else ("other_body_part",),  # RG3 is a hand
            )
            predict(options)
            _count(root / "out", names, tally, REASON_CODES)
            for name in names:
                os.unlink(name)
        tally.peak = memory.largest
    tally.seconds = time.perf_counter() - began
    if tally.peak > 2 * MEMORY_LIMIT:
        tally.problems.append(f"a process used {tally.peak} bytes; the stated limit is {MEMORY_LIMIT}")
    return tally


def _write(
    folder: Path,
    count: int,
    first: int,
    generator: np.random.Generator,
    small: dict[str, bytes],
    large: dict[str, bytes],
    large_share: float,
) -> list[str]:
    folder.mkdir(exist_ok=True)
    names = []
    for number in range(count):
        chosen = large if large and generator.random() < large_share else small
        name = sorted(chosen)[int(generator.integers(len(chosen)))]
        path = folder / f"{first + number:06d}-{name}"
        path.write_bytes(mutate(chosen[name], name, generator))
        names.append(str(path))
    return names


def _count(folder: Path, names: list[str], tally: Tally, codes: tuple[str, ...]) -> None:
    with open(folder / "predictions.csv", newline="", encoding="utf-8") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    described = json.loads((folder / "predictions.json").read_text(encoding="utf-8"))["predictions"]
    hungry = {entry["file"] for entry in described if "needs more memory" in entry.get("message", "")}
    tally.inputs += len(names)
    for name in names:
        row = rows.get(name)
        if row is None or (row["status"] == "rejected") != (row["reason"] in codes) or len(rows) != len(names):
            tally.problems.append(f"{Path(name).name}: {row}")
        else:
            tally.reasons[row["reason"] or "ok"] += 1
            if row["reason"] in ("crashed", "too_slow") or name in hungry:
                tally.lost.append(Path(name).name)
                shutil.copy(name, tempfile.gettempdir())


def main() -> int:
    """Run the command and print the outcome."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    tally = fuzz(options.count, options.seed, options.workers)
    print(
        f"{tally.inputs} inputs in {tally.seconds:.0f} s, at most {tally.peak / 2**20:.0f} MiB for one process beyond its start"
    )
    for reason, number in tally.reasons.most_common():
        print(f"{number:>7} {reason}")
    for name in tally.lost:
        print(f"crashed, too slow or out of memory: {name}, kept in {tempfile.gettempdir()}")
    print("\n".join(tally.problems) or "every input has its row; no problem")
    return 1 if tally.problems else 0


if __name__ == "__main__":
    sys.exit(main())
