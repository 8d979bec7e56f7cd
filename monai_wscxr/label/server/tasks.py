"""MONAI Label's tasks on top of the workbench: inference, scoring, strategies, training."""

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

from monai_wscxr.errors import InputError
from monai_wscxr.label.archive.studies import Refused
from monai_wscxr.label.messages import without_paths
from monai_wscxr.label.results import ImagePrediction
from monai_wscxr.label.server.datastore import temporary_file
from monai_wscxr.label.workbench import Workbench

logger = logging.getLogger("monai_wscxr")

EXTENSIONS = (".nii.gz", ".png")


class AnomalyInfer(InferTask):
    """Inference: score, p-value, decision and peak as JSON, with the map as NIfTI or as an overlay in PNG.

    The request parameter `result_extension` chooses the format of the map: ".nii.gz" (default) or ".png".
    """

    def __init__(self, workbench: Workbench) -> None:
        super().__init__(InferType.CLASSIFICATION, ["normal", "abnormal"], 2, "WSCXR anomaly score and map")
        self.workbench = workbench

    def is_valid(self) -> bool:
        """Tell MONAI Label that the task can be offered."""
        return True

    def config(self) -> dict[str, Any]:
        """Return the parameters that a client may set."""
        return {"result_extension": list(EXTENSIONS), "save_label": False}

    def encoded(
        self, found: ImagePrediction, extension: Any = None, upload: bool = False
    ) -> tuple[str, bytes, dict[str, Any]]:
        """Encode a prediction.

        Args:
            found: the prediction.
            extension: the request's `result_extension`.
            upload: whether the image is an upload.

        Returns:
            Name and content of the file with the map, and the result as JSON values.

        Raises:
            Refused: on an unknown `result_extension`.
            RadiographError: when the file cannot be read.
        """
        if isinstance(extension, list) and extension:  # a client that sends the configuration back
            extension = extension[0]
        extension = extension or EXTENSIONS[0]
        if extension not in EXTENSIONS:
            raise Refused("bad_extension", f"result_extension must be one of {', '.join(EXTENSIONS)}")
        content, (width, height) = self.workbench.shown_result(found, extension, upload)
        x, y = found.score.peak
        result = {**found.to_dict(), "size": [width, height], "peak_pixel": [int(x * width), int(y * height)]}
        return f"map{extension}", content, result

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Encode `request["prediction"]`; return a temporary file, which MONAI Label removes, and the JSON result.

        Raises:
            Refused: as `encoded`.
        """
        name, content, result = self.encoded(request["prediction"], request.get("result_extension"))
        return temporary_file(content, name.removeprefix("map")), result


class ArchiveScoring(ScoringMethod):
    """Scoring of the images of the archive that have no score yet."""

    def __init__(self, workbench: Workbench) -> None:
        super().__init__("Anomaly scores of the archive")
        self.workbench = workbench

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Score, and return the numbers of images, of scores and of files that cannot be used."""
        self.workbench.refresh()
        status = self.workbench.status()
        return {name: status[name] for name in ("images", "scored", "rejected")}


class NextImage(Strategy):
    """A strategy: it picks the next image to label."""

    def __init__(self, workbench: Workbench, strategy: str, description: str) -> None:
        super().__init__(description)
        self.workbench, self.strategy = workbench, strategy

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Return the first entry of the queue; empty when all images are labelled or skipped."""
        queue = self.workbench.queue(self.strategy, 1)
        return queue[0] if queue else {}


class Retraining(TrainTask):
    """Training on all labels and the known normal images; at its end the new model is in use."""

    def __init__(self, workbench: Workbench) -> None:
        super().__init__("WSCXR from image-level labels")
        self.workbench = workbench

    def stats(self) -> dict[str, Any]:
        """Return the model in use and the state of the latest training."""
        return {"model": self.workbench.status()["model"], "training": self.workbench.training()}

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train; return what changed, with the ten largest changes of rank."""
        changes = self.workbench.train()
        return {**changes, "moved": changes["moved"][:10]}


def run_in_this_process(task: dict[str, Any], method: str, callback: Any = None) -> None:
    """Run a background task of MONAI Label here instead of in a new interpreter, which would lack the extracted features.

    Args:
        task: MONAI Label's record of the task, updated here.
        method: method of the app to call.
        callback: called with the record at the end.
    """
    task.update(status="RUNNING", details=[])
    try:
        task["result"] = getattr(app_instance(), method)(task["request"])
        task["status"] = "DONE"
    except InputError as error:
        task.update(status="ERROR", details=[without_paths(str(error))])
    except Exception:
        logger.exception("%s failed", method)
        task.update(status="ERROR", details=["internal error; see the server's log"])
    task["end_ts"] = datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S")
    if callback:
        callback(task)


def keep_tasks_in_this_process() -> None:
    """Make MONAI Label run its background tasks by `run_in_this_process`."""
    async_tasks._task_func = run_in_this_process


def uploaded(image: Any, folder: Path) -> Path | None:
    """Return the uploaded file that a request names; None when it names none in the folder of uploads."""
    if not isinstance(image, str):
        return None
    path = Path(image)
    return path if path.parent == folder and path.is_file() and not path.is_symlink() else None
