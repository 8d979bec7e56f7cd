"""A workbench without a neural network, for tests of the page: real pictures and labels, scores by a simple rule.

The score of a radiograph is its difference from the mean of all, plus its similarity to the images labelled abnormal. That is
just enough for a ranking that changes with the labels.

To look at the page, run `python -m tests.helpers.fake_workbench FOLDER_WITH_PNG_FILES` and open 127.0.0.1:8000/wscxr/.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import numpy as np
import uvicorn
from fastapi import FastAPI
from PIL import Image
from scipy import ndimage

from monai_wscxr.data.encoding import encode_png
from monai_wscxr.label.archive.studies import Refused, UnknownImage
from monai_wscxr.label.page import router
from monai_wscxr.report.overlay import colour_map

HELD_OUT = 39
WHY = {
    "varied": "Suspicious, and unlike the images labelled so far",
    "random": "Drawn at random",
    "most_uncertain": "Near the operating point",
}
STAGES = ("features", "mining", "training", "scoring")


def phantom_files(folder: Path) -> list[Path]:
    """List the radiographs in a folder, without the masks that `phantom` writes next to them."""
    return [file for file in sorted(folder.rglob("*.png")) if "masks" not in file.parts]


class FakeWorkbench:
    def __init__(self, files: list[Path], model: bool = True, read_only: bool = False, seconds: float = 0.4) -> None:
        self.read_only, self.seconds, self.fails = read_only, seconds, False
        self.drift = False
        self.files = {f"{file.stem}.{i:03d}": file for i, file in enumerate(files)}
        self.unreadable: dict[str, tuple[str, str]] = {}
        self.pixels: dict[str, np.ndarray] = {}
        for image_id, file in self.files.items():
            try:
                with Image.open(file) as image:
                    self.pixels[image_id] = np.asarray(image.convert("L"), np.float64) / 255
            except OSError:
                self.unreadable[image_id] = ("undecodable", "The file is no image that can be decoded.")
        self.labels: dict[str, tuple[int | None, str | None, bool]] = {}
        self.seen: dict[str, tuple[int | None, str | None, bool]] = {}
        self.model: dict | None = None
        self.scores: dict[str, float] = {}
        self.maps: dict[str, np.ndarray] = {}
        self.ranks_before: dict[str, int] = {}
        self.last_changes: dict | None = None
        self.state = {"state": "idle", "stage": "", "fraction": 0.0, "seconds": 0.0, "message": ""}
        self.calls: list[str] = []
        if model:
            self._fit()

    def status(self):
        kinds = list(self.labels.values())
        return {
            "images": len(self.files),
            "scored": len(self.scores),
            "rejected": len(self.unreadable),
            "labels": {
                "normal": sum(label == 0 for label, _, _ in kinds),
                "abnormal": sum(label == 1 for label, _, _ in kinds),
                "skipped": sum(skipped for _, _, skipped in kinds),
            },
            "new_labels": sum(self.seen.get(i) != value for i, value in self.labels.items() if not value[2]),
            "classes": sorted({name for _, name, _ in kinds if name} | {"effusion", "nodule"}),
            "model": self.model,
            "operating_point": 0.05 if self.model else None,
            "drift": {"images": len(self.scores), "shift": 1.0, "limit": 0.1, "named": self.drift},
            "read_only": self.read_only,
        }

    def queue(self, strategy, n=50, offset=0):
        ids = sorted(self.files, key=lambda i: (i in self.unreadable, -self.scores.get(i, 0.0), i))
        if strategy == "labelled":
            ids = [i for i in ids if i in self.labels]
        else:
            ids = [i for i in ids if i not in self.labels]
            if strategy == "most_uncertain" and self.model:
                ids.sort(key=lambda i: abs(self.scores.get(i, np.inf) - self.model["scale"]["threshold"]))
            elif strategy == "random":
                ids.sort(key=lambda i: hashlib.sha256(i.encode()).hexdigest())
        return [self.item(i, WHY.get(strategy)) for i in ids[offset : offset + n]]

    def item(self, image_id, why=None):
        file = self._file(image_id)
        score = self.scores.get(image_id)
        label, image_class, skipped = self.labels.get(image_id, (None, None, False))
        reason, message = self.unreadable.get(image_id, (None, None))
        peak = None
        if score is not None:
            y, x = np.unravel_index(self.maps[image_id].argmax(), self.maps[image_id].shape)
            height, width = self.maps[image_id].shape
            peak = [(x + 0.5) / width, (y + 0.5) / height]
        return {
            "id": image_id,
            "name": file.name,
            "anomaly_score": score,
            "p_value": None if score is None else self._p(score),
            "abnormal": score is not None and score > self.model["scale"]["threshold"],
            "peak": peak,
            "label": label,
            "class": image_class,
            "skipped": skipped,
            "rank": self._ranks().get(image_id),
            "rank_before": self.ranks_before.get(image_id),
            "why": why,
            "reason": reason,
            "message": message,
        }

    def radiograph_png(self, image_id):
        self._file(image_id)
        if image_id in self.unreadable:
            raise Refused(*self.unreadable[image_id])
        return encode_png(np.rint(255 * self.pixels[image_id]).astype(np.uint8), 1)

    def map_png(self, image_id):
        self.radiograph_png(image_id)
        if self.model is None:
            raise Refused("no_model", "There is no model yet, so there is no map.")
        position = np.clip(self.maps[image_id] / 3.0 - 0.35, 0, 1)
        rgba = np.dstack([colour_map(position), np.rint(255 * position).astype(np.uint8)])
        file = io.BytesIO()
        Image.fromarray(rgba).save(file, "PNG")
        return file.getvalue()

    def set_label(self, image_id, label, image_class=None, skipped=False):
        self._file(image_id)
        if self.read_only:
            raise Refused("read_only", "This server stores no labels: it was started read only.")
        if image_id in self.unreadable and label is not None:
            raise Refused("unreadable", "An image that cannot be read cannot be labelled; skip it.")
        self.calls.append(f"{image_id} {label} {image_class} {skipped}")
        if label is None and not skipped:
            self.labels.pop(image_id, None)
        else:
            self.labels[image_id] = (label, image_class, skipped)
        return self.item(image_id)

    def start_training(self):
        if self.read_only:
            raise Refused("read_only", "This server does not train: it was started read only.")
        if self.state["state"] == "running":
            raise Refused("busy", "A training runs already; wait until it has finished.")
        if not any(label == 1 for label, _, _ in self.labels.values()):
            raise Refused("no_abnormal", "Training needs at least one image labelled abnormal.")
        self.state = {"state": "running", "stage": "features", "fraction": 0.0, "seconds": 0.0, "message": ""}
        threading.Thread(target=self._train, daemon=True).start()
        return self.state

    def training(self):
        return self.state

    def changes(self):
        return self.last_changes

    def _file(self, image_id):
        try:
            return self.files[image_id]
        except KeyError:
            raise UnknownImage(image_id) from None

    def _ranks(self):
        ordered = sorted(self.scores, key=lambda i: (-self.scores[i], i))
        return {image_id: rank for rank, image_id in enumerate(ordered, 1)}

    def _p(self, score):
        return (1 + sum(other >= score for other in self.held_out)) / (len(self.held_out) + 1)

    def _train(self):
        start = time.monotonic()
        for stage in STAGES:
            for step in range(10):
                seconds = time.monotonic() - start
                self.state = self.state | {"stage": stage, "fraction": step / 10, "seconds": seconds}
                time.sleep(self.seconds / 40)
        seconds = time.monotonic() - start
        if self.fails:
            message = "The disk is full: training needs 120 MB for its features. Free some space and train again."
            self.state = {"state": "failed", "stage": "", "fraction": 1.0, "seconds": seconds, "message": message}
            return
        before, ranks, sha, point = dict(self.scores), self._ranks(), self.model and self.model["sha256"], self.model
        flagged = {i for i, s in before.items() if point and s > point["scale"]["threshold"]}
        p_before = {i: self._p(s) for i, s in before.items()}
        new_labels = self.status()["new_labels"]
        self._fit()
        self.ranks_before = ranks
        now = {i for i, s in self.scores.items() if s > self.model["scale"]["threshold"]}
        after = self._ranks()
        moved = [
            {
                "id": i,
                "name": self.item(i)["name"],
                "rank_before": ranks.get(i),
                "rank_after": after[i],
                "score_before": before.get(i),
                "score_after": self.scores[i],
                "p_before": p_before.get(i),
                "p_after": self._p(self.scores[i]),
                "flagged_before": i in flagged,
                "flagged_after": i in now,
            }
            for i in after
            if ranks.get(i) != after[i]
        ]
        moved.sort(key=lambda m: (-abs((m["rank_before"] or 0) - m["rank_after"]), m["rank_after"]))
        self.last_changes = {
            "model_before": sha,
            "model_after": self.model["sha256"],
            "new_labels": new_labels,
            "seconds": seconds,
            "moved": moved[:50],
            "now_flagged": len(now),
            "flagged_before": len(flagged),
        }
        self.state = {"state": "done", "stage": "", "fraction": 1.0, "seconds": seconds, "message": ""}

    def _fit(self):
        """Score by the difference from the mean image, plus the similarity to the differences of images labelled abnormal."""
        blurred = {i: ndimage.gaussian_filter(p, p.shape[0] / 32) for i, p in self.pixels.items()}
        mean = np.mean(list(blurred.values()), axis=0)
        difference = {i: np.abs(b - mean) for i, b in blurred.items()}
        spread = np.mean(list(difference.values()), axis=0) + 0.02
        self.maps = {i: d / spread for i, d in difference.items()}
        abnormal = [i for i, (label, _, _) in self.labels.items() if label == 1]
        scores = {i: float(np.sort(m, axis=None)[-m.size // 20 :].mean()) for i, m in self.maps.items()}
        for i, values in self.maps.items():
            similarity = [float(np.corrcoef(values.ravel(), self.maps[a].ravel())[0, 1]) for a in abnormal]
            scores[i] += 2.0 * max([0.0, *similarity])
        self.scores = scores
        self.held_out = sorted(scores.values())[: max(2, int(0.8 * len(scores)))][-HELD_OUT:]
        median, threshold = self.held_out[len(self.held_out) // 2], self.held_out[-2]
        self.seen = dict(self.labels)
        self.model = {
            "sha256": hashlib.sha256(repr(sorted(scores.items())).encode()).hexdigest(),
            "trained": datetime.now().isoformat(timespec="seconds"),
            "normal": 160,
            "abnormal": len(abnormal),
            "held_out": len(self.held_out),
            "scale": {
                "low": self.held_out[0],
                "threshold": threshold,
                "high": threshold + 2 * max(threshold - median, 1e-6),
            },
        }


def application(workbench: object, **options: object) -> FastAPI:
    app = FastAPI()
    app.include_router(router(workbench, **options), prefix="/wscxr")
    return app


@contextmanager
def served(workbench: object, port: int = 0) -> Iterator[tuple[str, int]]:
    """Serve the page on the loopback during the block; yield its address and port."""
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", port))
    listening.listen(64)  # connections before the server runs have to wait, not fail
    port = listening.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(application(workbench), log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}/wscxr/", port
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--no-model", action="store_true")
    parser.add_argument("--read-only", action="store_true")
    parser.add_argument("--fail", action="store_true", help="trainings fail")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a training")
    options = parser.parse_args()
    workbench = FakeWorkbench(phantom_files(options.folder), not options.no_model, options.read_only, options.seconds)
    workbench.fails = options.fail
    uvicorn.run(application(workbench), host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
