"""The output folder of a training run: whose it is, and the state from which a killed run goes on."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from monai_wscxr.artefact import ARTEFACT
from monai_wscxr.atomic import save_torch_atomic, write_text_atomic
from monai_wscxr.errors import InputError

logger = logging.getLogger(__name__)

SETTINGS = "settings.json"


class RunFolder:
    """Output folder of one training run.

    A folder belongs to the settings of its first run. Running again with the same settings continues an interrupted
    training or repeats a finished one; other settings are refused, so no run overwrites another.

    Args:
        path: the folder; made if missing.
        settings: options of the run, JSON-like.
        overwrite: clear what another run left there.

    Raises:
        InputError: when the folder belongs to another run, holds foreign files, or cannot be written.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any], overwrite: bool = False) -> None:
        if not str(path):
            raise InputError("no output folder was given; add --output_dir DIR")
        self.path = Path(path)
        self.settings = json.loads(json.dumps(dict(settings)))
        self.states = self.path / "training"
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file; give a folder with --output_dir")
        # a process beside this one may just be writing its first file there
        if self.path.is_dir() and any(not p.name.endswith(".partial") for p in self.path.iterdir()):
            self._check_owner(overwrite)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_text_atomic(self.path / SETTINGS, json.dumps(self.settings, indent=1))
            self.states.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"the output folder {self.path} cannot be written ({error})") from error
        if (self.path / ARTEFACT).exists():  # a finished run: repeat it from the start
            self.forget_states()

    def _check_owner(self, overwrite: bool) -> None:
        owner = self.path / SETTINGS
        if not owner.is_file():
            raise InputError(
                f"{self.path} is not empty and is no output folder of a training run (it has no {SETTINGS}); "
                "give an empty or new folder with --output_dir"
            )
        try:
            before = json.loads(owner.read_text(encoding="utf-8"))
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
        for name in (ARTEFACT, "model.pt", "metrics.json", "predictions.csv"):
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.path / "report", ignore_errors=True)
        self.forget_states()

    def forget_states(self) -> None:
        """Remove the per-epoch states."""
        for path in self.states.glob("epoch_*.pt"):
            path.unlink(missing_ok=True)

    def save_state(self, epoch: int, state: Mapping[str, Any]) -> None:
        """Keep the state after an epoch (atomically). Every epoch is kept: the published protocol chooses among them."""
        save_torch_atomic(self.states / f"epoch_{epoch:04d}.pt", dict(state))

    def latest_state(self) -> dict[str, Any] | None:
        """State of the last finished epoch, or None."""
        paths = sorted(self.states.glob("epoch_*.pt"))
        return _load_state(paths[-1]) if paths else None


def epoch_discriminators(folder: str | Path) -> list[dict[str, Any]]:
    """States of the discriminator after each epoch of a finished run, in order."""
    paths = sorted((Path(folder) / "training").glob("epoch_*.pt"))
    return [_load_state(path)["discriminator"] for path in paths]


def _load_state(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"{path} is damaged ({type(error).__name__}); remove it and give the same command again"
        ) from error
