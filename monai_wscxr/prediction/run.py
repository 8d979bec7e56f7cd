"""A prediction run from end to end: inputs through workers and network into a folder, with a journal.

Results do not depend on interruptions: images meet the network in batches that follow from the list of inputs alone, places
of unusable or already finished images are filled with zeros, and what is finished is in the journal. So a run that was
killed ends with the files of one that was not.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import logging
import os
import shutil
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import monai_wscxr
from monai_wscxr.artefact import TrainedModel, load_model
from monai_wscxr.data.radiograph import MEMORY_LIMIT, RadiographError
from monai_wscxr.data.radiograph_gates import check_allowed
from monai_wscxr.errors import InputError
from monai_wscxr.extraction import progress_bar
from monai_wscxr.files import write_text_atomic
from monai_wscxr.parallel import ThreadParallel
from monai_wscxr.prediction import tasks
from monai_wscxr.prediction.inputs import Input, find_inputs
from monai_wscxr.prediction.journal import NAME as JOURNAL
from monai_wscxr.prediction.journal import Journal, Record
from monai_wscxr.prediction.tasks import MAP_FORMATS, Loaded, Wanted, Written
from monai_wscxr.prediction.workers import WorkerLostError, WorkerPool
from monai_wscxr.predictor import Prediction, to_prediction, write_csv
from monai_wscxr.report.run import Entry, write_run_report

logger = logging.getLogger("monai_wscxr")

_OWN = ("maps", "overlays", "dicom", "report", "predictions.csv", "predictions.json", JOURNAL)
_SECONDS_PER_MEBIBYTE = 1.0
_WRITING_SECONDS = 600.0  # a stuck disk, not a slow one
_AHEAD = 3  # batches that are read ahead of the network


@dataclass(frozen=True)
class Options:
    """What was asked for.

    Attributes:
        model: output folder of a training.
        paths: files, folders, DICOMDIRs.
        output: folder for the results.
        maps: format of the maps, one of `MAP_FORMATS`.
        overlays, report, dicom: whether to write them.
        workers: processes that decode and write; 0 does everything in one process. None: one per core, at most 8.
        batch_size: images per pass of the network.
        device: "cpu", "cuda" or None for a GPU if there is one.
        allow: gates of the loader that stay open.
        seconds: longest time that reading a small file may take; a file gets one more per MiB.
        overwrite: replace another run in `output`.
        progress: show a progress bar.
    """

    model: str
    paths: tuple[str, ...]
    output: str
    maps: str = "tiff"
    overlays: bool = True
    report: bool = True
    dicom: bool = False
    workers: int | None = None
    batch_size: int = 16
    device: str | None = None
    allow: tuple[str, ...] = ()
    seconds: float = 10.0
    overwrite: bool = False
    progress: bool = True

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            InputError: with the option and what is allowed.
        """
        if self.maps not in MAP_FORMATS:
            raise InputError(f"--maps {self.maps} is not possible; use {', '.join(MAP_FORMATS)}")
        if self.batch_size < 1:
            raise InputError(f"--batch_size must be at least 1, got {self.batch_size}")
        if self.workers is not None and not 0 <= self.workers <= 256:
            raise InputError(f"--workers must lie between 0 and 256, got {self.workers}")
        if not self.seconds > 0:
            raise InputError(f"--seconds must be greater than 0, got {self.seconds:g}")
        try:
            check_allowed(self.allow)
        except ValueError as error:
            raise InputError(f"--allow: {error}") from error
        if self.dicom:
            try:
                from monai_wscxr.report import dicom  # noqa: F401
            except ImportError as error:
                raise InputError(
                    f"DICOM results need a package that is not installed ({error.name}); "
                    "install it with: pip install 'monai-wscxr[dicom]'"
                ) from error


