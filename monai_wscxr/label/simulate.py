"""What labelling the most suspicious images gains over labelling at random, on a data set whose labels are known.

    python -m monai_wscxr.label.simulate DIR OUT

plays an annotator: part of the normal training images are known normals, the others and the abnormal training images are an
archive whose labels are hidden. One abnormal image is labelled to begin with. In every round the first images of the queue get
their true label and the workbench trains again, as a server does it. The test part is scored after every round; nothing is
chosen by it. Every draw plays all strategies from the same beginning. A stopped run goes on with the same command.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from tqdm import tqdm

from monai_wscxr.data.datalist import by_path, load_datalist
from monai_wscxr.errors import InputError
from monai_wscxr.evaluation.metrics import auroc
from monai_wscxr.label.archive.studies import Label, UnknownImage
from monai_wscxr.label.ranking import STRATEGIES, score_images
from monai_wscxr.label.workbench import Workbench
from monai_wscxr.system.atomic import write_text_atomic

Item = dict[str, Any]


class HiddenLabels:
    """`Studies` in memory: items whose true label only the simulated annotator looks at.

    Args:
        items: datalist items.
        source: what these studies are called.
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
        """Nothing comes or goes."""

    def ids(self) -> list[str]:
        """In the order of the items."""
        return list(self.items)

    def name(self, image_id: str) -> str:
        """The file's name."""
        return Path(self._item(image_id)["image"]).name

    def file(self, image_id: str) -> Path:
        """The image."""
        return Path(self._item(image_id)["image"])

    def patient(self, image_id: str) -> str:
        """As the datalist says."""
        return self._item(image_id)["patient"]

    def labels(self) -> Mapping[str, Label]:
        """What has been answered."""
        return dict(self._labels)

    def put(self, image_id: str, label: Label | None) -> None:
        """Keep an answer."""
        self._labels.pop(image_id, None)
        if label is not None:
            self._labels[image_id] = label

    def keep_results(self, image_id: str, results: Mapping[str, bytes]) -> list[str]:
        """Nothing is kept."""
        return []

    def results(self, image_id: str) -> dict[str, Path]:
        """Nothing is kept."""
        return {}


def deal(training: Sequence[Item], archive_normal: int, seed: int) -> tuple[list[Item], list[Item], Item]:
    """Known normals, archive and first labelled abnormal image of one draw; patients stay together.

    Args:
        training: items of the training part.
        archive_normal: normal images in the archive; as close to it as whole patients allow.
        seed: of the draw.

    Raises:
        InputError: without an abnormal image, or when fewer than two normal patients would be known.
    """
    draw = random.Random(f"simulate:{seed}")
    patients: dict[str, list[Item]] = {}
    for item in sorted((i for i in training if i["label"] == 0), key=by_path):
        patients.setdefault(item["patient"], []).append(item)
    names = sorted(patients)
    draw.shuffle(names)
    archive: list[Item] = []
    while names and len(archive) < archive_normal:
        archive += patients[names.pop()]
    abnormal = sorted((i for i in training if i["label"] == 1), key=by_path)
    if not abnormal or len(names) < 2:
        raise InputError(
            f"{len(abnormal)} abnormal training images and known normals of {len(names)} patients; a simulation needs at "
            "least one and two. Lower --archive_normal"
        )
    first = draw.choice(abnormal)
    archive += abnormal
    draw.shuffle(archive)
    return [item for name in names for item in patients[name]], archive, first


def play(
    strategy: str, training: Sequence[Item], test: Sequence[Item], folder: Path, settings: Mapping[str, Any], seed: int
) -> list[dict[str, Any]]:
    """One draw with one strategy: figures after each round, the first of them with one labelled abnormal image."""
    known, archive, first = deal(training, settings["archive_normal"], seed)
    datalist = folder.with_suffix(".json")
    write_text_atomic(datalist, json.dumps({"training": known}))
    studies = HiddenLabels(archive, f"{folder.name}")
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
        model = bench.predict(asked[0]).model
        scores = [scored.anomaly_score for scored in score_images(model, features, extractor.grid)]
        votes = studies.labels().values()
        rounds.append(
            {
                "round": number,
                "auroc": auroc(labels, scores),
                "labelled": len(votes),
                "abnormal_found": sum(vote.label == 1 for vote in votes),
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
    """All draws of all strategies; returns `results.md`.

    Args:
        dataset_dir: folder or datalist with a training and a test part, both with abnormal images.
        output_dir: new, or of the same simulation to go on.
        settings: "strategies", "rounds", "per_round", "draws", "archive_normal" (None: half of them), "options" of
            `train.yaml`.
        command: for the record.

    Raises:
        InputError: when the data set or a setting does not allow it, or the folder holds another simulation.
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
    plays = [(seed, strategy) for seed in range(settings["draws"]) for strategy in settings["strategies"]]
    for seed, strategy in tqdm(plays, desc="simulation", unit="play", mininterval=0.1 if sys.stderr.isatty() else 30):
        name = f"{strategy}-{seed}"
        if name not in record["rounds"]:
            record["rounds"][name] = play(strategy, lists["training"], lists["test"], folder / name, settings, seed)
            write_text_atomic(path, json.dumps(record, indent=1))
    write_text_atomic(folder / "results.svg", chart(record))
    write_text_atomic(folder / "results.md", table(record, command))
    return folder / "results.md"


def _figures(record: Mapping[str, Any], strategy: str, key: str) -> np.ndarray:
    """[draws, rounds] of one figure; a draw whose archive ran out keeps its last figure."""
    found = [
        [r[key] for r in rounds] for name, rounds in record["rounds"].items() if name.rpartition("-")[0] == strategy
    ]
    longest = max(map(len, found))
    return np.array([row + [row[-1]] * (longest - len(row)) for row in found], dtype=float)


def table(record: Mapping[str, Any], command: str) -> str:
    """The results as Markdown."""
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
    """SVG: AUROC over rounds, mean and range of each strategy."""
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


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m monai_wscxr.label.simulate", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("dataset_dir", metavar="DIR", help="folder or datalist with training and test part")
    parser.add_argument("output_dir", metavar="OUT", help="new, or of the same simulation to go on")
    parser.add_argument("--strategies", default="most_suspicious,random")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--per_round", type=int, default=1, metavar="N", help="images labelled per round")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument(
        "--archive_normal", type=int, metavar="N", help="normal images in the archive; default: half of them"
    )
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE", help="an option of train.yaml")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING)
    values = {}
    for text in options.set:
        name, _, value = text.partition("=")
        values[name] = yaml.safe_load(value)
    settings = {
        "strategies": options.strategies.split(","),
        "rounds": options.rounds,
        "per_round": options.per_round,
        "draws": options.draws,
        "archive_normal": options.archive_normal,
        "options": values,
    }
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        path = simulate(
            options.dataset_dir, options.output_dir, settings, f"python -m monai_wscxr.label.simulate {' '.join(given)}"
        )
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
