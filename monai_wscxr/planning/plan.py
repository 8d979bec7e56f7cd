"""What a training will cost: time, memory and disk of each stage, from a short calibration on this machine.

Every stage is linear in the number of images (or of bank rows) beyond a fixed part. So each is run for a moment on a small
part of the data, by the functions that run it in a training, and the measured cost is scaled up.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monai_wscxr.bank.feature_bank import BankOnDisk, FeatureBank
from monai_wscxr.bank.rows import BLOCK_ROWS, FileRows, RowsOnDisk, row_blocks, scratch_rows
from monai_wscxr.bank.search import plan_search
from monai_wscxr.features.extraction import PatchExtractor
from monai_wscxr.model.mixing import LOT_BYTES
from monai_wscxr.model.networks import Discriminator
from monai_wscxr.model.whitening import NormalWhitening
from monai_wscxr.ops import mined_count
from monai_wscxr.ops.min_distance import nothing_found, search_block
from monai_wscxr.planning.timing import Cost, timed
from monai_wscxr.system.memory import available_memory, peak_memory, reset_peak_memory, resident_memory
from monai_wscxr.training.distance import distance_weight
from monai_wscxr.training.epoch_handlers import ThreadsHandler
from monai_wscxr.training.once import trainer_on_banks

_SLICE_ROWS = 8 * BLOCK_ROWS
_STEPS = 512  # at least, in a training that is timed: its start must not count much

# What a run takes, divided by what is planned: these ranges held in nine of ten runs or more (tests/benchmarks/archive.py,
# docs/scale.md). "stage" is for a single one, "all" for all together, whose errors partly cancel.
RANGES = {
    "all": {"seconds": (0.7, 1.6), "cpu_seconds": (0.75, 1.35), "memory": (0.85, 1.2)},
    "stage": {"seconds": (0.5, 2.2), "cpu_seconds": (0.55, 1.8), "memory": (0.8, 1.25)},
}


@dataclass
class Stage:
    """One stage of a training.

    Attributes:
        name: of the stage.
        seconds: wall time on this machine under its present load.
        cpu_seconds: processor time over all threads; it hardly depends on the load.
        memory: resident bytes of the process at the peak of this stage.
        disk: bytes that are written and kept until the training ends.
        note: remark for the table.
    """

    name: str
    seconds: float
    cpu_seconds: float
    memory: int
    disk: int = 0
    note: str = ""

    def expected(self, quantity: str) -> tuple[float, float]:
        """Return the range of "seconds", "cpu_seconds" or "memory" that nine of ten runs keep to."""
        low, high = RANGES["stage"][quantity]
        return low * getattr(self, quantity), high * getattr(self, quantity)


@dataclass
class Plan:
    """The stages of a training and the assumptions behind them.

    Attributes:
        stages: in the order in which they run.
        rows, channels: of the normal bank.
        in_memory: True when the bank fits into `bank_memory`.
        assumptions: sentences for the reader.
    """

    stages: list[Stage]
    rows: int
    channels: int
    in_memory: bool
    assumptions: list[str] = field(default_factory=list)

    @property
    def memory(self) -> int:
        """Peak memory over all stages, bytes."""
        return max(stage.memory for stage in self.stages)

    @property
    def seconds(self) -> float:
        """Wall time of a training: of all stages but the prediction."""
        return sum(stage.seconds for stage in self._training())

    @property
    def cpu_seconds(self) -> float:
        """Processor time of a training: of all stages but the prediction."""
        return sum(stage.cpu_seconds for stage in self._training())

    def expected(self, quantity: str) -> tuple[float, float]:
        """Return the range of "seconds", "cpu_seconds" or "memory" of a training that nine of ten runs keep to."""
        low, high = RANGES["all"][quantity]
        return low * getattr(self, quantity), high * getattr(self, quantity)

    def _training(self) -> list[Stage]:
        return [stage for stage in self.stages if stage.name != "prediction"]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; "expected" holds the ranges."""
        stages = [
            {**asdict(stage), "expected": {quantity: stage.expected(quantity) for quantity in RANGES["stage"]}}
            for stage in self.stages
        ]
        totals = {quantity: getattr(self, quantity) for quantity in RANGES["all"]}
        expected = {quantity: self.expected(quantity) for quantity in RANGES["all"]}
        return {**asdict(self), "stages": stages, **totals, "expected": expected}

    def table(self) -> str:
        """Return a table for the terminal."""
        lines = [f"{'stage':<22}{'time':>12}{'processor':>12}{'memory':>12}{'disk':>12}"]
        for s in self.stages:
            disk = f"{s.disk / 1e9:.2f} GB" if s.disk else "-"
            lines.append(
                f"{s.name:<22}{_duration(s.seconds):>12}{_duration(s.cpu_seconds):>12}{s.memory / 1e9:>9.2f} GB{disk:>12}"
                + (f"  {s.note}" if s.note else "")
            )
        wall, cpu, memory = (self.expected(quantity) for quantity in ("seconds", "cpu_seconds", "memory"))
        lines.append(
            f"a training, in nine of ten runs: {_duration(wall[0])} to {_duration(wall[1])}, processor "
            f"{_duration(cpu[0])} to {_duration(cpu[1])}, memory {memory[0] / 1e9:.2f} to {memory[1] / 1e9:.2f} GB"
        )
        where = "in memory" if self.in_memory else "on disk"
        lines.append(f"bank: {self.rows:,} rows of {self.channels} channels, {where} while training")
        lines += [f"- {sentence}" for sentence in self.assumptions]
        return "\n".join(lines)


