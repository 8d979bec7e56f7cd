"""Fuzzing of prediction runs with files that are well-formed but lie, in folders with odd names, links, pipes and permissions.

    python -m tests.fuzz.structured --count 10000

Half of the inputs are found in a folder, half are named on the command line; every third run asks for DICOM results. The
exit status is 1 when a run ends with an error, an input has no row, a rejected row has no reason, or a process uses more than
twice the stated memory limit. Files on which a decoder crashed, hung or ran out of memory are listed and kept in the folder for
temporary files.
"""

from __future__ import annotations

import argparse
import collections
import csv
import json
import os
import shutil
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.fuzz.fuzzing import SECONDS, PeakMemory, Tally, tiny_model
from tests.fuzz.structures import files

_PREFIXES = (
    "", "", "", "=1+1 ", "+", "-", "@", "\t", "\n", "\r", "'", '"', ",", ";", "ü", "日本", "a b", "..", "~",
    "$HOME", "`id`", "<b>", "%00",
    "\\", "..\\..\\", "CON", "*", "?", "\u202e", "\ufeff", "\udcff\udcfe", "x" * 180, "é" * 90, "--output",
    "1.2.840.", "#", "\x1b[31m", "\x7f",
)  # fmt: skip


def fuzz(count: int, seed: int, workers: int = 2, chunk: int = 250) -> Tally:
    """Make files, predict them and delete them.

    Args:
        count: number of inputs.
        seed: of all random choices.
        workers: number of worker processes.
        chunk: inputs per prediction run.
    """
    from monai_wscxr.data.radiograph.base import GATES, MEMORY_LIMIT, REASON_CODES
    from monai_wscxr.prediction.options import Options
    from monai_wscxr.prediction.run import predict

    generator = np.random.default_rng(seed)
    tally, began = Tally(), time.perf_counter()
    with tempfile.TemporaryDirectory() as place, PeakMemory() as memory:
        root = Path(place)
        tiny_model(root / "model")
        for run, first in enumerate(range(0, count, chunk)):
            names, folder = _write(root / "in", min(chunk, count - first), first, generator)
            options = Options(
                model=str(root / "model"),
                paths=(str(folder), *(name for name in names if not name.startswith(str(folder)))),
                output=str(root / "out"),
                maps="none",
                overlays=False,
                report=run % 4 == 0,
                dicom=run % 3 == 0,
                workers=workers,
                seconds=SECONDS,
                overwrite=True,
                progress=False,
                device="cpu",
                allow=GATES if run % 2 else (),
            )
            try:
                predict(options)
                _count(root / "out", names, tally, REASON_CODES, options.dicom)
            except Exception:
                tally.problems.append(f"run {run}: {traceback.format_exc()[-3000:]}")
            _remove(root / "in")
        tally.peak = memory.largest
    tally.seconds = time.perf_counter() - began
    if tally.peak > 2 * MEMORY_LIMIT:
        tally.problems.append(f"a process used {tally.peak} bytes; the stated limit is {MEMORY_LIMIT}")
    return tally


def _write(place: Path, count: int, first: int, generator: np.random.Generator) -> tuple[list[str], Path]:
    """Write inputs; returns the names that must have a row, and the folder that is searched."""
    folder, single = place / "searched", place / "named"
    for path in (folder / "a" / "b", folder / "=1", single):
        path.mkdir(parents=True)
    names = []
    for number in range(first, first + count):
        searched = generator.random() < 0.5
        where = (folder, folder / "a" / "b", folder / "=1")[int(generator.integers(3))] if searched else single
        suffix, data = files(generator)
        prefix = _PREFIXES[int(generator.integers(len(_PREFIXES)))]
        if searched:  # the name decides there, and hidden files are left out
            suffix = (
                suffix if suffix in (".png", ".jpg", ".jpeg", ".nii", ".nii.gz", ".dcm", ".dicom", ".ima") else ".png"
            )
            prefix = prefix.lstrip(".")
        elif generator.random() < 0.2:
            suffix = ("", ".1", ".PNG", ".dcm.", ".exe", ".Dcm")[int(generator.integers(6))]
        path = where / f"{prefix}{number:06d}{suffix}"
        _place(path, data, single / "targets", generator)
        names.append(str(path))
    (folder / "circle").symlink_to(folder)
    (folder / ".hidden").mkdir()
    (folder / "notes.txt").write_text("no image")
    return names, folder


