"""The MONAI Label app. `monai-wscxr label DIR --monailabel` starts it behind its guard, `monailabel start_server` without."""

from __future__ import annotations

import tempfile
from multiprocessing.util import get_temp_dir
from typing import Any

import yaml
from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp

from monai_wscxr.label.archive.open import open_studies
from monai_wscxr.label.archive.studies import Refused, UnknownImage
from monai_wscxr.label.messages import hide_folders
from monai_wscxr.label.server.datastore import WorkbenchDatastore, temporary_file
from monai_wscxr.label.server.tasks import (
    AnomalyInfer,
    ArchiveScoring,
    NextImage,
    Retraining,
    keep_tasks_in_this_process,
    uploaded,
)
from monai_wscxr.label.server.upkeep import keep_up
from monai_wscxr.label.server.uploads import Uploads
from monai_wscxr.label.strategies import STRATEGIES
from monai_wscxr.label.workbench import Workbench


class WSCXRApp(MONAILabelApp):
    """One workbench behind MONAI Label's interface.

    Args:
        app_dir: folder of this file.
        studies: folder of radiographs, or address of a DICOMweb server.
        conf: `normals`, `model`, `read_only`, `seed`, `bundle` and `options` (of `train.yaml`, as YAML), see `Workbench`;
            `work` and `modalities`, see `open_studies`.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, Any]) -> None:
        conf = dict(conf or {})
        keep_tasks_in_this_process()
        opened, work = open_studies(studies, conf.get("work"), conf.get("modalities"))
        self.workbench = Workbench(
            opened,
            work,
            conf.get("normals"),
            conf.get("model"),
            yaml.safe_load(conf.get("options") or "{}"),
            int(conf.get("seed") or 0),
            str(conf.get("read_only")).lower() in ("1", "true", "yes"),
            conf.get("bundle"),
        )
        # an upload is passed on as the path of a file, and a client could send any path: only paths in this folder count
        self.uploads = Uploads(work / "uploads")
        get_temp_dir()  # the sockets of worker processes stay where they are: their paths must be short
        tempfile.tempdir = str(self.uploads.folder)
        hide_folders(self.uploads.folder, app_dir)
        super().__init__(
            app_dir,
            studies,
            conf,
            name="WSCXR",
            description="Weakly supervised anomaly detection for chest radiographs: for research, not for diagnosis",
            labels=["normal", "abnormal"],
        )

    def init_datastore(self) -> WorkbenchDatastore:
        """Return the workbench as a datastore."""
        return WorkbenchDatastore(self.workbench)

    def init_infers(self) -> dict[str, Any]:
        """Return the only model."""
        return {"wscxr": AnomalyInfer(self.workbench)}

    def init_trainers(self) -> dict[str, Any]:
        """Return the only trainer."""
        return {"wscxr": Retraining(self.workbench)}

    def init_scoring_methods(self) -> dict[str, Any]:
        """Return the only scoring method."""
        return {"anomaly_score": ArchiveScoring(self.workbench)}

    def init_strategies(self) -> dict[str, Any]:
        """Return the strategies of the workbench."""
        return {name: NextImage(self.workbench, name, text) for name, text in STRATEGIES.items()}

    def encoded_inference(self, request: dict[str, Any]) -> tuple[str, bytes, dict[str, Any]]:
        """Predict one image, given by its id or as an upload. No other path in a request is opened.

        Returns:
            Name and content of the file with the map, and the result as JSON values.

        Raises:
            UnknownImage: on an unknown id.
            Refused: on an unknown model, or as `Workbench.predict`.
            RadiographError: when an upload cannot be used.
        """
        task = self._task(self._infers, request.get("model"), "model")
        image = request.get("image")
        upload = uploaded(image, self.uploads.folder)
        if upload is not None:
            found = self.workbench.predict_upload(upload)
        elif isinstance(image, str):
            found = self.workbench.predict(image)
        else:
            raise UnknownImage("")
        name, content, result = task.encoded(found, request.get("result_extension"), upload is not None)
        if upload is None and str(request.get("save_label", False)).lower() == "true":
            result["kept"] = self.workbench.keep_results(str(image))
        return name, content, result

    def infer(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Predict as `encoded_inference`, with the map in a temporary file that MONAI Label removes."""
        name, content, result = self.encoded_inference(request)
        file = temporary_file(content, name.removeprefix("map"))
        return {"label": file, "tag": request.get("label_tag", "original"), "file": file, "params": result}

    def next_sample(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the entry of the next image of a strategy, without its path."""
        return self._task(self._strategies, request.get("strategy"), "strategy")(request, self.datastore())

    def train(self, request: dict[str, Any]) -> dict[str, Any]:
        """Train, which scores the archive again."""
        return self._task(self._trainers, request.get("model"), "model")(request, self.datastore())

    def scoring(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Score the archive."""
        return self._task(self._scoring_methods, request.get("method"), "scoring method")(request, self.datastore())

    def batch_infer(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Refuse, because scoring predicts the whole archive."""
        raise Refused("unsupported", "POST /scoring/anomaly_score scores the whole archive")

    def infer_wsi(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Refuse, because there are no whole-slide images."""
        raise Refused("unsupported", "this server has no whole-slide images")

    @staticmethod
    def _task(tasks: dict[str, Any], name: Any, what: str) -> Any:
        """Return a task by name, or refuse an unknown one."""
        if not isinstance(name, str) or name not in tasks:
            raise Refused("unknown", f"there is no {what} of that name; choose from {', '.join(tasks)}")
        return tasks[name]

    def on_init_complete(self) -> None:
        """Score the archive and look for new images every minute, in a thread of its own."""
        if settings.MONAI_LABEL_AUTO_UPDATE_SCORING:
            keep_up(self.workbench)