def plan_extraction(extractor: PatchExtractor, images: int, sample: Sequence[str]) -> list[Stage]:
    """Plan the stages "reading" and "network" for images like those of a sample.

    Args:
        extractor: extractor of the training; nothing is written.
        images: number of images.
        sample: at least one readable image file.
    """
    transform, threads = extractor.transform, torch.get_num_threads()
    on_cpu = extractor.device.type == "cpu"
    torch.set_num_threads(1)
    reading = timed(lambda: [transform({"image": file}) for file in sample]) * (1 / len(sample))
    torch.set_num_threads(threads)
    image = transform({"image": sample[0]})["image"]
    items = [{"file": sample[0], "image": image}] * (4 * threads if on_cpu else 2 * extractor.batch_size)
    base = resident_memory()
    reset_peak_memory()
    network = timed(lambda: list(extractor.run(items)), 2.0) * (1 / len(items))
    working = peak_memory() - base
    shards = 4 * extractor.shard_images * extractor.image_bytes  # being filled, stacked, and two being written
    shards = min(shards, 4 * images * extractor.image_bytes)
    memory = base + working + shards
    # on a CPU decoding shares the cores with the network; beside a GPU it hides behind it, or the other way round
    wall = (
        network.seconds + reading.cpu / threads
        if on_cpu
        else max(network.seconds, reading.cpu / extractor.read_threads)
    )
    return [
        Stage("reading", reading.cpu / threads * images if on_cpu else 0.0, reading.cpu * images, base),
        Stage(
            "network",
            (wall - (reading.cpu / threads if on_cpu else 0.0)) * images,
            network.cpu * images,
            memory,
            images * extractor.image_bytes,
            "reading overlaps with it",
        ),
    ]


