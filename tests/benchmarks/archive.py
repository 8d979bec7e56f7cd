"""A large archive as features: mined and trained on within a limit of resident memory, beside the plan's prediction.

    python tests/benchmarks/archive.py FOLDER [--images 100000] [--limit 4e9] [--epochs 1] [--runs 1] [--keep]

Writes a bank of IMAGES x 64 rows x 320 channels (float32; 8.2 GB for 100,000 images) into FOLDER, plans, then runs what a
training runs on features: mining, whitening statistics, discriminator, distance weight. FOLDER needs twice the bank's size.
Exit status 1 when memory exceeds the limit, or when wall time, processor time or memory of all stages together are outside the
ranges of the plan in more than one of ten runs (--runs; of a single run, when one of them is).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor
from tqdm import tqdm

from monai_wscxr.bank.feature_bank import FeatureBank
from monai_wscxr.bank.folder import BankFolder
from monai_wscxr.bank.rows import row_blocks
from monai_wscxr.model.mining import mine
from monai_wscxr.model.networks import Discriminator
from monai_wscxr.model.whitening import NormalWhitening
from monai_wscxr.planning.plan import RANGES, Plan, Stage, plan_training
from monai_wscxr.system.memory import peak_memory, reset_peak_memory, resident_memory
from monai_wscxr.training.epoch_handlers import DistanceHandler, ThreadsHandler
from monai_wscxr.training.once import trainer_on_banks

GRID, CHANNELS, SHARD = (8, 8), 320, 1000


def features(number: int, images: int, shift: float = 0.0) -> Tensor:
    """Features [images, 64, 320] like a network's: few directions vary a lot, no number is negative."""
    common = torch.Generator().manual_seed(0)
    mixing, mean = torch.randn(48, CHANNELS, generator=common), 2 * torch.rand(CHANNELS, generator=common)
    own = torch.Generator().manual_seed(1 + number)
    latent = torch.randn(images * 64, 48, generator=own)
    rows = mean + latent @ mixing * 0.2 + 0.2 * torch.randn(images * 64, CHANNELS, generator=own)
    rows[::7] += shift
    return rows.clamp_(min=0).reshape(images, 64, CHANNELS)


def write_archive(folder: Path, images: int) -> BankFolder:
    """The bank, shard by shard; goes on where it was."""
    bank = BankFolder(folder) if folder.exists() else BankFolder.create(folder, {"generated": True}, GRID, CHANNELS)
    done = {entry.file for entry in bank.entries}
    for first in tqdm(range(len(done) * SHARD, images, SHARD), desc="generating", mininterval=10):
        count = min(SHARD, images - first)
        bank.add([f"{first + i:032x}" for i in range(count)], features(first, count))
    return bank


def forget(bank: BankFolder) -> None:
    """Drop a bank from the system's cache: it starts on the disk, as one that was made last week."""
    for entry in bank.entries:
        with (bank.path / entry.file).open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Measured:
    """Stages with their wall time, processor time and peak memory."""

    def __init__(self) -> None:
        self.stages: dict[str, dict[str, float]] = {}

    def __call__(self, name: str, function):
        reset_peak_memory()
        wall, cpu = time.perf_counter(), time.process_time()
        result = function()
        self.stages[name] = {
            "seconds": time.perf_counter() - wall,
            "cpu_seconds": time.process_time() - cpu,
            "memory": peak_memory(),
        }
        return result


def train(normal, mined: Tensor, abnormal: FeatureBank, epochs: int) -> Discriminator:
    """Train as train.yaml does, on a whitened bank."""
    torch.manual_seed(0)
    discriminator = Discriminator(CHANNELS)
    options = {"batch_size": 512, "min_batches": 120, "epochs": epochs, "device": "cpu"}
    trainer = trainer_on_banks(discriminator, normal.rows, mined, options)
    trainer.state.banks = SimpleNamespace(normal=normal, abnormal=abnormal)
    DistanceHandler(discriminator, 0.6, 0.25).attach(trainer)
    ThreadsHandler(discriminator, 512).attach(trainer)
    trainer.run()
    return discriminator


