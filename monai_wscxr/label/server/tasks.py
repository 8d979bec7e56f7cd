"""MONAI Label's tasks, each a few lines around the workbench: inference, scoring, strategies, training."""

from __future__ import annotations

import datetime
import logging
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.async_tasks import utils as async_tasks

from monai_wscxr.data.radiograph.read import read_radiograph
from monai_wscxr.errors import InputError
from monai_wscxr.label.archive.studies import Refused
from monai_wscxr.label.pictures import overlay_png
from monai_wscxr.label.results import Predicted, map_nifti
from monai_wscxr.label.server.datastore import temporary_file
from monai_wscxr.label.workbench import Workbench

logger = logging.getLogger("monai_wscxr")

EXTENSIONS = (".nii.gz", ".png")


class AnomalyInfer(InferTask):
    """Score, p-value, decision and peak as JSON; the map as NIfTI, or laid over the radiograph as PNG.

    The parameter `result_extension` chooses the picture: ".nii.gz" (default) or ".png".
    """

    def __init__(self, workbench: Workbench) -> None:
        super().__init__(InferType.CLASSIFICATION, ["normal", "abnormal"], 2, "WSCXR anomaly score and map")
        self.workbench = workbench

    def is_valid(self) -> bool:
        """Whether there is a model."""
        return True

    def config(self) -> dict[str, Any]:
        """What a client may choose."""
        return {"result_extension": list(EXTENSIONS), "save_label": False}

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """File to send (MONAI Label removes it) and JSON result of `request["found"]`, a `Predicted`."""
        found: Predicted = request["found"]
        extension = request.get("result_extension") or EXTENSIONS[0]
        if isinstance(extension, list):  # a client that sends the configuration back
            extension = extension[0]
        if extension not in EXTENSIONS:
            raise Refused("bad_extension", f"result_extension must be one of {', '.join(EXTENSIONS)}")
        allow = self.workbench.trainer.extractor.allow
        radiograph = read_radiograph(found.file, allow=allow)
        height, width = radiograph.image.shape
        x, y = found.scored.peak
        result = {**found.to_dict(), "size": [width, height], "peak_pixel": [int(x * width), int(y * height)]}
        if extension == ".png":
            return temporary_file(overlay_png(found.file, found.anomaly_map, found.model, allow), ".png"), result
        return temporary_file(map_nifti(found, radiograph), ".nii.gz"), result


class ArchiveScoring(ScoringMethod):
    """Scores of all images of the archive that have none yet."""

    def __init__(self, workbench: Workbench) -> None:
        super().__init__("Anomaly scores of the archive")
        self.workbench = workbench

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Score and count."""
        self.workbench.refresh()
        status = self.workbench.status()
        return {name: status[name] for name in ("images", "scored", "rejected")}


class NextImage(Strategy):
    """The next image that a strategy would have labelled."""

    def __init__(self, workbench: Workbench, strategy: str, description: str) -> None:
        super().__init__(description)
        self.workbench, self.strategy = workbench, strategy

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """The head of the queue; empty when all has been looked at."""
        queue = self.workbench.queue(self.strategy, 1)
        return queue[0] if queue else {}


class Retraining(TrainTask):
    """Training on all labels and the known normals; the new model is in use when it ends."""

    def __init__(self, workbench: Workbench) -> None:
        super().__init__("WSCXR from image-level labels")
        self.workbench = workbench

    def stats(self) -> dict[str, Any]:
        """The model in use."""
        return {"model": self.workbench.status()["model"], "training": self.workbench.training()}

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train; what changed, with the ten largest moves."""
        changes = self.workbench.train()
        return {**changes, "moved": changes["moved"][:10]}


def run_in_this_process(task: dict[str, Any], method: str, callback: Any = None) -> None:
    """A background task of MONAI Label, which would start another interpreter for it: here its features are at hand."""
    task.update(status="RUNNING", details=[])
    try:
        task["result"] = getattr(app_instance(), method)(task["request"])
        task["status"] = "DONE"
    except InputError as error:
        task.update(status="ERROR", details=[str(error)])
    except Exception:
        logger.exception("%s failed", method)
        task.update(status="ERROR", details=["internal error; the server's log has it"])
    task["end_ts"] = datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S")
    if callback:
        callback(task)


def stay_in_this_process() -> None:
    """Let MONAI Label run its background tasks by `run_in_this_process`."""
    async_tasks._task_func = run_in_this_process


def uploaded(image: Any, folder: Path) -> Path | None:
    """The uploaded file that a request names, or None; nothing outside the folder of uploads counts."""
    if not isinstance(image, str):
        return None
    path = Path(image)
    return path if path.parent == folder and path.is_file() and not path.is_symlink() else None