@dataclass
class Summary:
    """What a run did.

    Attributes:
        images, flagged, rejected: of the whole run, resumed parts included.
        done_before: inputs that an earlier, interrupted call had finished.
        seconds: wall time of this call after the model was loaded.
        decoding, network, writing: seconds of work of this call; decoding and writing summed over workers.
    """

    images: int = 0
    flagged: int = 0
    rejected: int = 0
    done_before: int = 0
    seconds: float = 0.0
    decoding: float = 0.0
    network: float = 0.0
    writing: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)

    def sentences(self) -> list[str]:
        """For the person at the console."""
        new = self.images - self.done_before
        work = self.decoding + self.network + self.writing or 1.0
        lines = [f"{self.images} images: {self.flagged} flagged, {self.rejected} rejected"]
        lines[0] += f" ({', '.join(f'{n} {code}' for code, n in sorted(self.reasons.items()))})" if self.reasons else ""
        if self.done_before:
            lines.append(f"{self.done_before} of them were done before")
        if new:
            lines.append(
                f"{new} images in {self.seconds:.1f} s, {new / self.seconds:.1f} images/s; of the work, decoding took "
                f"{self.decoding / work:.0%}, the network {self.network / work:.0%}, writing {self.writing / work:.0%}"
            )
        return lines


def predict(options: Options) -> Summary:
    """Predict everything and write the results.

    Raises:
        InputError: when an option, the model or the output folder cannot be used.
    """
    options.check()
    inputs, left_out = find_inputs(options.paths)
    if left_out:
        logger.warning("%d other files in the folders were left out: they are no pictures by name or content", left_out)
    model = load_model(options.model, _device(options.device))
    return Run(options, model, inputs).run()


