"""Simulated labelling: what labelling the most suspicious images gains over labelling at random.

On a data set with known labels, part of the normal training images are known normal images. The others and the abnormal
training images form an archive whose labels are hidden from the workbench. One abnormal image is labelled at the start. In
every round the first images of the queue get their true label, and the workbench trains again, as a server does. The test part
is scored after every round; nothing is chosen by it. In each repetition all strategies start from the same random split.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from monai_wscxr.data.datalist import Item, by_path, load_datalist
from monai_wscxr.errors import InputError
from monai_wscxr.evaluation.metrics import auroc
from monai_wscxr.label.archive.studies import Label, UnknownImage
from monai_wscxr.label.ranking import STRATEGIES, score_images
from monai_wscxr.label.workbench import Workbench
from monai_wscxr.system.atomic import write_text_atomic
from monai_wscxr.system.progress import counted


class HiddenLabels:
    """`Studies` in memory, whose true labels only the simulated annotator reads.

    Args:
        items: datalist items.
        source: name of the studies.
    """

    def __init__(self, items: Sequence[Item], source: str) -> None:
        self.source = source
        self.items = {f"{number:06d}": item for number, item in enumerate(items)}
        self._labels: dict[str, Label] = {}

    def _item(self, image_id: str) -> Item:
        if image_id not in self.items:
            raise UnknownImage(image_id)
        return self.items[image_id]

    def refresh(self) -> None:
        """Do nothing: the images are fixed."""

    def ids(self) -> list[str]:
        """Return the ids in the order of the items."""
        return list(self.items)

    def name(self, image_id: str) -> str:
        """Return the file's name."""
        return Path(self._item(image_id)["image"]).name

    def file(self, image_id: str) -> Path:
        """Return the image file."""
        return Path(self._item(image_id)["image"])

    def patient(self, image_id: str) -> str:
        """Return the patient named in the datalist."""
        return self._item(image_id)["patient"]

    def labels(self) -> Mapping[str, Label]:
        """Return the labels given so far."""
        return dict(self._labels)

    def put(self, image_id: str, label: Label | None) -> None:
        """Store a label, or withdraw it with None."""
        self._labels.pop(image_id, None)
        if label is not None:
            self._labels[image_id] = label

    def keep_results(self, image_id: str, results: Mapping[str, bytes]) -> list[str]:
        """Store nothing."""
        return []

    def results(self, image_id: str) -> dict[str, Path]:
        """Return nothing, as no results are stored."""
        return {}


def split_archive(training: Sequence[Item], archive_normal: int, seed: int) -> tuple[list[Item], list[Item], Item]:
    """Split training images at random into known normal images and an archive, and choose the first image to label.

    Args:
        training: items of the training part.
        archive_normal: number of normal images for the archive; whole patients are added until it is reached.
        seed: seed of the split.

    Returns:
        Known normal images, archive, and the abnormal image of the archive that is labelled first.

    Raises:
        InputError: without an abnormal image, or when the known normal images come from fewer than two patients.
    """
    generator = random.Random(f"simulate:{seed}")
    patients: dict[str, list[Item]] = {}
    for item in sorted((i for i in training if i["label"] == 0), key=by_path):
        patients.setdefault(item["patient"], []).append(item)
    names = sorted(patients)
    generator.shuffle(names)
    archive: list[Item] = []
    while names and len(archive) < archive_normal:
        archive += patients[names.pop()]
    abnormal = sorted((i for i in training if i["label"] == 1), key=by_path)
    if not abnormal or len(names) < 2:
        raise InputError(
            f"there are {len(abnormal)} abnormal training images, and known normal images of {len(names)} patients; a "
            "simulation needs at least 1 and 2: lower --archive_normal or add images"
        )
    first = generator.choice(abnormal)
    archive += abnormal
    generator.shuffle(archive)
    return [item for name in names for item in patients[name]], archive, first


