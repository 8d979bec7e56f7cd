"""Simulated labelling: what the order in which images are labelled gains over labelling at random.

On a data set with known labels, part of the normal training images are known normal images. The others and the abnormal
training images form an archive whose labels are hidden from the workbench. One abnormal image is labelled at the start. In
every round the first images of the queue get their true label, and the workbench trains again, as a server does. The test part
is scored after every round; nothing is chosen by it. In each draw all strategies start from the same random split, so their
results can be compared pair by pair.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_wscxr.data.datalist import Item, by_path, load_datalist
from monai_wscxr.errors import InputError
from monai_wscxr.evaluation.metrics import auroc
from monai_wscxr.label.archive.studies import Label, UnknownImage
from monai_wscxr.label.ranking import score_images
from monai_wscxr.label.simulation_figures import charts, measured_rounds, table
from monai_wscxr.label.strategies import STRATEGIES
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
    measured = measured_rounds(settings)
    for number in range(settings["rounds"] + 1):
        for image_id in asked:
            item = studies.items[image_id]
            bench.set_label(image_id, item["label"], item["class"] if item["label"] else None)
        following = [entry["id"] for entry in bench.queue("random", settings["per_round"])]
        if strategy == "random" and following and number not in measured:  # its order needs no model
            asked = following
            continue
        began, cpu = time.perf_counter(), time.process_time()
        bench.train()
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        if strategy != "random":
            following = [entry["id"] for entry in bench.queue(strategy, settings["per_round"])]
        asked = following
        if following and number not in measured:
            continue
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
                "ran_out": not asked,
            }
        )
        if not asked:
            break
    bench.close()
    shutil.rmtree(folder, ignore_errors=True)
    return rounds


def _fixed(record: Mapping[str, Any]) -> list[Any]:
    """Return what all runs of a simulation must share."""
    free = ("strategies", "draws", "every")
    return [record["dataset_dir"], {name: value for name, value in record["settings"].items() if name not in free}]


def _finished(rounds: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> bool:
    """Tell whether a run has reached its end, and has all rounds that are measured."""
    found = {row["round"] for row in rounds}
    last = max(found, default=-1)
    ended = last == settings["rounds"] or any(row["ran_out"] for row in rounds)
    return ended and found >= {number for number in measured_rounds(settings) if number <= last}


def simulate(dataset_dir: str, output_dir: str, settings: Mapping[str, Any], command: str = "") -> Path:
    """Simulate all repetitions of all strategies, and write the results as table and chart.

    What an earlier call with the same settings finished is not simulated again, also one of fewer draws or strategies.

    Args:
        dataset_dir: folder or datalist with a training and a test part, both with abnormal images.
        output_dir: new folder, or the folder of the same simulation to continue.
        settings: "strategies" (names), "rounds", "per_round" (images labelled per round), "draws" (repetitions), "every" (one
            round in so many is measured, and the last one; labelling at random trains for no other),
            "archive_normal" (normal images in the archive; None takes half of them), "options" (of `train.yaml`).
        command: command line for the record.

    Returns:
        Path of `results.md`, with charts beside it.

    Raises:
        InputError: when the data set or a setting does not allow a simulation, or the folder holds another one.
    """
    unknown = [name for name in settings["strategies"] if name not in STRATEGIES]
    if unknown or min(settings[name] for name in ("rounds", "per_round", "draws", "every")) < 1:
        raise InputError(
            f"strategies are {', '.join(STRATEGIES)}; rounds, images per round, draws and every must be at least 1"
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
        if _fixed(earlier) != _fixed(record):
            raise InputError(f"{folder} holds a simulation with other settings; choose another folder")
        record["rounds"] = earlier["rounds"]
    runs = [(seed, strategy) for seed in range(settings["draws"]) for strategy in settings["strategies"]]
    for seed, strategy in counted(runs, "simulation", unit="run"):
        name = f"{strategy}-{seed}"
        if not _finished(record["rounds"].get(name, []), settings):
            record["rounds"][name] = label_in_rounds(
                strategy, lists["training"], lists["test"], folder / name, settings, seed
            )
            write_text_atomic(path, json.dumps(record, indent=1))
    for name, drawn in charts(record).items():
        write_text_atomic(folder / name, drawn)
    write_text_atomic(folder / "results.md", table(record, command))
    return folder / "results.md"