class Run:
    """One call of the prediction command on a folder.

    Args:
        options: checked.
        model: loaded, on its device.
        inputs: in order.
    """

    def __init__(self, options: Options, model: TrainedModel, inputs: Sequence[Input]) -> None:
        self.options, self.model, self.inputs = options, model, list(inputs)
        self.folder = Path(options.output)
        self.summary = Summary(images=len(self.inputs))
        self.device = next(model.network.parameters()).device
        self.network = ThreadParallel(model.network)

    def run(self) -> Summary:
        """Predict what is not done yet, then write tables and report.

        Raises:
            InputError: when the output folder belongs to something else or cannot be written.
        """
        began = time.perf_counter()
        _claim(self.folder, self.options.overwrite)
        try:
            self._run()
        except OSError as error:  # what cannot be read has a row; this is about writing
            raise InputError(
                f"{self.folder} cannot be written ({error.strerror or type(error).__name__}); "
                "make room or give another folder with --output, then give the same command again"
            ) from error
        self.summary.seconds = time.perf_counter() - began
        return self.summary

    def _run(self) -> None:
        now = datetime.datetime.now().replace(microsecond=0).isoformat()
        journal = Journal(self.folder, self._identity(), {"began": now})
        try:
            self._make_folders()
            pending = [n for n, item in enumerate(self.inputs) if not self._is_done(journal.records.get(n), item)]
            self.summary.done_before = len(self.inputs) - len(pending)
            wanted = self._wanted(str(journal.extra["began"]))
            if pending:
                with contextlib.closing(self._pool(wanted, len(pending))) as pool:
                    self._predict(journal, pool, pending)
            self._finish(journal)
        finally:
            journal.close()

    # what the run is

    def _identity(self) -> dict[str, Any]:
        """Everything that a result depends on; another value of any of these needs another folder."""
        options, model = self.options, self.model
        scoring = [model.calibration.to_dict(), model.preprocessing.to_dict(), model.map_sigma]
        return {
            "version": monai_wscxr.__version__,
            "model": model.sha256,
            "scoring": _hash(json.dumps(scoring, sort_keys=True)),
            "inputs": _hash("\0".join(item.file for item in self.inputs)),
            "device": self.device.type,
            "batch_size": options.batch_size,
            "maps": options.maps,
            "overlays": options.overlays,
            "report": options.report,
            "dicom": options.dicom,
            "allow": sorted(options.allow),
        }

    def _wanted(self, began: str) -> Wanted:
        options = self.options
        return Wanted(
            folder=str(self.folder.resolve()),
            maps=options.maps,
            overlays=options.overlays,
            pictures=options.report,
            dicom=options.dicom,
            allow=tuple(options.allow),
            began=began,
        )

    def _pool(self, wanted: Wanted, pending: int) -> WorkerPool:
        chosen = self.options.workers
        workers = min(os.cpu_count() or 1, 8, pending) if chosen is None else chosen
        return WorkerPool(
            workers,
            tasks.prepare if workers else tasks.prepare_here,
            (tasks.without_network(self.model), wanted),
            seconds=_WRITING_SECONDS,
            memory=MEMORY_LIMIT,
            preload=["monai_wscxr.prediction.tasks"],
        )

    def _make_folders(self) -> None:
        options = self.options
        names = {"maps": options.maps != "none", "overlays": options.overlays, "dicom": options.dicom}
        names["report/pictures"] = options.report
        for name, there in names.items():
            if there:
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        # what a killed run had not yet renamed; the journal's lock says that no other run is at it
        for place in (self.folder, *(self.folder / name for name in names)):
            for left in place.glob(".*") if place.is_dir() else ():
                if left.suffix in (".tmp", ".partial"):
                    left.unlink(missing_ok=True)

    def _is_done(self, record: Record | None, item: Input) -> bool:
        """Whether a record still stands: of the same file as it is now, with all its results there."""
        if record is None or record["stamp"] != _stamp(item.path):
            return False
        return all((self.folder / name).is_file() for name in record["files"].values())

    # the work

    def _predict(self, journal: Journal, pool: WorkerPool, pending: Sequence[int]) -> None:
        waiting: deque[list[tuple[Record, Future[Written] | None]]] = deque()
        with progress_bar(len(self.inputs), "predicting", self.options.progress) as bar:
            bar.update(self.summary.done_before)
            for numbers, loaded in self._batches(pool, pending):
                waiting.append(self._score(pool, numbers, loaded))
                while len(waiting) > 2:
                    self._settle(journal, waiting.popleft(), bar)
            while waiting:
                self._settle(journal, waiting.popleft(), bar)

    def _batches(
        self, pool: WorkerPool, pending: Sequence[int]
    ) -> Iterator[tuple[range, dict[int, Loaded | RadiographError]]]:
        """Batches in which something is to be done, with what reading gave for their pending images."""
        size, total, todo = self.options.batch_size, len(self.inputs), set(pending)
        batches = [range(first, min(first + size, total)) for first in range(0, total, size)]
        waiting: deque[tuple[range, dict[int, Future[Loaded]]]] = deque()
        for numbers in batches:
            asked = {n: self._ask(pool, self.inputs[n].path) for n in numbers if n in todo and self._opens(n)}
            if not todo.isdisjoint(numbers):
                waiting.append((numbers, asked))
            if len(waiting) >= _AHEAD:
                yield self._collect(*waiting.popleft(), todo)
        while waiting:
            yield self._collect(*waiting.popleft(), todo)

    def _ask(self, pool: WorkerPool, path: str) -> Future[Loaded]:
        return pool.submit(tasks.read, path, seconds=self.options.seconds + _mebibytes(path) * _SECONDS_PER_MEBIBYTE)

    def _opens(self, number: int) -> bool:
        return self.inputs[number].problem is None

    def _collect(
        self, numbers: range, asked: dict[int, Future[Loaded]], todo: set[int]
    ) -> tuple[range, dict[int, Loaded | RadiographError]]:
        found: dict[int, Loaded | RadiographError] = {}
        for n in numbers:
            if n not in todo:
                continue
            item = self.inputs[n]
            if n not in asked:
                code, message = item.problem or ("unreadable", "")
                found[n] = RadiographError(code, item.file, message)
                continue
            try:
                found[n] = asked[n].result()
            except RadiographError as error:
                found[n] = error
            except WorkerLostError as lost:
                found[n] = self._lost(item, lost)
        return numbers, found

    def _lost(self, item: Input, lost: WorkerLostError) -> RadiographError:
        if lost.too_slow:
            seconds = self.options.seconds + _mebibytes(item.path) * _SECONDS_PER_MEBIBYTE
            message = f"reading it took longer than {seconds:.0f} s. Export it again, or raise --seconds."
            return RadiographError("too_slow", item.file, message)
        return RadiographError("crashed", item.file, "a decoding library crashed on it. Export or copy it again.")

    def _score(
        self, pool: WorkerPool, numbers: range, found: dict[int, Loaded | RadiographError]
    ) -> list[tuple[Record, Future[Written] | None]]:
        """Run the network over one batch and hand the results to the writers."""
        usable = {n: result for n, result in found.items() if isinstance(result, Loaded)}
        scores = self._forward(numbers, usable) if usable else None
        done: list[tuple[Record, Future[Written] | None]] = []
        for n, result in found.items():
            item = self.inputs[n]
            if isinstance(result, RadiographError) or scores is None:
                done.append((_record(n, item, Prediction.rejected(item.file, result.code), result), None))  # type: ignore[union-attr]
                continue
            self.summary.decoding += result.seconds
            prediction = to_prediction(self.model, item.file, scores[n - numbers.start, 0])
            small = _without_input(result)
            writing = pool.submit(tasks.write, n, item.path, prediction, small, urgent=True)
            done.append((_record(n, item, prediction, result), writing))
        return done

    def _forward(self, numbers: range, usable: dict[int, Loaded]) -> torch.Tensor:
        began = time.perf_counter()
        size = self.model.preprocessing.image_size
        batch = np.zeros((len(numbers), 3, size, size), np.float32)
        for n, loaded in usable.items():
            batch[n - numbers.start] = loaded.image
        with torch.inference_mode():
            scores = self.network(torch.from_numpy(batch).to(self.device)).float().cpu()
        self.summary.network += time.perf_counter() - began
        return scores

    def _settle(self, journal: Journal, done: list[tuple[Record, Future[Written] | None]], bar: tqdm) -> None:
        """Wait for the files of one batch, then put it into the journal."""
        for record, writing in done:
            if writing is None:
                continue
            try:
                written = writing.result()
            except WorkerLostError as lost:
                raise InputError(
                    f"results of {record['file']} could not be written ({lost}); is there memory and disk space? "
                    "Give the same command again to go on"
                ) from lost
            record["files"] = written.files
            if written.note:
                record["note"] = written.note
            self.summary.writing += written.seconds
        began = time.perf_counter()
        journal.append(record for record, _ in done)
        self.summary.writing += time.perf_counter() - began
        bar.update(len(done))

    # the end

    def _finish(self, journal: Journal) -> None:
        """Tables and report, from the journal alone."""
        began = time.perf_counter()
        records = [journal.records[n] for n in range(len(self.inputs))]
        predictions = [_prediction(record) for record in records]
        write_csv(self.folder / "predictions.csv", self.model, predictions)
        write_text_atomic(self.folder / "predictions.json", self._json(records))
        for p in predictions:
            self.summary.flagged += p.abnormal
            if p.status == "rejected":
                self.summary.rejected += 1
                self.summary.reasons[p.reason] = self.summary.reasons.get(p.reason, 0) + 1
        if self.options.report:
            self._report(records)
        self.summary.writing += time.perf_counter() - began

    def _report(self, records: Sequence[Record]) -> None:
        ok = [record["status"] == "ok" for record in records]
        entries = [
            Entry(
                name=record["file"],
                stem=f"{record['number']:06d}" if good else None,
                anomaly_score=record.get("anomaly_score"),
                p_value=record.get("p_value"),
                abnormal=record.get("abnormal"),
                reason="" if good else f"{record['reason']}: {record['message']}",
            )
            for record, good in zip(records, ok, strict=True)
        ]
        rate = self.model.calibration.false_positive_rate
        settings = {
            **self.model.settings,
            "model_sha256": self.model.sha256,
            "false_positive_rate": rate,
            "reader_chain": self.model.preprocessing.reader_chain,
            "device": self.device.type,
        }
        settings.pop("dataset_dir", None)
        normals = len(self.model.calibration.normal_scores)
        notes = [f"The threshold flags at most {rate:.0%} of normal images like the {normals} held out in training."]
        if self.summary.rejected:
            codes = ", ".join(f"{count} {code}" for code, count in sorted(self.summary.reasons.items()))
            notes.append(f"{self.summary.rejected} inputs were rejected and have no score: {codes}.")
        write_run_report(
            self.folder / "report" / "index.html",
            entries,
            tasks.colour_scale(self.model),
            self.model.calibration.threshold,
            settings,
            notes,
        )

    def _json(self, records: Sequence[Record]) -> str:
        model, calibration = self.model, self.model.calibration
        private = ("stamp", "number")
        description = {
            "format": 1,
            "version": monai_wscxr.__version__,
            "model": {
                "sha256": model.sha256,
                "threshold": calibration.threshold,
                "false_positive_rate": calibration.false_positive_rate,
                "colour_low": calibration.colour_low,
                "colour_high": calibration.colour_high,
                "image_size": model.preprocessing.image_size,
                "reader_chain": model.preprocessing.reader_chain,
            },
            "predictions": [{k: v for k, v in record.items() if k not in private} for record in records],
        }
        return json.dumps(description, indent=1) + "\n"