def _place(path: Path, data: bytes, targets: Path, generator: np.random.Generator) -> None:
    """Put an input where it belongs: as a file, or as something that is not one."""
    special: list[Callable[[], object]] = [
        lambda: os.mkfifo(path),
        lambda: _socket(path),
        lambda: path.symlink_to(path),
        lambda: path.symlink_to("nowhere"),
        lambda: path.symlink_to("/dev/zero"),
        lambda: path.symlink_to("/dev/null"),
        lambda: _linked(path, data, targets, path.symlink_to),
        lambda: _linked(path, data, targets, path.hardlink_to),
        lambda: _sparse(path, data),
        lambda: (path.write_bytes(data), path.chmod(0)),
        lambda: path.write_bytes(data[: int(generator.integers(4))]),
    ]
    if generator.random() < 0.08:
        special[int(generator.integers(len(special)))]()
    else:
        path.write_bytes(data)


def _socket(path: Path) -> None:
    """Leave a socket behind; its address is short, so it is made in its folder."""
    with tempfile.TemporaryDirectory(dir="/tmp") as short, socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{short}/s")
        os.rename(f"{short}/s", path)


def _linked(path: Path, data: bytes, targets: Path, link: Callable[[Path], None]) -> None:
    targets.mkdir(exist_ok=True)
    target = targets / str(len(os.listdir(targets)))
    target.write_bytes(data)
    link(target)


def _sparse(path: Path, data: bytes) -> None:
    """A file of 8 GiB that takes no room."""
    path.write_bytes(data)
    os.truncate(path, 2**33)


def _remove(place: Path) -> None:
    for path in place.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
    shutil.rmtree(place)


def _count(out: Path, names: list[str], tally: Tally, codes: tuple[str, ...], dicom: bool) -> None:
    from monai_wscxr.prediction.inputs import shown
    from monai_wscxr.report.dicom_header import REASONS
    from monai_wscxr.report.predictions import unescape_cell

    with open(out / "predictions.csv", newline="", encoding="utf-8") as file:
        table = [{**row, "file": unescape_cell(row["file"])} for row in csv.DictReader(file)]
    rows = {row["file"]: row for row in table}
    described = json.loads((out / "predictions.json").read_text(encoding="utf-8"))["predictions"]
    hungry = {entry["file"] for entry in described if "needs more memory" in entry.get("message", "")}
    tally.inputs += len(names)
    if not len(rows) == len(table) == len(names) == len(described):
        tally.problems.append(f"{len(names)} inputs, {len(table)} rows, {len(rows)} names, {len(described)} entries")
    for name in names:
        row = rows.get(shown(name))
        if row is None or (row["status"] == "rejected") != (row["reason"] in codes):
            tally.problems.append(f"{name!r}: {row}")
            continue
        if row["status"] == "ok" and (bool(row["reason"]) and not (dicom and row["reason"] in REASONS)):
            tally.problems.append(f"{name!r}: {row}")
        tally.reasons[row["reason"] if row["status"] == "rejected" else f"ok {row['reason']}".strip()] += 1
        if row["reason"] in ("crashed", "too_slow") or shown(name) in hungry:
            tally.lost.append(f"{Path(name).name!r}: {row['reason']}")
            if Path(name).is_file() and os.path.getsize(name) < 2**28:
                shutil.copy(name, tempfile.gettempdir())


def main() -> int:
    """Run the command and print the outcome."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    tally = fuzz(options.count, options.seed, options.workers)
    print(
        f"{tally.inputs} inputs in {tally.seconds:.0f} s, at most {tally.peak / 2**20:.0f} MiB for one process beyond its start"
    )
    for reason, number in collections.Counter(tally.reasons).most_common():
        print(f"{number:>7} {reason}")
    for name in tally.lost:
        print(f"crashed, too slow or out of memory: {name}, kept in {tempfile.gettempdir()}")
    print("\n".join(tally.problems) or "every input has its row; no problem")
    return 1 if tally.problems else 0


if __name__ == "__main__":
    sys.exit(main())