def label_in_rounds(
    strategy: str, training: Sequence[Item], test: Sequence[Item], folder: Path, settings: Mapping[str, Any], seed: int
) -> list[dict[str, Any]]:
    """Simulate one repetition with one strategy.

    Args:
        strategy: strategy of the queue.
        training: items of the training part.
        test: items of the test part.
        folder: work folder; created and removed.
        settings: see `simulate`.
        seed: seed of the split and of all trainings.

    Returns:
        Results of each round; round 0 is the state with one abnormal image labelled.
    """
    known, archive, first = split_archive(training, settings["archive_normal"], seed)
    datalist = folder.with_suffix(".json")
    write_text_atomic(datalist, json.dumps({"training": known}))
    studies = HiddenLabels(archive, folder.name)
    shutil.rmtree(folder, ignore_errors=True)
    bench = Workbench(studies, folder, datalist, options=settings["options"], seed=seed)
    bench.refresh()
    extractor = bench.trainer.extractor
    used, features, _ = extractor.usable([item["image"] for item in test], "test")
    labels = [item["label"] for item in test if item["image"] in set(used)]
    by_file = {item["image"]: image_id for image_id, item in studies.items.items()}
    asked = [by_file[first["image"]]]
    rounds = []
    for number in range(settings["rounds"] + 1):
        for image_id in asked:
            item = studies.items[image_id]
            bench.set_label(image_id, item["label"], item["class"] if item["label"] else None)
        began, cpu = time.perf_counter(), time.process_time()
        bench.train()
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        model = bench.scores.model
        assert model is not None
        scores = [scored.anomaly_score for scored in score_images(model, features, extractor.grid)]
        given = studies.labels().values()
        rounds.append(
            {
                "round": number,
                "auroc": auroc(labels, scores),
                "labelled": len(given),
                "abnormal_found": sum(label.label == 1 for label in given),
                "seconds": seconds,
                "cpu_seconds": cpu,
            }
        )
        asked = [entry["id"] for entry in bench.queue(strategy, settings["per_round"])]
        if not asked:
            break
    bench.close()
    shutil.rmtree(folder, ignore_errors=True)
    return rounds


def simulate(dataset_dir: str, output_dir: str, settings: Mapping[str, Any], command: str = "") -> Path:
    """Simulate all repetitions of all strategies, and write the results as table and chart.

    What an earlier, interrupted call with the same settings finished is not simulated again.

    Args:
        dataset_dir: folder or datalist with a training and a test part, both with abnormal images.
        output_dir: new folder, or the folder of the same simulation to continue.
        settings: "strategies" (names), "rounds", "per_round" (images labelled per round), "draws" (repetitions),
            "archive_normal" (normal images in the archive; None takes half of them), "options" (of `train.yaml`).
        command: command line for the record.

    Returns:
        Path of `results.md`.

    Raises:
        InputError: when the data set or a setting does not allow a simulation, or the folder holds another one.
    """
    unknown = [name for name in settings["strategies"] if name not in STRATEGIES]
    if unknown or min(settings["rounds"], settings["per_round"], settings["draws"]) < 1:
        raise InputError(
            f"strategies are {', '.join(STRATEGIES)}; rounds, images per round and draws must be at least 1"
        )
    lists = load_datalist(dataset_dir)
    normals = sum(item["label"] == 0 for item in lists["training"])
    settings = {
        **settings,
        "archive_normal": normals // 2 if settings["archive_normal"] is None else settings["archive_normal"],
    }
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "simulation.json"
    record: dict[str, Any] = {"dataset_dir": str(dataset_dir), "settings": dict(settings), "rounds": {}}
    if path.is_file():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        if any(earlier[name] != record[name] for name in ("dataset_dir", "settings")):
            raise InputError(f"{folder} holds a simulation with other settings; choose another folder")
        record = earlier
    runs = [(seed, strategy) for seed in range(settings["draws"]) for strategy in settings["strategies"]]
    for seed, strategy in counted(runs, "simulation", unit="run"):
        name = f"{strategy}-{seed}"
        if name not in record["rounds"]:
            record["rounds"][name] = label_in_rounds(
                strategy, lists["training"], lists["test"], folder / name, settings, seed
            )
            write_text_atomic(path, json.dumps(record, indent=1))
    write_text_atomic(folder / "results.svg", chart(record))
    write_text_atomic(folder / "results.md", table(record, command))
    return folder / "results.md"


