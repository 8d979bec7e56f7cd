"""The trained models of a workbench on disk: a folder for each, and a link to the one in use that is replaced in one step."""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import re
import shutil
import uuid
from pathlib import Path
from typing import IO, Any

from monai_wscxr.errors import InputError
from monai_wscxr.model.artefact import ARTEFACT, TrainedModel

CURRENT = "model"
_NAME = re.compile(r"\d{6}")


class ModelFolders:
    """`models/000001`, `models/000002`, ... below a folder, and the link `model` to the one in use.

    Each is the output folder of one training, complete before the link moves to it by a rename. So whatever moment a crash
    comes at, `model` is the old model or the new one, and `--model FOLDER/model` works for every command that takes one.

    Args:
        root: the workbench's folder; made if missing.
        keep: newest models kept; older ones and what interrupted trainings left are removed.
    """

    def __init__(self, root: Path, keep: int = 3) -> None:
        self.root, self.keep = root, keep
        self.models = root / "models"
        self.models.mkdir(parents=True, exist_ok=True)

    def current(self) -> Path | None:
        """Folder of the model in use, or None before the first."""
        link = self.root / CURRENT
        return link.resolve() if (link / ARTEFACT).is_file() else None

    def new(self) -> Path:
        """Path of the next model's folder, not made yet."""
        numbers = [int(path.name) for path in self.models.iterdir() if _NAME.fullmatch(path.name)]
        return self.models / f"{max(numbers, default=0) + 1:06d}"

    def publish(self, folder: Path) -> None:
        """Put a finished model in use."""
        temporary = self.root / f".{CURRENT}.{uuid.uuid4().hex[:8]}.partial"
        os.symlink(os.path.relpath(folder, self.root), temporary, target_is_directory=True)
        os.replace(temporary, self.root / CURRENT)
        _sync(self.root)
        self._tidy(folder)

    def _tidy(self, current: Path) -> None:
        folders = sorted(path for path in self.models.iterdir() if _NAME.fullmatch(path.name))
        finished = [path for path in folders if (path / ARTEFACT).is_file() and path <= current]
        for path in folders:
            if path != current and path not in finished[-self.keep :]:
                shutil.rmtree(path, ignore_errors=True)
                path.with_suffix(".json").unlink(missing_ok=True)
        for left in self.root.glob(f".{CURRENT}.*.partial"):
            left.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def hold(folder: Path) -> IO[bytes]:
    """Take a folder for this process, for as long as what is returned stays open.

    Raises:
        InputError: when another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = open(folder / ".lock", "wb")  # noqa: SIM115 - the lock lasts as long as the file is open
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        handle.close()
        raise InputError(f"another server is working in {folder}; stop it, or give this one another --work") from error
    return handle


def described(model: TrainedModel) -> dict[str, Any]:
    """Which model this is: hash of its weights, when it was trained, on how many images, and the bar its scores lie on.

    The bar runs from the lowest score of the held-out normals, over the operating point, to as far above it as the
    operating point is above their median, twice; it is the model's, never that of the image at hand.
    """
    normals, threshold = model.calibration.normal_scores, model.calibration.threshold
    reach = max(threshold - normals[len(normals) // 2], 1e-6 * max(1.0, abs(threshold)))
    path = model.folder / ARTEFACT
    record = json.loads(path.read_text(encoding="utf-8"))["training"]
    return {
        "sha256": model.sha256,
        "trained": datetime.datetime.fromtimestamp(path.stat().st_mtime).isoformat(timespec="seconds"),
        "normal": record["normal_images"],
        "abnormal": sum(record["abnormal_images"].values()),
        "held_out": len(normals),
        "scale": {"low": normals[0], "threshold": threshold, "high": threshold + 2 * reach},
    }
