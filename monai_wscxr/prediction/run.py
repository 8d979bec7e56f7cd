"""A prediction run from end to end: worker processes read images, the network scores them, workers write the results.

Results do not depend on interruptions. Images pass the network in batches that depend on the list of inputs only, with zeros
in place of unusable or finished images, and the journal records what is finished. So a run that was killed and resumed gives
the same files as an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from monai_wscxr.data.radiograph.base import MEMORY_LIMIT, RadiographError
from monai_wscxr.errors import InputError
from monai_wscxr.model.predictions import Prediction, check_images, to_prediction
from monai_wscxr.prediction import folder, tasks
from monai_wscxr.prediction.inputs import Input, find_inputs
from monai_wscxr.prediction.journal import Journal, Record
from monai_wscxr.prediction.network import Network, check_openable, open_network
from monai_wscxr.prediction.options import Options, Summary
from monai_wscxr.prediction.reading import Found, Reader
from monai_wscxr.prediction.results import add_drift, add_files, make_record, write_results
from monai_wscxr.prediction.tasks import Loaded, OutputOptions, Written
from monai_wscxr.system.atomic import is_disk_full
from monai_wscxr.system.progress import progress_bar
from monai_wscxr.system.workers import WorkerLostError, WorkerPool, start_server

logger = logging.getLogger("monai_wscxr")

_WRITING_SECONDS = 600.0  # only a disk that does not respond at all takes longer
_BATCHES_IN_WRITING = 2
_PRELOAD = ("monai_wscxr.prediction.tasks",)

Writing = list[tuple[Record, Future[Written] | None]]


def predict(options: Options) -> Summary:
    """Predict all inputs and write the results.

    Raises:
        InputError: when an option, the model or the output folder cannot be used.
    """
    options.check()
    check_openable(options.model, options.device, options.runtime)  # before the inputs, whose list may take minutes
    inputs, left_out = find_inputs(options.paths, without=options.output)
    if left_out:
        files = "1 other file" if left_out == 1 else f"{left_out} other files"
        logger.warning("left out of the folders: %s, no images by name or content", files)
    if options.workers != 0:
        start_server(_PRELOAD)  # imports in parallel with opening the model
    return Run(options, open_network(options.model, options.device, options.runtime), inputs).run()


class Run:
    """One call of a prediction run.

    Args:
        options: options of the run, checked.
        network: the model, opened.
        inputs: all inputs, in order.
    """

    def __init__(self, options: Options, network: Network, inputs: Sequence[Input]) -> None:
        self.options, self.network, self.model, self.inputs = options, network, network.model, list(inputs)
        self.folder = Path(options.output)
        self.summary = Summary(images=len(self.inputs))
        self.records: dict[int, Record] = {}

    def run(self) -> Summary:
        """Predict the inputs that are not done yet, then write tables and report.

        Raises:
            InputError: when the output folder belongs to something else or cannot be written.
        """
        began = time.perf_counter()
        try:
            folder.claim(self.folder, self.options.overwrite)
            self._run()
        except OSError as error:  # raised by writing; an input that cannot be read is a rejected one
            if is_disk_full(error):
                side = self.model.preprocessing.image_size
                full = folder.full_disk(self.folder, self.options, side, self.records, self.inputs)
                raise InputError(full) from error
            raise InputError(
                f"{self.folder} cannot be written ({error.strerror or type(error).__name__}); "
                "make room or give another folder with --output, then give the same command again"
            ) from error
        self.summary.seconds = time.perf_counter() - began
        return self.summary

    def _run(self) -> None:
        """Predict and write the results, with the journal open."""
        now = datetime.datetime.now().replace(microsecond=0).isoformat()
        computing = {"device": self.network.device, "runtime": self.network.record()}
        identity = folder.identity(self.options, self.model, self.inputs, computing)
        with contextlib.closing(Journal(self.folder, identity, {"began": now})) as journal:
            folder.make_folders(self.folder, self.options)
            records = self.records = journal.records
            pending = [n for n, i in enumerate(self.inputs) if not folder.is_done(self.folder, records.get(n), i)]
            self.summary.done_before = len(self.inputs) - len(pending)
            if pending:
                with contextlib.closing(self._pool(str(journal.extra["began"]), len(pending))) as pool:
                    self._predict(journal, pool, pending)
            began = time.perf_counter()
            ordered = [records[n] for n in range(len(self.inputs))]
            write_results(self.folder, self.model, ordered, self.network.device, self.options.report, self.summary)
            self.summary.writing += time.perf_counter() - began

    def _pool(self, began: str, pending: int) -> WorkerPool:
        """Start the worker processes for a number of pending inputs."""
        options = self.options
        output = OutputOptions(
            folder=str(self.folder.resolve()),
            maps=options.maps,
            overlays=options.overlays,
            pictures=options.report,
            dicom=options.dicom,
            allow=tuple(options.allow),
            began=began,
        )
        workers = min(os.cpu_count() or 1, 8, pending) if options.workers is None else options.workers
        return WorkerPool(
            workers,
            tasks.prepare if workers else tasks.prepare_here,
            (self.model.without_network(), output),
            seconds=_WRITING_SECONDS,
            memory=MEMORY_LIMIT,
            preload=_PRELOAD,
        )

    def _predict(self, journal: Journal, pool: WorkerPool, pending: Sequence[int]) -> None:
        """Predict the pending inputs; reading, network and writing overlap."""
        reader = Reader(pool, self.inputs, self.options.batch_size, self.options.seconds)
        waiting: deque[Writing] = deque()
        with progress_bar(len(self.inputs), "predicting", self.options.progress) as bar:
            bar.update(self.summary.done_before)
            for numbers, found in reader.batches(pending):
                waiting.append(self._score(pool, numbers, found))
                while len(waiting) > _BATCHES_IN_WRITING:
                    self._finish(journal, waiting.popleft(), bar)
            while waiting:
                self._finish(journal, waiting.popleft(), bar)

    def _score(self, pool: WorkerPool, numbers: range, found: Found) -> Writing:
        """Pass one batch through the network and submit the results for writing."""
        usable = {n: result for n, result in found.items() if isinstance(result, Loaded)}
        done: Writing = []
        scores, refusals, places = self._forward(numbers, usable) if usable else (np.empty(0, np.float32), [], None)
        for n, result in found.items():
            item = self.inputs[n]
            if not isinstance(result, Loaded):
                done.append((make_record(n, item, Prediction.rejected(item.file, result.code), result), None))
                continue
            self.summary.decoding += result.seconds
            prediction = to_prediction(self.model, item.file, scores[n - numbers.start, 0])
            refusal = refusals[n - numbers.start]
            if refusal is not None:
                done.append((make_record(n, item, Prediction.rejected(item.file, refusal.code), refusal), None))
                continue
            small = replace(result, image=np.empty((0, 0, 0), np.float32))  # the writer needs no network input
            writing = pool.submit(tasks.write, n, item.path, prediction, small, urgent=True)
            record = make_record(n, item, prediction, result)
            if places is not None:
                add_drift(record, places[n - numbers.start], self.model)
            done.append((record, writing))
        return done

    def _forward(
        self, numbers: range, usable: dict[int, Loaded]
    ) -> tuple[NDArray[np.float32], list[RadiographError | None], NDArray[np.float32] | None]:
        """Return of a batch the patch scores [B, 1, h, w], the reason to refuse each image, and coordinates [B, d] for drift.

        Images are refused that are unlike a chest. There are no coordinates when the model has no reference for drift. Images
        that are not usable are zeros; what is returned for them means nothing.
        """
        began = time.perf_counter()
        size = self.model.preprocessing.image_size
        channels = len(self.model.preprocessing.mean)
        batch = np.zeros((len(numbers), channels, size, size), np.float32)
        for n, loaded in usable.items():
            batch[n - numbers.start] = tasks.network_input(self.model.preprocessing, loaded)
        scores, means = self.network(batch)
        refusals = check_images(self.model, means, self.options.allow)
        places = None if self.model.drift is None else self.model.drift.coordinates(means)
        self.summary.network += time.perf_counter() - began
        return scores, refusals, places

    def _finish(self, journal: Journal, done: Writing, bar: tqdm) -> None:
        """Wait for the files of one batch, then append it to the journal."""
        for record, writing in done:
            if writing is None:
                continue
            try:
                written = writing.result()
            except WorkerLostError as lost:
                raise InputError(
                    f"results of {record['file']} could not be written ({lost}); check memory and disk space, "
                    "then give the same command again to resume"
                ) from lost
            add_files(record, written)
            self.summary.writing += written.seconds
        began = time.perf_counter()
        journal.append(record for record, _ in done)
        self.summary.writing += time.perf_counter() - began
        bar.update(len(done))
