"""The output folder of a training run: which run it belongs to, and the state from which a killed run continues."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_wscxr.errors import InputError
from monai_wscxr.model.description import ARTEFACT, WEIGHTS
from monai_wscxr.system.atomic import (
    DamagedError,
    DiskFullError,
    full_disk,
    is_disk_full,
    on_disk,
    remove_partials,
    sync,
    write_text_atomic,
)
from monai_wscxr.system.folder_lock import NAME as LOCK
from monai_wscxr.system.folder_lock import FolderLock, lock_folder
from monai_wscxr.system.processes import first_process, wait_for_all
from monai_wscxr.system.sealed import load_sealed, save_sealed

logger = logging.getLogger(__name__)

SETTINGS = "settings.json"
FINISHED = "finished"  # a file in the folder of the states; it appears when the model of the run is written
_RESULTS = (ARTEFACT, WEIGHTS, "model.ts", "model.onnx", "metrics.json", "predictions.csv", "predictions", "report")


class RunFolder:
    """Output folder of one training run, locked against other processes while this object lives.

    A folder belongs to the settings of its first run. Running again with the same settings continues an interrupted
    training or repeats a finished one; other settings are refused, so no run overwrites another. With several ranks the
    first prepares the folder.

    Args:
        path: the folder; created if missing.
        settings: settings of the run, JSON-like, see `run_settings`.
        overwrite: replace the results of another run.

    Raises:
        InputError: when the folder belongs to another run, is in use, holds foreign files, or cannot be written.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any], overwrite: bool = False) -> None:
        if not str(path):
            raise InputError("no output folder was given; add --output_dir DIR")
        self.path = Path(path)
        self.settings = json.loads(json.dumps(dict(settings)))
        self.states = self.path / "training"
        self.lock: FolderLock | None = None
        if first_process():
            self._prepare(overwrite)
        wait_for_all()

    def _prepare(self, overwrite: bool) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file; give a folder with --output_dir")
        self._check_kind()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock = lock_folder(self.path)
            self._check_owner(overwrite)
            remove_partials(self.path)
            # before anything else: a folder without settings is taken for a foreign one
            write_text_atomic(self.path / SETTINGS, json.dumps(self.settings, indent=1))
            self.states.mkdir(exist_ok=True)
            remove_partials(self.states)
            if self.finished:  # repeat it from the start; killed before the mark is gone, the next run does this again
                self.forget_states()
                (self.states / FINISHED).unlink()
                sync(self.states)
        except DiskFullError:
            raise
        except OSError as error:
            if is_disk_full(error):
                raise full_disk(self.path, on_disk(1), f"the output folder {self.path}") from error
            raise InputError(f"the output folder {self.path} cannot be written ({error})") from error

    def _check_kind(self) -> None:
        own = {SETTINGS, LOCK}
        if not self.path.is_dir() or (self.path / SETTINGS).is_file():
            return
        # a process killed before it wrote its settings, or one that is just starting, leaves no more than these
        if any(p.name not in own and not p.name.endswith(".partial") for p in self.path.iterdir()):
            raise InputError(
                f"{self.path} is not empty and is no output folder of a training run (it has no {SETTINGS}); "
                "give an empty or new folder with --output_dir"
            )

    def _check_owner(self, overwrite: bool) -> None:
        try:
            before = json.loads((self.path / SETTINGS).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        except ValueError:
            before = None
        before = before if isinstance(before, dict) else {}
        if before == self.settings:
            return
        changed = [k for k in {*before, *self.settings} if before.get(k) != self.settings.get(k)]
        listed = "; ".join(f"{k}: {before.get(k)} there, {self.settings.get(k)} now" for k in sorted(changed))
        if not overwrite:
            raise InputError(
                f"{self.path} belongs to a run with other settings ({listed}); "
                "choose another --output_dir, or replace that run with --overwrite true"
            )
        logger.warning("replacing the run in %s (%s)", self.path, listed)
        self.forget_states()
        for name in _RESULTS:
            found = self.path / name
            if found.is_dir():
                shutil.rmtree(found)
            else:
                found.unlink(missing_ok=True)

    @property
    def finished(self) -> bool:
        """True when the run that left its states here has written its model."""
        return (self.states / FINISHED).exists()

    def finish(self) -> None:
        """Mark the run as finished; call it when the model is written."""
        write_text_atomic(self.states / FINISHED, "")

    def forget_states(self) -> None:
        """Remove the per-epoch states."""
        for path in self.states.glob("epoch_*.pt*"):
            path.unlink(missing_ok=True)

    def save_state(self, epoch: int, state: Mapping[str, Any]) -> None:
        """Write the state after an epoch, atomically. Every epoch is kept, since the published protocol chooses among them."""
        save_sealed(self.states / f"epoch_{epoch:04d}.pt", dict(state))

    def latest_state(self) -> dict[str, Any] | None:
        """Load the state of the last finished epoch, or None; damaged ones are put aside with a warning."""
        for path in sorted(self.states.glob("epoch_*.pt"), reverse=True):
            try:
                return load_sealed(path)
            except DamagedError as error:
                logger.warning("%s; the run continues from the state before it", error)
                if first_process():
                    path.rename(path.with_suffix(".pt.damaged"))
        return None


def epoch_discriminators(folder: str | Path) -> list[dict[str, Any]]:
    """Load the discriminator's states after each epoch of a finished run, in order.

    Raises:
        InputError: when one is damaged.
    """
    paths = sorted((Path(folder) / "training").glob("epoch_*.pt"))
    try:
        return [load_sealed(path)["discriminator"] for path in paths]
    except DamagedError as error:
        raise InputError(f"{error}; give the command of the training again") from error
