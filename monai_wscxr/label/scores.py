"""Scores of all images of an archive under the model in use, kept up to date as images and models change."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from monai_wscxr.features.extraction import PatchExtractor
from monai_wscxr.label.archive.studies import Studies, UnknownImage, label_fields
from monai_wscxr.label.ranking import ImageScore, ranks, score_fields, score_images
from monai_wscxr.label.strategies import ordered
from monai_wscxr.model.artefact import TrainedModel
from monai_wscxr.model.drift import Drift, measure_drift
from monai_wscxr.model.predictions import check_images

CHUNK = 128  # images whose features are in memory at a time


class ArchiveScores:
    """The model in use and its scores of an archive's images.

    Reading is safe from several threads. `update`, `score_all` and `replace` need a caller that runs one at a time.

    Args:
        studies: the archive and its labels.
        extractor: patch features of files.
        model: the model in use; None before the first one.
    """

    def __init__(self, studies: Studies, extractor: PatchExtractor, model: TrainedModel | None = None) -> None:
        self.studies, self.extractor = studies, extractor
        self._lock = threading.Lock()  # guards what follows
        self._model = model
        self._scores: dict[str, ImageScore] = {}
        self._before: dict[str, ImageScore] = {}  # under the previous model
        self._rejected: dict[str, tuple[str, str]] = {}  # reason code and message
        self._unlike: dict[str, dict[str, tuple[str, str]]] = {}  # images unlike a chest, by the model that says so
        self._digests: dict[str, str] = {}  # of the files that were scored

    @property
    def model(self) -> TrainedModel | None:
        """The model in use; None before the first one."""
        with self._lock:
            return self._model

    def rejection(self, image_id: str) -> tuple[str, str] | None:
        """Return reason code and message of an image that cannot be used, else None."""
        with self._lock:
            return self._refused().get(image_id)

    def counts(self) -> tuple[int, int]:
        """Return the number of images scored and of images that cannot be used."""
        with self._lock:
            return len(self._scores), len(self._refused())

    def drift(self) -> Drift:
        """Compare the scored images with the normals that calibrated the model in use."""
        with self._lock:
            model, places = self._model, [score.place for score in self._scores.values() if score.place]
        return measure_drift(None if model is None else model.drift, torch.tensor(places))

    # ---- scoring

    def update(self) -> None:
        """Drop images that were removed; score images that are new or whose file has changed.

        Without a model, their features go to the feature cache, where the first model finds them.
        """
        ids = set(self.studies.ids())
        with self._lock:
            self._scores = {i: s for i, s in self._scores.items() if i in ids}
            self._rejected = {i: r for i, r in self._rejected.items() if i in ids}
            current = "" if self._model is None else self._model.sha256
            self._unlike = {current: {i: r for i, r in self._unlike.get(current, {}).items() if i in ids}}
        self._score(self.model, [i for i in self.studies.ids() if self._is_due(i)], self._scores)

    def score_all(self, model: TrainedModel, progress: Callable[[float], None]) -> dict[str, ImageScore]:
        """Score all usable images with another model, without putting it in use.

        Args:
            model: the model.
            progress: called with the share done, in (0, 1].
        """
        with self._lock:
            ids = [i for i in self.studies.ids() if i not in self._rejected]
        scores: dict[str, ImageScore] = {}
        self._score(model, ids, scores, progress)
        return scores

    def replace(
        self, model: TrainedModel, scores: dict[str, ImageScore]
    ) -> tuple[TrainedModel | None, dict[str, ImageScore]]:
        """Put a model and its scores in use; return the model and the scores they replace."""
        with self._lock:
            replaced = self._model, self._scores
            self._model, self._scores, self._before = model, scores, self._scores
        return replaced

    def _is_due(self, image_id: str) -> bool:
        """Tell whether an image has not been looked at, or its file has changed since."""
        with self._lock:
            if image_id not in self._scores:
                return image_id not in self._refused()
            digest = self._digests.get(image_id)
        try:
            return self.extractor.digest(str(self.studies.file(image_id))) != digest
        except (UnknownImage, OSError):  # deleted or replaced since the latest search
            return False

    def _refused(self) -> dict[str, tuple[str, str]]:
        """Return reason code and message of all images without a score under the model in use; needs the lock."""
        unlike = {} if self._model is None else self._unlike.get(self._model.sha256, {})
        return {**unlike, **self._rejected}

    def _score(
        self,
        model: TrainedModel | None,
        ids: Sequence[str],
        scores: dict[str, ImageScore],
        progress: Callable[[float], None] | None = None,
    ) -> None:
        """Add the scores of images to `scores`, chunk by chunk, and record the files that cannot be used."""
        for begin in range(0, len(ids), CHUNK):
            files = self._files(ids[begin : begin + CHUNK])
            used, features, rejected = self.extractor.usable(list(files), "archive")
            found = [] if model is None else score_images(model, features, self.extractor.grid)
            refusals = [] if model is None else check_images(model, features.mean(1), self.extractor.allow)
            with self._lock:
                for file, score, refusal in zip(used, found, refusals, strict=False):
                    if model is None or refusal is None:
                        scores[files[file]] = score
                    else:
                        unlike = self._unlike.setdefault(model.sha256, {})
                        unlike[files[file]] = refusal.code, refusal.message
                        scores.pop(files[file], None)
                self._digests.update((files[f], self.extractor.digests[f]) for f in used)
                self._rejected.update((files[file], (code, message)) for file, code, message in rejected)
            if progress is not None:
                progress(min(1.0, (begin + CHUNK) / len(ids)))

    def _files(self, ids: Sequence[str]) -> dict[str, str]:
        """Return ids by file, without images whose file has vanished since the latest search."""
        files: dict[str, str] = {}
        for image_id in ids:
            try:
                files[str(self.studies.file(image_id))] = image_id
            except UnknownImage:
                continue
        return files

    # ---- the ranking

    def order(self, strategy: str, seed: int) -> dict[str, str | None]:
        """Return the unlabelled, usable images in the order of a strategy; "labelled" lists the labelled ones, newest first.

        Args:
            strategy: one of `STRATEGIES`, or "labelled".
            seed: seed of the random order.

        Returns:
            Why an image is asked for, by id; None for labelled images.

        Raises:
            InputError: on an unknown strategy.
        """
        labels = self.studies.labels()
        if strategy == "labelled":
            return dict.fromkeys(list(labels)[::-1])
        with self._lock:
            scores, model, rejected = dict(self._scores), self._model, set(self._refused())
        waiting = [i for i in self.studies.ids() if i not in labels and i not in rejected]
        threshold = None if model is None else model.calibration.threshold
        return {**ordered(strategy, waiting, scores, threshold, seed)}

    def entries(self, ids: Sequence[str], why: Mapping[str, str | None] | None = None) -> list[dict[str, Any]]:
        """Describe images as JSON values: name, score, label, rank now and before, and why a file cannot be used.

        Args:
            ids: of the images.
            why: why images are asked for, by id, as `order` returned it.

        Raises:
            UnknownImage: on an id that the archive does not have.
        """
        labels = self.studies.labels()
        with self._lock:
            scores, before, rejected = dict(self._scores), dict(self._before), self._refused()
        rank, rank_before = ranks(scores), ranks(before)
        return [
            {
                "id": i,
                "name": self.studies.name(i),
                **score_fields(scores.get(i)),
                **label_fields(labels.get(i)),
                "rank": rank.get(i),
                "rank_before": rank_before.get(i),
                "why": (why or {}).get(i),
                **dict(zip(("reason", "message"), rejected.get(i, (None, None)), strict=True)),
            }
            for i in ids
        ]
