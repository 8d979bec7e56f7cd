"""A large archive as features: mined and trained on within a limit of resident memory, beside the plan's prediction.

    python tests/benchmarks/archive.py FOLDER [--images 100000] [--limit 4e9] [--epochs 1] [--keep]

Writes a bank of IMAGES x 64 rows x 320 channels (float32; 8.2 GB for 100,000 images) into FOLDER, plans, then runs what a
training runs on features: mining, whitening statistics, discriminator, distance weight. FOLDER needs twice the bank's size.
Exit status 1 when memory exceeds the limit or time or memory are more than 20 % away from the plan.
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
from monai_wscxr.planning.plan import plan_training
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
    for entry in bank.entries:  # it starts on the disk, as one that was made last week
        with (folder / entry.file).open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return bank


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


def main() -> int:
    """Generate, plan, run, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--abnormal", type=int, default=16)
    parser.add_argument("--limit", type=float, default=4e9, help="bytes of resident memory")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="leave the bank in FOLDER")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    folder = options.folder / "archive"
    archive = write_archive(folder, options.images)
    normal = archive.bank()
    abnormal = FeatureBank.from_images(
        features(10**6, options.abnormal, 0.7), [f"abnormal {i}" for i in range(options.abnormal)], GRID
    )
    sample = next(row_blocks(normal.rows, 65536))
    planned = plan_training(
        *normal.rows.shape, GRID, len(abnormal), int(options.limit / 2), options.epochs, sample=sample, folder=folder
    )
    del sample
    print(f"{options.images:,} images, {len(normal):,} rows x {CHANNELS}: {4 * len(normal) * CHANNELS / 1e9:.2f} GB")
    print(f"resident before: {resident_memory() / 1e9:.2f} GB", flush=True)

    measured, whitening = Measured(), NormalWhitening(CHANNELS)
    mined = measured("mining", lambda: mine(normal, abnormal, 0.5))

    def statistics():
        whitening.fit(normal.rows, 1.0)
        return normal.changed(whitening.into, folder)

    white = measured("statistics", statistics)
    others = abnormal.changed(whitening.into)
    trained = measured("training", lambda: train(white, whitening(mined.bank.rows), others, options.epochs))

    within = True
    print(f"{'stage':<12}{'quantity':<14}{'planned':>10}{'measured':>10}{'ratio':>8}")
    for stage in planned:
        for quantity, unit, by in (("seconds", "s", 1), ("cpu_seconds", "s", 1), ("memory", "GB", 1e9)):
            ours, theirs = getattr(stage, quantity) / by, measured.stages[stage.name][quantity] / by
            print(f"{stage.name:<12}{quantity:<14}{ours:>8.2f} {unit:<2}{theirs:>8.2f} {unit:<2}{theirs / ours:>6.2f}")
    totals = {q: sum(s[q] for s in measured.stages.values()) for q in ("seconds", "cpu_seconds")}
    for quantity, total in totals.items():
        ours = sum(getattr(stage, quantity) for stage in planned)
        print(f"{'all':<12}{quantity:<14}{ours:>8.2f} s {total:>8.2f} s {total / ours:>6.2f}")
    most, expected = max(s["memory"] for s in measured.stages.values()), max(stage.memory for stage in planned)
    print(f"{'all':<12}{'memory':<14}{expected / 1e9:>8.2f} GB{most / 1e9:>8.2f} GB{most / expected:>6.2f}")
    ratio = totals["cpu_seconds"] / sum(stage.cpu_seconds for stage in planned)
    within = most <= options.limit and abs(ratio - 1) <= 0.2 and abs(most / expected - 1) <= 0.2
    weight = float(torch.cat([p.detach().flatten() for p in trained.parameters()]).norm())
    print(json.dumps({"within": within, "mined": len(mined.bank), "weight_norm": weight, "stages": measured.stages}))
    if not options.keep:
        shutil.rmtree(folder)
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
