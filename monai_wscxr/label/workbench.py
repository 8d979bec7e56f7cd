"""The workbench: an archive of radiographs, labels for some of them, a model, the ranking by it, and retraining.

Servers and pages call it. It depends on no web framework, and every method is safe to call from several threads.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from monai_wscxr.data.datalist import Item
from monai_wscxr.errors import InputError
from monai_wscxr.label import pictures
from monai_wscxr.label.archive.folder import known_normals
from monai_wscxr.label.archive.studies import Label, Refused, Studies, UnknownImage
from monai_wscxr.label.decoding import Decoders, image_size, network_input
from monai_wscxr.label.job import Job
from monai_wscxr.label.labelled import LabelledImages, changed_labels
from monai_wscxr.label.messages import hide_folders, without_paths
from monai_wscxr.label.models import ModelFolders, held_folder, model_fields
from monai_wscxr.label.ranking import rank_changes
from monai_wscxr.label.results import (
    ImagePrediction,
    encoded_results,
    predict_features,
    predict_image,
    shown_result,
    without_network,
)
from monai_wscxr.label.scores import ArchiveScores
from monai_wscxr.label.strategies import DEFAULT, STRATEGIES
from monai_wscxr.label.training import Trainer
from monai_wscxr.model.artefact import TrainedModel, load_model
from monai_wscxr.system.atomic import as_disk_full, remove_partials, write_text_atomic
from monai_wscxr.training.configs import RUN_OPTIONS, find_configs

logger = logging.getLogger("monai_wscxr")

LARGEST_PAGE = 1000
_STOP_SECONDS = 20.0  # a step of mining or of training on a busy machine, and an image that a decoder is at


class Workbench:
    """Images, labels, model and ranking.

    Args:
        studies: the archive and its labels.
        folder: folder for models; `folder/model` is the one in use and works as `--model` of every command.
        normals: known normal images, see `known_normals`; with None only images labelled 0 are normal.
        model: output folder of a training to start with, when `folder` has no model yet.
        options: options of `train.yaml` (backbone, image_size, device, cache, ...) for every training.
        seed: seed of trainings and of the random strategy.
        read_only: refuse labels and trainings.
        bundle: folder of the bundle; None finds the one beside the package.

    Raises:
        InputError: when an argument cannot be used, or `folder` belongs to other studies or to a running server.
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
        self.stopping = threading.Event()
        self._busy = threading.Lock()  # held while features are computed or a model is trained
        self._closing = contextlib.ExitStack()
        self._held = self._closing.enter_context(held_folder(self.folder))
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
        for place in (self.folder, self.models.models):
            remove_partials(place)
        self.models.tidy()
        self._claim_folder()
        known = [] if normals is None else known_normals(normals)
        first = self.models.current() or (None if model is None else Path(model))
        loaded = None if first is None else load_model(first)
        inherited = {} if loaded is None else {k: v for k, v in loaded.settings.items() if k not in RUN_OPTIONS}
        self.trainer = Trainer(find_configs(bundle), self.models, {**inherited, **options}, self.seed)
        if loaded is not None:
            self.trainer.check_fits(loaded)
            loaded.network.to(self.trainer.extractor.device)
        extractor = self.trainer.extractor
        self.decoders = Decoders(extractor.preprocessing, extractor.allow)
        self._closing.callback(self.decoders.close)
        # all decoding of the archive takes place in the workers, also that of scoring and training
        extractor.transform, extractor.read_workers, extractor.trusted = self._load, 0, True
        cache = None if extractor.cache is None else extractor.cache.folder
        hide_folders(self.studies.source, self.folder, normals, model, bundle, cache)
        self.labelled = LabelledImages(self.studies, known, self.trainer.extractor.digest)
        self.scores = ArchiveScores(self.studies, self.trainer.extractor, loaded)
        self._lock = threading.Lock()  # a model in use, its labels and the changes it made belong together
        self._changes: dict[str, Any] | None = None
        self._trained_on = self.labelled.labels()
        self._job = Job()

    def stop(self) -> None:
        """Let training and scoring in other threads end at their next step, and start no more; safe in a signal handler."""
        self.stopping.set()

    def close(self) -> bool:
        """Stop, wait for the other threads, end the worker processes and release the folder for another workbench.

        Returns:
            Whether everything has ended. Otherwise a thread still computes in a library. The interpreter must not be torn
            down then: the thread would return to it in the middle of C++ code, which aborts the process.
        """
        self.stop()
        ended = self._busy.acquire(timeout=_STOP_SECONDS)
        if ended:
            self._busy.release()
        self._closing.close()
        return ended

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        """Wait until no other thread computes features or trains, and let none begin during the block."""
        with self._busy:
            self._go_on()
            yield

    def _go_on(self) -> None:
        """Raise `Refused` with reason "stopped" once `stop` was called."""
        if self.stopping.is_set():
            raise Refused("stopped", "the server is being stopped")

    def _load(self, item: dict[str, Any]) -> dict[str, Any]:
        """Load an item of the archive for the network, see `Decoders.transform`."""
        self._go_on()
        return self.decoders.transform(item)

    def _report(self, stage: str, fraction: float) -> None:
        """Record the progress of a training, which ends here when the workbench is being stopped."""
        self._go_on()
        self._job.report(stage, fraction)

    def _claim_folder(self) -> None:
        path = self.folder / "workbench.json"
        if path.is_file():
            owner = json.loads(path.read_text(encoding="utf-8"))["studies"]
            if owner != self.studies.source:
                raise InputError(f"{self.folder} belongs to the studies {owner}; choose another work folder")
        write_text_atomic(path, json.dumps({"studies": self.studies.source}))

    # ---- the archive

    def refresh(self) -> None:
        """Look for new images and score images without a score; takes as long as the extraction of their features.

        Without a model, the first one is made from the known and the labelled normal images, once there are enough.
        """
        with self._computing():
            self.studies.refresh()
            if self.scores.model is None:
                self._start()
            self.scores.update()

    def _start(self) -> None:
        normal = self.labelled.items(0)
        if len({item["patient"] for item in normal}) < 2:
            return
        folder = self.trainer.start(normal)
        with self.models.unfinished(folder):
            model = load_model(folder, self.trainer.extractor.device)
            self.models.publish(folder)
        self.scores.replace(model, {})

    def status(self) -> dict[str, Any]:
        """Return the numbers of images, scores and labels, the model, and the settings of the workbench as JSON values."""
        labels = self.studies.labels()
        with self._lock:
            model, (scored, rejected), trained_on = self.scores.model, self.scores.counts(), self._trained_on
        counts = Counter("skipped" if v.skipped else ("normal", "abnormal")[v.label or 0] for v in labels.values())
        return {
            "images": len(self.studies.ids()),
            "scored": scored,
            "rejected": rejected,
            "known_normals": len(self.labelled.normals),
            "labels": {name: counts[name] for name in ("normal", "abnormal", "skipped")},
            "new_labels": changed_labels(self.labelled.labels(), trained_on),
            "classes": sorted({v.image_class for v in labels.values() if v.image_class}),
            "model": None if model is None else model_fields(model),
            "operating_point": None if model is None else model.calibration.supported_rate,
            "drift": self.scores.drift().to_dict(),
            "read_only": self.read_only,
            "strategies": list(STRATEGIES),
        }

    def queue(self, strategy: str = DEFAULT, n: int = 50, offset: int = 0) -> list[dict[str, Any]]:
        """Return entries of images in the order of a strategy, without labelled and skipped images.

        Args:
            strategy: one of `STRATEGIES`; or "labelled" for labelled and skipped images, newest first.
            n: largest number of entries, from 1 to 1000.
            offset: entries to leave out at the start, 0 or more.

        Raises:
            InputError: on an unknown strategy, or n or offset out of range.
        """
        if not (1 <= n <= LARGEST_PAGE and offset >= 0):
            raise InputError(f"n must lie from 1 to {LARGEST_PAGE} and offset be 0 or more, got {n} and {offset}")
        order = self.scores.order(strategy, self.seed)
        return self.scores.entries(list(order)[offset : offset + n], order)

    def item(self, image_id: str) -> dict[str, Any]:
        """Return the entry of one image, labelled or not.

        Raises:
            UnknownImage: on an id that the archive does not have.
        """
        return self.scores.entries([image_id])[0]

    def items(self) -> list[dict[str, Any]]:
        """Return the entries of all images, in the order of the archive."""
        return self.scores.entries(self.studies.ids())

    # ---- pictures and results

    def radiograph_png(self, image_id: str) -> bytes:
        """Return the radiograph with the brightness that the model sees: 8-bit grey, longest side at most 1024 pixels.

        Raises:
            UnknownImage: on an unknown id.
            RadiographError: when the file cannot be read.
        """
        extractor = self.trainer.extractor
        file = self.studies.file(image_id)
        return self.decoders.archive(file, pictures.radiograph_png, file, extractor.preprocessing, extractor.allow)

    def map_png(self, image_id: str) -> bytes:
        """Return the anomaly map at the size of `radiograph_png`: RGBA by the model's colour scale, clear where it is low.

        Raises:
            UnknownImage: on an unknown id.
            Refused: without a model, or when the file cannot be used.
        """
        found = without_network(self.predict(image_id))
        return self.decoders.archive(
            found.file,
            pictures.map_png,
            found.file,
            found.anomaly_map,
            found.model,
            self.trainer.extractor.allow,
        )

    def predict(self, image_id: str) -> ImagePrediction:
        """Predict an image of the archive with the model in use; raises as `map_png`."""
        return predict_image(self._model(), self.trainer.extractor, self.studies.file(image_id))

    def predict_upload(self, file: Path) -> ImagePrediction:
        """Predict any file, without keeping anything of it.

        Raises:
            Refused: without a model, or when too many requests are waiting.
            RadiographError: when the file cannot be used.
        """
        model, extractor = self._model(), self.trainer.extractor
        image = torch.from_numpy(self.decoders.upload(file, network_input, str(file)))
        features = torch.stack([rows for _, rows in extractor.run([{"image": image, "file": str(file)}])])
        return predict_features(model, extractor, file, features)

    def _model(self) -> TrainedModel:
        model = self.scores.model
        if model is None:
            raise Refused("no_model", "there is no model yet: name known normal images, or label some normal ones")
        return model

    def shown_result(self, found: ImagePrediction, suffix: str, upload: bool) -> tuple[bytes, tuple[int, int]]:
        """Encode the map of a prediction, see `results.shown_result`, in a worker for uploads or for the archive."""
        call = self.decoders.upload if upload else self.decoders.archive
        return call(found.file, shown_result, without_network(found), suffix, self.trainer.extractor.allow)

    def check_upload(self, file: Path) -> None:
        """Check that an uploaded file is a radiograph that can be used.

        Raises:
            RadiographError: when it is not.
            Refused: when too many requests are waiting.
        """
        self.decoders.upload(file, image_size, str(file), self.trainer.extractor.allow)

    def keep_results(self, image_id: str) -> list[str]:
        """Store the prediction of an image in the archive, see `Studies.keep_results`; return the kinds stored.

        Raises:
            UnknownImage: on an unknown id.
            Refused: with reason "read_only"; or as `predict` and `encoded_results`.
        """
        if self.read_only:
            raise Refused("read_only", "this server stores no results")
        found = self.predict(image_id)
        results = self.decoders.archive(
            found.file, encoded_results, without_network(found), self.trainer.extractor.allow
        )
        return self.studies.keep_results(image_id, results)

    # ---- labels

    def set_label(
        self, image_id: str, label: int | None, image_class: str | None = None, skipped: bool = False
    ) -> dict[str, Any]:
        """Store an annotator's label of an image; label None without `skipped` withdraws it.

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
            rejection = self.scores.rejection(image_id)
            if rejection is not None:
                raise Refused(*rejection)
            try:
                self.labelled.check_copies(image_id, str(file), wanted.label)
            except OSError as error:  # the file has vanished or cannot be read any more
                raise UnknownImage(image_id) from error
        self.studies.put(image_id, wanted)
        return self.item(image_id)

    # ---- training

    def start_training(self) -> dict[str, Any]:
        """Start a training on all labels in the background; return its state, see `training`.

        Raises:
            Refused: with reason "read_only", "no_abnormal", "no_normal" or "busy".
        """
        self._begin()
        threading.Thread(target=self._train_in_background, name="training", daemon=True).start()
        return self.training()

    def train(self) -> dict[str, Any]:
        """Train on all labels, put the new model in use and return `changes()`.

        Raises:
            Refused: as `start_training`.
            InputError: when the training fails for a reason that the user can fix.
        """
        self._begin()
        self._train()
        assert self._changes is not None
        return self._changes

    def _begin(self) -> None:
        if self.read_only:
            raise Refused("read_only", "this server does not train")
        self._training_items()
        if not self._job.begin("features"):
            raise Refused("busy", "a training is already running; wait for its end")

    def _training_items(self) -> tuple[dict[str, Label], list[Item], list[Item]]:
        """Return the labels of this moment, and the normal and abnormal images that they name.

        Raises:
            Refused: when they do not allow a training.
        """
        labels = self.labelled.labels()  # once, as annotators go on while the items are listed
        normal, abnormal = self.labelled.items(0, labels), self.labelled.items(1, labels)
        if not abnormal:
            raise Refused("no_abnormal", "no image is labelled abnormal yet; training needs at least one")
        if len({item["patient"] for item in normal}) < 2:
            raise Refused(
                "no_normal",
                "training needs normal images of two patients or more: label some, or name known normal images when starting "
                "the server",
            )
        return labels, normal, abnormal

    def _train_in_background(self) -> None:
        try:
            self._train()
        except InputError as error:
            logger.warning("training failed: %s", error)
        except Exception:
            logger.exception("training failed")

    def _train(self) -> None:
        try:
            with self._computing():
                notes = self._replace_model()
        except BaseException as error:
            if self.stopping.is_set():  # libraries may have wrapped the exception that ended the training
                self._job.end("failed", "the server is being stopped")
                raise Refused("stopped", "the server is being stopped") from None
            full = as_disk_full(error)
            unforeseen = f"the training failed ({type(error).__name__}); the old model stays in use"
            shown = full or error
            self._job.end("failed", without_paths(str(shown)) if isinstance(shown, InputError) else unforeseen)
            if full is not None and full is not error:
                raise full from error
            raise
        self._job.end("done", "; ".join(notes))

    def _replace_model(self) -> list[str]:
        """Train, score the archive, put the new model in use; return notes about the training."""
        labels, normal, abnormal = self._training_items()
        folder, notes = self.trainer.train(normal, abnormal, self._report)
        with self.models.unfinished(folder):
            self._report("scoring", 0.0)
            model = load_model(folder, self.trainer.extractor.device)
            scores = self.scores.score_all(model, lambda share: self._report("scoring", share))
            self.models.publish(folder)
        with self._lock:
            old, before = self.scores.replace(model, scores)
            self._changes = {
                "model_before": old and old.sha256,
                "model_after": model.sha256,
                "new_labels": changed_labels(labels, self._trained_on),
                "seconds": self.training()["seconds"],
                "moved": rank_changes(before, scores, [(i, self.studies.name(i)) for i in scores]),
                "now_flagged": sum(s.abnormal for s in scores.values()),
                "flagged_before": sum(s.abnormal for s in before.values()),
            }
            self._trained_on = labels
        return notes

    def training(self) -> dict[str, Any]:
        """Return the state of the latest training, see `Job.status`; stages: "features", "mining", "training", "scoring"."""
        return self._job.status()

    def changes(self) -> dict[str, Any] | None:
        """Return what the latest training changed; None before the first one since the start."""
        with self._lock:
            return self._changes
