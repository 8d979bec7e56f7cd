"""The trained models of a workbench on disk: one folder each, and a link to the model in use that is replaced in one step."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from monai_wscxr.errors import InputError
from monai_wscxr.model.artefact import TrainedModel
from monai_wscxr.model.description import ARTEFACT
from monai_wscxr.system.atomic import sync
from monai_wscxr.system.folder_lock import FolderLock

CURRENT = "model"
_NAME = re.compile(r"\d{6}")


class ModelFolders:
    """The folders `models/000001`, `models/000002`, ... and the link `model` to the one in use.

    Each is the output folder of one training, complete before a rename moves the link to it. So after a crash at any moment
    `model` is the old model or the new one, and `FOLDER/model` works for every command that takes a trained model.

    Args:
        root: folder of the workbench; created if missing.
        keep: number of newest models to keep; older ones and leftovers of interrupted trainings are removed.
    """

    def __init__(self, root: Path, keep: int = 3) -> None:
        self.root, self.keep = root, keep
        self.models = root / "models"
        self.models.mkdir(parents=True, exist_ok=True)

    def current(self) -> Path | None:
        """Return the folder of the model in use, or None before the first one."""
        link = self.root / CURRENT
        return link.resolve() if (link / ARTEFACT).is_file() else None

    def new(self) -> Path:
        """Return the path of the next model's folder, without creating it."""
        numbers = [int(path.name) for path in self.models.iterdir() if _NAME.fullmatch(path.name)]
        return self.models / f"{max(numbers, default=0) + 1:06d}"

    @contextlib.contextmanager
    def unfinished(self, folder: Path) -> Iterator[None]:
        """Remove a model's folder when the block, which makes or tries the model, fails: it would only take up room."""
        try:
            yield
        except BaseException:
            if self.current() != folder.resolve():
                _remove(folder)
            raise

    def publish(self, folder: Path) -> None:
        """Put a finished model in use and remove old ones."""
        temporary = self.root / f".{CURRENT}.{uuid.uuid4().hex[:8]}.partial"
        os.symlink(os.path.relpath(folder, self.root), temporary, target_is_directory=True)
        os.replace(temporary, self.root / CURRENT)
        sync(self.root)
        self.tidy()

    def tidy(self) -> None:
        """Remove old models, and what interrupted trainings have left; no training may be under way."""
        current = self.current()
        names = {path.stem for path in self.models.iterdir() if _NAME.fullmatch(path.stem)}
        folders = sorted(self.models / name for name in names)
        used = "" if current is None else current.name
        finished = [path.name for path in folders if (path / ARTEFACT).is_file() and path.name <= used]
        for path in folders:
            if path.name not in (used, *finished[-self.keep :]):
                _remove(path)
        for left in self.root.glob(f".{CURRENT}.*.partial"):
            left.unlink(missing_ok=True)


def _remove(folder: Path) -> None:
    """Remove the folder of a model and the data list beside it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_suffix(".json").unlink(missing_ok=True)


@contextlib.contextmanager
def held_folder(folder: Path) -> Iterator[None]:
    """Reserve a folder for this process during the block; created if missing.

    Raises:
        InputError: when another process, or another workbench of this one, holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FolderLock(folder)
    except InputError as error:
        raise InputError(f"another server is working in {folder}; stop it, or give this one another --work") from error
    try:
        yield
    finally:
        lock.release()


def model_fields(model: TrainedModel) -> dict[str, Any]:
    """Describe a model: hash of its weights, time and images of its training, and the score bar of the labelling page.

    The bar is a property of the model, not of an image. It runs from the lowest score of the held-out normals to a point
    above the threshold, at twice the distance between the threshold and their median.
    """
    normals, threshold = model.calibration.normal_scores, model.calibration.threshold
    reach = max(threshold - normals[len(normals) // 2], 1e-6 * max(1.0, abs(threshold)))
    path, record = model.folder / ARTEFACT, model.training
    return {
        "sha256": model.sha256,
        "trained": datetime.datetime.fromtimestamp(path.stat().st_mtime).isoformat(timespec="seconds"),
        "normal": record["normal_images"],
        "abnormal": sum(record["abnormal_images"].values()),
        "held_out": len(normals),
        "scale": {"low": normals[0], "threshold": threshold, "high": threshold + 2 * reach},
    }
