"""The workbench: an archive of radiographs, labels for a few of them, a model, the order it gives, and training it again.

What servers and pages call. It knows no web framework; every method is safe to call from several threads.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_wscxr.errors import InputError
from monai_wscxr.label import pictures
from monai_wscxr.label.archive.studies import Label, Refused, Studies, described_label, known_normals
from monai_wscxr.label.job import Job
from monai_wscxr.label.models import ModelFolders, described, hold
from monai_wscxr.label.ranking import (
    STRATEGIES,
    Scored,
    described_score,
    moves,
    ordered,
    patch_scores,
    ranks,
    score_images,
)
from monai_wscxr.label.results import Predicted, encoded_results
from monai_wscxr.label.training import RUN_OPTIONS, Trainer
from monai_wscxr.label.votes import Votes, changed
from monai_wscxr.model.artefact import TrainedModel, load_model
from monai_wscxr.model.networks import anomaly_map
from monai_wscxr.system.atomic import write_text_atomic
from monai_wscxr.training.options import find_configs

logger = logging.getLogger("monai_wscxr")

CHUNK = 128  # images whose features are in memory at a time


class Workbench:
    """Images, labels, model and ranking.

    Args:
        studies: the archive and its labels.
        folder: where models go; `folder/model` is the one in use and works as `--model` of every command.
        normals: known normal images, see `known_normals`; None: only images labelled 0.
        model: output folder of a training to begin with, where `folder` has no model yet.
        options: of `train.yaml` (backbone, image_size, device, cache, ...), for every training.
        seed: of trainings and of the random strategy.
        read_only: refuse labels and trainings.
        bundle: folder of the bundle; None finds the one beside the package.

    Raises:
        InputError: when something given cannot be used, or `folder` belongs to other studies or a running server.
    """

    def __init__(
        self,
        studies: Studies,
        folder: str | Path,
        normals: str | Path | None = None,
        model: str | Path | None = None,
        options: Mapping[str, Any] | None = None,
        seed: int = 0,
        read_only: bool = False,
        bundle: str | Path | None = None,
    ) -> None:
        self.studies, self.folder, self.seed, self.read_only = studies, Path(folder), seed, read_only
        self._held = hold(self.folder)
        try:
            self._open(normals, model, options or {}, bundle)
        except BaseException:
            self.close()
            raise

    def _open(
        self,
        normals: str | Path | None,
        model: str | Path | None,
        options: Mapping[str, Any],
        bundle: str | Path | None,
    ) -> None:
        self.models = ModelFolders(self.folder)
        self._own()
        known = [] if normals is None else known_normals(normals)
        first = self.models.current() or (None if model is None else Path(model))
        loaded = None if first is None else load_model(first)
        inherited = {} if loaded is None else {k: v for k, v in loaded.settings.items() if k not in RUN_OPTIONS}
        self.trainer = Trainer(find_configs(bundle), self.models, {**inherited, **options}, self.seed)
        if loaded is not None:
            self.trainer.check_fits(loaded)
            loaded.network.to(self.trainer.extractor.device)
        self.votes = Votes(self.studies, known, self.trainer.extractor.digest)
        self._lock = threading.RLock()  # state below
        self._busy = threading.Lock()  # held while features are computed or a model is trained
        self._model = loaded
        self._scores: dict[str, Scored] = {}
        self._before: dict[str, Scored] | None = None
        self._rejected: dict[str, tuple[str, str]] = {}
        self._digests: dict[str, str] = {}
        self._changes: dict[str, Any] | None = None
        self._trained_on = self.votes.given()  # labels that the model in use has seen
        self._job = Job()

    def close(self) -> None:
        """Leave the folder to another workbench."""
        self._held.close()

    def _own(self) -> None:
        path = self.folder / "workbench.json"
        if path.is_file():
            owner = json.loads(path.read_text(encoding="utf-8"))["studies"]
            if owner != self.studies.source:
                raise InputError(f"{self.folder} belongs to the studies {owner}; choose another work folder")
        write_text_atomic(path, json.dumps({"studies": self.studies.source}))

    # ---- the archive

    def refresh(self) -> None:
        """Look for new images, and score what has no score; takes as long as their features take.

        Without a model, the first one is made of the known and the labelled normal images where there are enough.
        """
        with self._busy:
            self.studies.refresh()
            if self._model is None:
                self._start()
            ids = set(self.studies.ids())
            with self._lock:
                self._scores = {i: s for i, s in self._scores.items() if i in ids}
                self._rejected = {i: r for i, r in self._rejected.items() if i in ids}
            missing = [i for i in self.studies.ids() if self._stale(i)]
            self._score(self._model, missing, self._scores, lambda share: None)

    def _stale(self, image_id: str) -> bool:
        """Whether an image has not been looked at, or its file has changed since."""
        if image_id not in self._scores:
            return image_id not in self._rejected
        return self.trainer.extractor.digest(str(self.studies.file(image_id))) != self._digests.get(image_id)

    def _start(self) -> None:
        normal = self.votes.items(0)
        if len({item["patient"] for item in normal}) < 2:
            return
        folder = self.trainer.start(normal)
        model = load_model(folder, self.trainer.extractor.device)
        self.models.publish(folder)
        with self._lock:
            self._model = model

    def _score(
        self,
        model: TrainedModel | None,
        ids: Sequence[str],
        into: dict[str, Scored],
        progress: Callable[[float], None],
    ) -> None:
        """Scores of images, a chunk of them at a time; without a model their features are at least in the store then."""
        extractor = self.trainer.extractor
        for begin in range(0, len(ids), CHUNK):
            files = {str(self.studies.file(i)): i for i in ids[begin : begin + CHUNK]}
            used, features, rejected = extractor.usable(list(files), "archive")
            scored = [] if model is None else score_images(model, features, extractor.grid)
            with self._lock:
                into.update(zip((files[f] for f in used), scored, strict=False))
                self._digests.update((files[f], extractor.digests[f]) for f in used)
                for file, code, _ in rejected:
                    self._rejected[files[file]] = (code, f"this file cannot be used as a radiograph ({code})")
            progress(min(1.0, (begin + CHUNK) / len(ids)))

    def status(self) -> dict[str, Any]:
        """How much there is of everything."""
        labels = self.studies.labels()
        with self._lock:
            model, scored, rejected = self._model, len(self._scores), len(self._rejected)
            trained_on = self._trained_on
        counts = Counter("skipped" if v.skipped else ("normal", "abnormal")[v.label or 0] for v in labels.values())
        return {
            "images": len(self.studies.ids()),
            "scored": scored,
            "rejected": rejected,
            "known_normals": len(self.votes.normals),
            "labels": {name: counts[name] for name in ("normal", "abnormal", "skipped")},
            "new_labels": changed(self.votes.given(), trained_on),
            "classes": sorted({v.image_class for v in labels.values() if v.image_class}),
            "model": None if model is None else described(model),
            "operating_point": None if model is None else model.calibration.false_positive_rate,
            "read_only": self.read_only,
            "strategies": list(STRATEGIES),
        }

    def queue(self, strategy: str, n: int = 50, offset: int = 0) -> list[dict[str, Any]]:
        """Images in the order in which a strategy would have them labelled, without those that have been looked at.

        Args:
            strategy: one of `STRATEGIES`, or "labelled": what has been looked at, newest first.
            n, offset: which part, n from 1 to 1000.

        Raises:
            InputError: on another strategy, or n or offset out of range.
        """
        if not (1 <= n <= 1000 and offset >= 0):
            raise InputError(f"n must lie from 1 to 1000 and offset be 0 or more, got {n} and {offset}")
        labels = self.studies.labels()
        with self._lock:
            scores, model, rejected = dict(self._scores), self._model, set(self._rejected)
        if strategy == "labelled":
            order = list(labels)[::-1]
        else:
            open_ids = [i for i in self.studies.ids() if i not in labels and i not in rejected]
            threshold = None if model is None else model.calibration.threshold
            order = ordered(strategy, open_ids, scores, threshold, self.seed)
        return self._entries(order[offset : offset + n])

    def item(self, image_id: str) -> dict[str, Any]:
        """One entry as `queue` gives it, whatever its label.

        Raises:
            UnknownImage: on an id that the studies do not have.
        """
        return self._entries([image_id])[0]

    def items(self) -> list[dict[str, Any]]:
        """Entries of all images, in the order of the studies."""
        return self._entries(self.studies.ids())

    def _entries(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        labels = self.studies.labels()
        with self._lock:
            scores, rank, before = dict(self._scores), ranks(self._scores), ranks(self._before or {})
        return [
            {
                "id": i,
                "name": self.studies.name(i),
                **described_score(scores.get(i)),
                **described_label(labels.get(i)),
                "rank": rank.get(i),
                "rank_before": before.get(i),
                **dict(zip(("reason", "message"), self._rejected.get(i, (None, None)), strict=True)),
            }
            for i in ids
        ]

    # ---- pictures

    def radiograph_png(self, image_id: str) -> bytes:
        """The radiograph as the model saw its brightness: 8-bit grey, its own aspect, longest side at most 1024.

        Raises:
            UnknownImage: on an unknown id. RadiographError: when the file cannot be read.
        """
        extractor = self.trainer.extractor
        return pictures.radiograph_png(self.studies.file(image_id), extractor.preprocessing, extractor.allow)

    def map_png(self, image_id: str) -> bytes:
        """The anomaly map in the size of `radiograph_png`: RGBA on the model's colour scale, clear where the map is low.

        Raises:
            UnknownImage: on an unknown id. Refused: without a model. RadiographError: when the file cannot be read.
        """
        found = self.predict(image_id)
        return pictures.map_png(found.file, found.anomaly_map, found.model, self.trainer.extractor.allow)

    def predict(self, image_id: str) -> Predicted:
        """What the model in use says of an image now.

        Raises:
            as `map_png`.
        """
        return self.predict_file(self.studies.file(image_id))

    def predict_file(self, file: Path, keep: bool = True) -> Predicted:
        """`predict` for any file; without `keep` its features do not go to the store.

        Raises:
            as `map_png`.
        """
        with self._lock:
            model = self._model
        if model is None:
            raise Refused("no_model", "there is no model yet: name known normal images, or label some normal ones")
        extractor = self.trainer.extractor
        if keep:
            _, features, rejected = extractor.usable([str(file)], "image")
        else:
            features, rejected = extractor.passed([str(file)])
        if rejected:
            raise Refused(rejected[0][1], f"this file cannot be used as a radiograph ({rejected[0][1]})")
        patches = patch_scores(model, features, extractor.grid)
        size = model.preprocessing.image_size
        values = anomaly_map(patches[None], (size, size), model.map_sigma)[0, 0].numpy()
        return Predicted(file, model, score_images(model, features, extractor.grid)[0], values)

    def keep_results(self, image_id: str) -> list[str]:
        """Write what the model in use says of an image beside the studies, see `Studies.keep_results`; returns the kinds.

        Raises:
            as `set_label` and `map_png`.
        """
        if self.read_only:
            raise Refused("read_only", "this server keeps no results")
        found = self.predict(image_id)
        return self.studies.keep_results(image_id, encoded_results(found, self.trainer.extractor.allow))

    # ---- labels

    def set_label(
        self, image_id: str, label: int | None, image_class: str | None = None, skipped: bool = False
    ) -> dict[str, Any]:
        """Keep what a person says of an image; label None without `skipped` takes it back.

        Returns:
            The image's entry afterwards.

        Raises:
            UnknownImage: on an unknown id.
            Refused: with reason "bad_label", "bad_class", "contradiction", "read_only", or the reason code of a file that
                cannot be used.
        """
        file = self.studies.file(image_id)
        if self.read_only:
            raise Refused("read_only", "this server takes no labels")
        if label is None and not skipped and image_class is None:
            self.studies.put(image_id, None)
            return self.item(image_id)
        wanted = Label.checked(label, image_class, skipped)
        if wanted.label is not None:
            with self._lock:
                rejected = self._rejected.get(image_id)
            if rejected:
                raise Refused(*rejected)
            self.votes.check_copies(image_id, str(file), wanted.label)
        self.studies.put(image_id, wanted)
        return self.item(image_id)

    # ---- training

    def start_training(self) -> dict[str, Any]:
        """Train again on all labels, in the background; `training` says how far it is.

        Raises:
            Refused: with reason "read_only", "no_abnormal", "no_normal" or "busy".
        """
        self._begin()
        threading.Thread(target=self._train_quietly, name="training", daemon=True).start()
        return self.training()

    def train(self) -> dict[str, Any]:
        """As `start_training`, and wait for the end.

        Returns:
            `changes()`.

        Raises:
            Refused: as `start_training`. InputError: when the training fails for a reason a person can mend.
        """
        self._begin()
        self._train()
        assert self._changes is not None
        return self._changes

    def _begin(self) -> None:
        if self.read_only:
            raise Refused("read_only", "this server does not train")
        if not self.votes.given(1):
            raise Refused("no_abnormal", "no image is labelled abnormal yet; training needs at least one")
        if len({item["patient"] for item in self.votes.items(0)}) < 2:
            raise Refused(
                "no_normal",
                "training needs normal images of two patients or more: label some, or name known normal images when starting",
            )
        if not self._job.begin("features"):
            raise Refused("busy", "a training is running already; wait for its end")

    def _train_quietly(self) -> None:
        try:
            self._train()
        except InputError as error:
            logger.warning("training failed: %s", error)
        except Exception:
            logger.exception("training failed")

    def _train(self) -> None:
        try:
            with self._busy:
                said = self._replace()
        except BaseException as error:
            unforeseen = f"the training failed ({type(error).__name__}); the old model stays in use"
            self._job.end("failed", str(error) if isinstance(error, InputError) else unforeseen)
            raise
        self._job.end("done", "; ".join(said))

    def _replace(self) -> list[str]:
        """Train, score the archive, put the new model in use."""
        normal, abnormal = self.votes.items(0), self.votes.items(1)
        votes = self.votes.given()
        folder, said = self.trainer.train(normal, abnormal, self._job.report)
        self._job.report("scoring", 0.0)
        model = load_model(folder, self.trainer.extractor.device)
        scores: dict[str, Scored] = {}
        with self._lock:
            ids = [i for i in self.studies.ids() if i not in self._rejected]
        self._score(model, ids, scores, lambda share: self._job.report("scoring", share))
        self.models.publish(folder)
        with self._lock:
            before, old = self._scores, self._model
            self._model, self._scores, self._before = model, scores, before
            self._changes = {
                "model_before": old and old.sha256,
                "model_after": model.sha256,
                "new_labels": changed(votes, self._trained_on),
                "seconds": self.training()["seconds"],
                "moved": moves(before, scores, [(i, self.studies.name(i)) for i in scores]),
                "now_flagged": sum(s.abnormal for s in scores.values()),
                "flagged_before": sum(s.abnormal for s in before.values()),
            }
            self._trained_on = votes
        return said

    def training(self) -> dict[str, Any]:
        """State of the latest training, see `Job.status`; stages are "features", "mining", "training", "scoring"."""
        return self._job.status()

    def changes(self) -> dict[str, Any] | None:
        """What the latest training changed; None before the first one since the start."""
        with self._lock:
            return self._changes