def run(archive: BankFolder, abnormal: FeatureBank, folder: Path, epochs: int) -> dict[str, dict[str, float]]:
    """Mine, whiten and train on an archive; return the stages with their costs."""
    forget(archive)
    normal, measured, whitening = archive.bank(), Measured(), NormalWhitening(CHANNELS)
    mined = measured("mining", lambda: mine(normal, abnormal, 0.5))

    def statistics():
        whitening.fit(normal.rows, 1.0)
        return normal.changed(whitening.into, folder)

    white = measured("statistics", statistics)
    others = abnormal.changed(whitening.into)
    trained = measured("training", lambda: train(white, whitening(mined.bank.rows), others, epochs))
    weight = float(torch.cat([p.detach().flatten() for p in trained.parameters()]).norm())
    print(json.dumps({"mined": len(mined.bank), "weight_norm": weight, "stages": measured.stages}), flush=True)
    return measured.stages


def compare(plan: Plan, stages: dict[str, dict[str, float]]) -> list[tuple[str, str, bool]]:
    """Print what was planned beside what was measured; return (stage, quantity, within the range that was promised)."""
    totals = {q: sum(s[q] for s in stages.values()) for q in ("seconds", "cpu_seconds")}
    totals["memory"] = max(s["memory"] for s in stages.values())
    rows: list[tuple[str, Stage | Plan, dict[str, float]]] = [(s.name, s, stages[s.name]) for s in plan.stages]
    rows.append(("all", plan, totals))
    print(f"{'stage':<12}{'quantity':<14}{'planned':>10}{'range':>20}{'measured':>10}{'ratio':>8}")
    kept = []
    for name, planned, found in rows:
        for quantity, unit, by in (("seconds", "s ", 1), ("cpu_seconds", "s ", 1), ("memory", "GB", 1e9)):
            low, high = planned.expected(quantity)
            ours, theirs = getattr(planned, quantity), found[quantity]
            within = low <= theirs <= high
            kept.append((name, quantity, within))
            print(
                f"{name:<12}{quantity:<14}{ours / by:>7.2f} {unit}{low / by:>9.2f} to {high / by:>7.2f}"
                f"{theirs / by:>8.2f} {unit}{theirs / ours:>6.2f}{'' if within else '  outside'}"
            )
    return kept


def main() -> int:
    """Generate, plan, run, compare; as often as asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--abnormal", type=int, default=16)
    parser.add_argument("--limit", type=float, default=4e9, help="bytes of resident memory")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--runs", type=int, default=1, help="plans and runs, to see how often the ranges hold")
    parser.add_argument("--keep", action="store_true", help="leave the bank in FOLDER")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    folder = options.folder / "archive"
    archive = write_archive(folder, options.images)
    abnormal = FeatureBank.from_images(
        features(10**6, options.abnormal, 0.7), [f"abnormal {i}" for i in range(options.abnormal)], GRID
    )
    shape = archive.bank().rows.shape
    print(f"{options.images:,} images, {shape[0]:,} rows x {CHANNELS}: {4 * shape[0] * CHANNELS / 1e9:.2f} GB")
    print(f"resident before: {resident_memory() / 1e9:.2f} GB", flush=True)

    kept: dict[tuple[str, str], list[bool]] = {}
    most = 0.0
    for _ in range(options.runs):
        sample = next(row_blocks(archive.bank().rows, 65536))
        budget = min(int(options.limit / 2), 4 * shape[0] * CHANNELS)  # the bank stays on the disk
        stages = plan_training(*shape, GRID, len(abnormal), budget, options.epochs, sample=sample, folder=folder)
        del sample
        measured = run(archive, abnormal, folder, options.epochs)
        for name, quantity, within in compare(Plan(stages, *shape, False), measured):
            kept.setdefault((name, quantity), []).append(within)
        most = max(most, *(stage["memory"] for stage in measured.values()))
    held = {f"{name} {quantity}": sum(list_) / len(list_) for (name, quantity), list_ in kept.items()}
    print(json.dumps({"runs": options.runs, "share of runs within the range": held}))
    if not options.keep:
        shutil.rmtree(folder)
    return 0 if most <= options.limit and all(held[f"all {q}"] >= 0.9 for q in RANGES["all"]) else 1


if __name__ == "__main__":
    sys.exit(main())