def _figures(record: Mapping[str, Any], strategy: str, key: str) -> NDArray[np.float64]:
    """Collect one figure as [repetitions, rounds]; a repetition whose archive ran out keeps its last value."""
    found = [
        [r[key] for r in rounds] for name, rounds in record["rounds"].items() if name.rpartition("-")[0] == strategy
    ]
    longest = max(map(len, found))
    return np.array([row + [row[-1]] * (longest - len(row)) for row in found], dtype=float)


def table(record: Mapping[str, Any], command: str) -> str:
    """Format the results as Markdown."""
    settings = record["settings"]
    strategies = settings["strategies"]
    head = [f"{s}: AUROC mean (lowest to highest) | abnormal labelled" for s in strategies]
    lines = ["| round | labelled | " + " | ".join(head) + " |", "|" + "---|" * (2 + 2 * len(strategies))]
    values = {s: (_figures(record, s, "auroc"), _figures(record, s, "abnormal_found")) for s in strategies}
    labelled = _figures(record, strategies[0], "labelled")
    for number in range(labelled.shape[1]):
        cells = []
        for scores, found in values.values():
            column = scores[:, number]
            cells.append(
                f"{column.mean():.3f} ({column.min():.3f} to {column.max():.3f}) | {found[:, number].mean():.1f}"
            )
        lines.append(f"| {number} | {labelled[:, number].mean():.0f} | " + " | ".join(cells) + " |")
    seconds = np.concatenate([_figures(record, s, "seconds").ravel() for s in strategies])
    cpu = np.concatenate([_figures(record, s, "cpu_seconds").ravel() for s in strategies])
    lines += [
        "",
        f"{settings['draws']} draws, {settings['per_round']} image(s) labelled per round, {settings['archive_normal']} normal "
        f"images in the archive. Retraining and ranking again: median {np.median(seconds):.1f} s, highest {seconds.max():.1f} "
        f"s; processor time {np.median(cpu):.1f} s.",
        "",
        "![AUROC over rounds](results.svg)",
        "",
        f"`{command}`; options {settings['options'] or 'defaults'}; {torch.get_num_threads()} threads.",
        "",
    ]
    return "\n".join(lines)


_COLOURS = ("#0072b2", "#d55e00", "#009e73")


def chart(record: Mapping[str, Any]) -> str:
    """Draw AUROC over rounds as SVG, with mean and range of each strategy."""
    strategies = record["settings"]["strategies"]
    values = {s: _figures(record, s, "auroc") for s in strategies}
    low = np.floor(20 * min(v.min() for v in values.values())) / 20
    last = max(v.shape[1] for v in values.values()) - 1

    def at(number: int, value: float) -> str:
        return f"{50 + 430 * number / max(last, 1):.1f} {270 - 240 * (value - low) / (1 - low):.1f}"

    parts = [
        '<rect width="640" height="320" fill="white"/>',
        '<text x="50" y="18">AUROC of test images; band: all draws</text>',
    ]
    for step in range(6):
        value = low + (1 - low) * step / 5
        parts.append(f'<path d="M{at(0, value)}H480" stroke="#ddd"/>')
        parts.append(f'<text x="44" y="{270 - 48 * step + 4}" text-anchor="end">{value:.2f}</text>')
    parts += [f'<text x="{at(n, low).split()[0]}" y="288" text-anchor="middle">{n}</text>' for n in range(0, last + 1)]
    parts.append('<text x="265" y="310" text-anchor="middle">rounds of labelling</text>')
    for number, (strategy, scores) in enumerate(values.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        top = [at(n, v) for n, v in enumerate(scores.max(0))]
        bottom = [at(n, v) for n, v in enumerate(scores.min(0))][::-1]
        mean = [at(n, v) for n, v in enumerate(scores.mean(0))]
        dash = ("", "6 3", "2 3")[number % 3]
        line = f'stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}" fill="none"'
        parts.append(f'<path d="M{"L".join(top + bottom)}Z" fill="{colour}" opacity="0.15"/>')
        parts.append(f'<path d="M{"L".join(mean)}" {line}/>')
        y = 40 + 24 * number
        parts.append(f'<path d="M490 {y}H516" {line}/><text x="522" y="{y + 4}">{strategy.replace("_", " ")}</text>')
    style = 'font-family="sans-serif" font-size="12" fill="#222"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 320" {style}>{"".join(parts)}</svg>\n'