def _claim(folder: Path, overwrite: bool) -> None:
    """Make the folder, and clear a run that is to be replaced.

    Raises:
        InputError: when the folder holds something else than a prediction run, or cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give a folder with --output")
    if folder.is_dir() and not (folder / JOURNAL).is_file() and any(folder.iterdir()):
        raise InputError(
            f"{folder} is not empty and holds no prediction run (it has no {JOURNAL}); give an empty or new folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in _OWN if overwrite else ():
            path = folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"the output folder {folder} cannot be written ({error.strerror})") from error


def _device(wanted: str | None) -> torch.device:
    if wanted is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise InputError(f"--device {wanted} is not a device; use cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda was asked for, but torch sees no CUDA device here; use --device cpu")
    return device


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _stamp(path: str) -> str:
    """Changes when a file does; empty for what is not there."""
    try:
        state = os.stat(path)
    except (OSError, ValueError):
        return ""
    return _hash(f"{state.st_size} {state.st_mtime_ns}")[:16]


def _mebibytes(path: str) -> float:
    try:
        return os.path.getsize(path) / 2**20
    except (OSError, ValueError):
        return 0.0


def _without_input(loaded: Loaded) -> Loaded:
    """What the writer needs, without the large network input."""
    return replace(loaded, image=np.empty((0, 0, 0), np.float32))


def _record(number: int, item: Input, prediction: Prediction, result: Loaded | RadiographError) -> Record:
    record: Record = {
        "number": number,
        "file": item.file,
        "stamp": _stamp(item.path),
        "status": prediction.status,
        "reason": prediction.reason,
        "files": {},
    }
    if isinstance(result, RadiographError):
        record["message"] = result.message
        return record
    record.update(
        anomaly_score=prediction.anomaly_score,
        p_value=prediction.p_value,
        abnormal=prediction.abnormal,
        format=result.format,
        rows=result.rows,
        columns=result.columns,
        polarity=result.polarity,
        intensity=result.intensity,
    )
    return record


def _prediction(record: Record) -> Prediction:
    if record["status"] != "ok":
        return Prediction.rejected(record["file"], record["reason"])
    return Prediction(
        record["file"],
        "ok",
        "",
        record["anomaly_score"],
        record["p_value"],
        record["abnormal"],
        np.empty((0, 0), np.float32),
    )