def plan_training(
    rows: int,
    channels: int,
    grid: tuple[int, int],
    query_rows: int,
    bank_memory: int,
    epochs: int = 5,
    batch_size: int = 512,
    min_batches: int = 120,
    retention: float = 0.5,
    sample: Tensor | None = None,
    folder: str | Path | None = None,
    whiten: bool = True,
) -> list[Stage]:
    """Plan the stages "mining", "statistics" and "training" on a float32 bank.

    Args:
        rows: of the normal bank.
        channels: C.
        grid: (h, w) of one image.
        query_rows: rows of the abnormal bank.
        bank_memory: bytes for the normal bank.
        epochs, batch_size, min_batches, retention: of the training.
        sample: [n, C] rows like those of the bank; None takes random ones.
        folder: where a bank on disk would lie; None takes a temporary folder.
        whiten: whether features are whitened.
    """
    size = 4 * rows * channels
    in_memory = 2 * size <= bank_memory
    count = min(rows, _SLICE_ROWS)
    generator = torch.Generator().manual_seed(0)
    if sample is None:
        sample = torch.rand(count, channels, generator=generator)
    sample = sample[:count].float()
    # queries are other rows than those of the bank: near copies of bank rows would be found with less work
    held = max(1, len(sample) // 8)
    piece = (sample[:-held] if len(sample) > held else sample).contiguous()
    scale = rows / len(piece)
    others = sample[-held:]
    query = others[torch.randint(len(others), (query_rows,), generator=generator)]
    query = query + 0.1 * others.std() * torch.randn(query.shape, generator=generator)
    mined = query[: mined_count(query_rows, retention)]
    base = resident_memory()
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        path = Path(temporary) / "rows"
        path.write_bytes(piece.view(torch.uint8).numpy().data)
        source = FileRows([RowsOnDisk(path, 0, len(piece))], torch.tensor([[0, 0, len(piece)]]), channels, piece.dtype)
        # the first block brings the bounds down, later ones profit from them
        found = search_block(query, piece, *nothing_found(query))
        first = timed(lambda: search_block(query, piece, *nothing_found(query)))
        later = timed(lambda: search_block(query, piece, *found, len(piece)))
        mining = first + later * (scale - 1)
        if not in_memory:
            # read in a thread of its own, from the disk: an archive is seldom in the system's cache when a training starts
            reading = timed(lambda: _read_from_disk(source, path)) * scale
            beside = mining.seconds + reading.cpu / torch.get_num_threads()
            mining = Cost(max(beside, reading.seconds), mining.cpu + reading.cpu)

        whitening = NormalWhitening(channels)
        fit = timed(lambda: whitening.fit(piece if in_memory else source, 1.0))
        if in_memory:
            changed = torch.empty_like(piece)
            change = timed(lambda: whitening.into(piece, changed))
        else:
            # all are kept: the first half gigabyte is quick, a whole bank is as slow as what follows
            kept: list[FileRows] = []
            runs = min(20, math.ceil(scale))
            change = timed(
                lambda: kept.append(scratch_rows(source, whitening.into, Path(temporary))), math.inf, most_runs=runs
            )
            del kept
        statistics = (fit + change) * scale if whiten else Cost(0, 0)

        step, order = _training_costs(piece if in_memory else source, mined, batch_size, channels)
        per_pass = max(1, rows // batch_size)
        passes = epochs * -(-min_batches // per_pass)
        distance = _distance_cost(piece if in_memory else source, grid) * rows
    training = (step * per_pass + order * scale) * passes + distance * epochs

    codes = rows * (-(-channels // 4) * 4 + 64)
    if in_memory:
        provenance = 8 * rows
        memory = [
            base + size + provenance + codes,
            base + size + provenance,  # whitened where it is
            base + size + provenance + 16 * rows,
        ]
    else:
        found_by = plan_search(query_rows, rows, channels, torch.float32)
        search_memory = found_by.peak_bytes
        if found_by.blocks == 1:  # the second buffer is never filled
            search_memory -= size
        blocks = 6 * BLOCK_ROWS * channels * 4
        lots = 4 * LOT_BYTES + 32 * rows  # rows gathered twice over, and the order of all rows
        memory = [base + search_memory, base + blocks + 8 * 3 * channels**2, base + lots]
    return [
        Stage("mining", mining.seconds, mining.cpu, memory[0], 0, f"{query_rows:,} abnormal rows"),
        Stage("statistics", statistics.seconds, statistics.cpu, memory[1], 0 if in_memory or not whiten else size),
        Stage("training", training.seconds, training.cpu, memory[2], 0, f"{passes} passes of {per_pass:,} batches"),
    ]


def _read_from_disk(source: FileRows, path: Path) -> None:
    """Read all rows from the disk; their pages are dropped from the system's cache first, on systems that allow it."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    for _ in row_blocks(source):
        pass


def _training_costs(source: Tensor | FileRows, mined: Tensor, batch_size: int, channels: int) -> tuple[Cost, Cost]:
    """Time one step of the bundle's own trainer, gathering included, and the ordering of the rows of `source`."""
    options = {"batch_size": batch_size, "min_batches": _STEPS, "epochs": 1, "device": "cpu"}
    discriminator = Discriminator(channels)
    trainer = trainer_on_banks(discriminator, source, mined, options)
    ThreadsHandler(discriminator, batch_size).attach(trainer)
    rows = source.shape[0]
    order = timed(lambda: torch.randperm(rows))
    return timed(trainer.run, 2.0) * (1 / (trainer.state.epoch_length or 1)), order


def _distance_cost(source: Tensor | FileRows, grid: tuple[int, int]) -> Cost:
    """Time what `DistanceHandler` does after an epoch, for one row of the bank."""
    patches = grid[0] * grid[1]
    images = source.shape[0] // patches
    names = [str(number) for number in range(images)]
    bank: FeatureBank | BankOnDisk
    if isinstance(source, Tensor):
        whole = source[: images * patches].reshape(images, patches, -1)
        bank = FeatureBank.from_images(whole, names, grid)
    else:
        pieces = torch.tensor([[0, 0, images * patches]])
        bank = BankOnDisk(FileRows(source.files, pieces, source.shape[1], source.dtype), tuple(names), grid)
    discriminator = Discriminator(source.shape[1])
    return timed(lambda: distance_weight(discriminator, bank, 1, 1.0, 0.25, spread=1.0)) * (1 / (images * patches))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def make_plan(
    extractor: PatchExtractor,
    images: int,
    sample: Sequence[str],
    abnormal: int = 16,
    epochs: int = 5,
    bank_memory: int | None = None,
    holdout: float = 0.15,
    copies: int = 2,
    copied_normals: int = 200,
    opacities: int = 1,
    start: Cost | None = None,
) -> Plan:
    """Plan a training; takes about half a minute.

    Args:
        extractor: see `PatchExtractor`.
        images: number of normal images.
        sample: image files like those of the archive.
        abnormal: number of abnormal images.
        epochs: of the training.
        bank_memory: bytes for the normal bank; None takes half of what is free.
        holdout: share of the normal images that does not enter the bank.
        copies, copied_normals: number of altered copies, and of images of the bank that have them; copies pass the network too.
        opacities: number of copies of each of these images with a synthetic opacity.
        start: cost of starting a program with these libraries; None leaves it out.
    """
    budget = available_memory() // 2 if bank_memory is None else bank_memory
    channels, (h, w) = extractor.features.channels, extractor.grid
    inside = images - round(holdout * images)
    rows = inside * h * w
    passing = images + abnormal + (copies + opacities) * min(copied_normals, inside)
    extraction = plan_extraction(extractor, passing, sample)
    stages = [*extraction]
    image = extractor.transform({"image": sample[0]})["image"]
    _, features = next(extractor.run([{"file": sample[0], "image": image}]))
    generator = torch.Generator().manual_seed(0)
    count = min(rows, _SLICE_ROWS)
    like = features[torch.randint(len(features), (count,), generator=generator)]
    like = like + features.std() * 0.3 * torch.randn(like.shape, generator=generator)
    root = None if extractor.cache is None else extractor.cache.folder
    stages += plan_training(rows, channels, (h, w), abnormal * h * w, budget, epochs, sample=like, folder=root)
    held_out = (images - inside) * extractor.image_bytes
    for stage in stages[len(extraction) :]:
        stage.memory += held_out * 2
    per_image = sum(stage.seconds for stage in extraction) / passing
    if start is not None:
        stages.insert(
            0, Stage("start", start.seconds, start.cpu, extraction[0].memory, 0, "imports, as of this command")
        )
    stages.append(
        Stage(
            "prediction",
            1000 * per_image,
            1000 * sum(stage.cpu_seconds for stage in extraction) / passing,
            extraction[-1].memory,
            0,
            "per 1,000 images, without pictures and maps",
        )
    )
    size = sum(Path(file).stat().st_size for file in sample) / len(sample)
    assumptions = [
        f"the network is executed by {extractor.network.text}",
        f"images like the {len(sample)} of the sample ({size / 1e3:.0f} kB each), read from a disk that keeps up",
        f"{torch.get_num_threads()} threads; time scales with what else runs here, processor time hardly does",
        f"{abnormal} abnormal images, {epochs} epochs, {holdout:.0%} of the normal images held out (in memory, whitened), "
        f"{passing - images - abnormal} altered copies and opacities",
        f"a bank stays in memory up to half of {budget / 1e9:.1f} GB; on disk it is whitened into a second file",
        "mining was timed on rows like the sample's; rows of which many are nearly equal take longer",
    ]
    return Plan(stages, rows, channels, 8 * rows * channels <= budget, assumptions)
