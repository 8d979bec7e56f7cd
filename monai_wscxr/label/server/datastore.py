"""MONAI Label's view of a workbench: its datastore."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from monai_wscxr.data.radiograph.read import RadiographError, read_radiograph
from monai_wscxr.label.archive.studies import FolderStudies, Label, Refused, UnknownImage
from monai_wscxr.label.workbench import Workbench

FINAL = DefaultLabelTag.FINAL.value
LARGEST_LABEL = 4096  # bytes of an image-level label


class WorkbenchDatastore(Datastore):
    """Images and labels of a workbench under MONAI Label's names.

    The label with tag "final" is the image-level one, a JSON file {"image_label": 0 or 1, "class": "..."}. Results that are
    kept of an image are labels whose tag is their kind (`RESULT_SUFFIXES`). A label's id is the id of its image.

    Args:
        workbench: what is shown.
    """

    def __init__(self, workbench: Workbench) -> None:
        self.workbench, self.studies = workbench, workbench.studies
        self._info: dict[str, dict[str, Any]] = {}

    def name(self) -> str:
        """What the studies are called."""
        return Path(self.studies.source).name or self.studies.source

    def set_name(self, name: str) -> None:
        """Refused: the name is that of the studies."""
        raise Refused("unsupported", "the name of the studies is fixed")

    def description(self) -> str:
        """One line."""
        return "Radiographs with image-level labels"

    def set_description(self, description: str) -> None:
        """Refused."""
        raise Refused("unsupported", "the description of the studies is fixed")

    def datalist(self) -> list[dict[str, Any]]:
        """Labelled images."""
        return [{"image": i, "label": v.to_dict()} for i, v in self.studies.labels().items()]

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        """Tags of an image's labels, each with the label's id."""
        tags = dict.fromkeys(self.studies.results(image_id), image_id)
        return {**tags, FINAL: image_id} if image_id in self.studies.labels() else tags

    def get_label_by_image_id(self, image_id: str, tag: str) -> str:
        """The label's id, or an empty text."""
        return self.get_labels_by_image_id(image_id).get(tag, "")

    def get_image(self, image_id: str, params: Any = None) -> Any:
        """The file's bytes."""
        return self.studies.file(image_id).read_bytes()

    def get_image_uri(self, image_id: str) -> str:
        """Path of the image on this machine."""
        return str(self.studies.file(image_id))

    def get_label(self, label_id: str, label_tag: str, params: Any = None) -> Any:
        """The file's bytes."""
        return Path(self.get_label_uri(label_id, label_tag)).read_bytes()

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """Path of a label's file on this machine."""
        if label_tag == FINAL:
            label = self.studies.labels().get(label_id)
            if label is None:
                raise UnknownImage(label_id)
            folder = self.workbench.folder / "served"
            folder.mkdir(exist_ok=True)
            path = folder / f"{label_id}.json"
            path.write_text(json.dumps(label.to_dict()), encoding="utf-8")
            return str(path)
        kept = self.studies.results(label_id).get(label_tag)
        if kept is None:
            raise UnknownImage(label_id)
        return str(kept)

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """The workbench's entry of the image."""
        return {**self._info.get(image_id, {}), **self.workbench.item(image_id)}

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """The label's values, or which result it is."""
        if label_tag == FINAL:
            label = self.studies.labels().get(label_id)
            if label is None:
                raise UnknownImage(label_id)
            return label.to_dict()
        return {"kind": label_tag, "file": Path(self.get_label_uri(label_id, label_tag)).name}

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Ids of images that have been looked at."""
        return list(self.studies.labels())

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Ids of the others."""
        done = self.studies.labels()
        return [i for i in self.studies.ids() if i not in done]

    def list_images(self) -> list[str]:
        """All ids."""
        return self.studies.ids()

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """Refused: radiographs do not leave in one file."""
        raise Refused("unsupported", "this server does not pack the studies into a file")

    def refresh(self) -> None:
        """Look for images that came or went."""
        self.studies.refresh()

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Put an uploaded radiograph into the studies folder, under a name of this server's.

        Raises:
            Refused: when the file is no radiograph, or the studies are no folder.
        """
        if not isinstance(self.studies, FolderStudies):
            raise Refused("unsupported", "send images to the archive itself")
        if self.workbench.read_only:
            raise Refused("read_only", "this server takes no images")
        try:
            read_radiograph(image_filename, allow=self.workbench.trainer.extractor.allow)
        except RadiographError as error:
            raise Refused(error.code, f"this file cannot be used as a radiograph ({error.code})") from error
        return self.studies.add(Path(image_filename))

    def remove_image(self, image_id: str) -> None:
        """Refused."""
        raise Refused("unsupported", "images are removed from the studies themselves, not through this server")

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Keep an image-level label; with another tag than "final", the model's results of the image.

        Raises:
            UnknownImage, Refused: see `Workbench.set_label`.
        """
        if label_tag != FINAL:
            self.workbench.keep_results(image_id)
            return image_id
        self.studies.file(image_id)  # an unknown image counts before a bad label
        content = Path(label_filename).read_bytes()[: LARGEST_LABEL + 1]
        try:
            values = json.loads(content) if len(content) <= LARGEST_LABEL else None
        except ValueError:
            values = None
        allowed = {"image_label", "class", "skipped"}
        if not isinstance(values, dict) or not values or set(values) - allowed:
            raise Refused("bad_label", 'a label is a JSON object {"image_label": 0 or 1, "class": "..."}')
        wanted = Label.checked(values.get("image_label"), values.get("class"), values.get("skipped", False))
        self.workbench.set_label(image_id, wanted.label, wanted.image_class, wanted.skipped)
        return image_id

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Take an image-level label back."""
        if label_tag != FINAL:
            raise Refused("unsupported", "results of the model are replaced, not removed")
        if label_id not in self.studies.labels():
            raise UnknownImage(label_id)
        self.workbench.set_label(label_id, None)

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Notes of clients, kept until the server stops."""
        self.studies.name(image_id)
        self._info.setdefault(image_id, {}).update(info)

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Refused: a label is what its file says."""
        raise Refused("unsupported", "a label is changed by saving it again")

    def status(self) -> dict[str, Any]:
        """Counts."""
        status = self.workbench.status()
        return {
            "total": status["images"],
            "completed": sum(status["labels"].values()),
            "label_tags": {FINAL: status["labels"]},
        }

    def json(self) -> dict[str, Any]:
        """Every image with its entry."""
        return {"objects": {entry["id"]: entry for entry in self.workbench.items()}}


def temporary_file(data: bytes, suffix: str) -> str:
    """A file that MONAI Label sends and removes."""
    with tempfile.NamedTemporaryFile(suffix=suffix, delete=False) as file:
        file.write(data)
    return file.name


def private_folder(root: Path) -> Path:
    """An empty folder for uploads, which nobody else may look into; what an earlier server left there is gone."""
    folder = root / "uploads"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)
    return folder
