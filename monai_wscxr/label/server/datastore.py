"""The images and labels of a workbench as a MONAI Label datastore."""

from __future__ import annotations

import copy
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from monai_wscxr.data.radiograph.base import RadiographError
from monai_wscxr.label.archive.folder import FolderStudies
from monai_wscxr.label.archive.studies import Label, Refused, UnknownImage
from monai_wscxr.label.server.values import BadRequest, check_object
from monai_wscxr.label.workbench import Workbench
from monai_wscxr.system.atomic import replacing

FINAL = DefaultLabelTag.FINAL.value
LARGEST_LABEL = 4096  # bytes of a label file
LARGEST_NOTES = 1 << 16  # characters


class WorkbenchDatastore(Datastore):
    """The images and labels of a workbench, in MONAI Label's terms.

    The label with tag "final" is the image-level label, a JSON file {"image_label": 0 or 1, "class": "..."}. Stored results
    of an image are labels whose tag is their kind (`RESULT_SUFFIXES`). A label's id is the id of its image.

    Args:
        workbench: the workbench.
    """

    def __init__(self, workbench: Workbench) -> None:
        self.workbench, self.studies = workbench, workbench.studies
        self._info: dict[str, dict[str, Any]] = {}

    def name(self) -> str:
        """Return the name of the studies."""
        return Path(self.studies.source).name or self.studies.source

    def set_name(self, name: str) -> None:
        """Refuse, because the studies give the name."""
        raise Refused("unsupported", "the name of the studies is fixed")

    def description(self) -> str:
        """Return a description in one line."""
        return "Radiographs with image-level labels"

    def set_description(self, description: str) -> None:
        """Refuse, because the description is fixed."""
        raise Refused("unsupported", "the description of the studies is fixed")

    def datalist(self) -> list[dict[str, Any]]:
        """Return the labelled images with their labels."""
        return [{"image": i, "label": v.to_dict()} for i, v in self.studies.labels().items()]

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        """Return the ids of an image's labels by tag."""
        tags = dict.fromkeys(self.studies.results(image_id), image_id)
        return {**tags, FINAL: image_id} if image_id in self.studies.labels() else tags

    def get_label_by_image_id(self, image_id: str, tag: str) -> str:
        """Return the id of a label, or an empty string."""
        return self.get_labels_by_image_id(image_id).get(tag, "")

    def get_image(self, image_id: str, params: Any = None) -> bytes:
        """Return the content of the image file."""
        return self.studies.file(image_id).read_bytes()

    def get_image_uri(self, image_id: str) -> str:
        """Return the path of the image on this machine."""
        return str(self.studies.file(image_id))

    def get_label(self, label_id: str, label_tag: str, params: Any = None) -> bytes:
        """Return the content of a label file."""
        return Path(self.get_label_uri(label_id, label_tag)).read_bytes()

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """Return the path of a label file on this machine."""
        if label_tag == FINAL:
            label = self.studies.labels().get(label_id)
            if label is None:
                raise UnknownImage(label_id)
            folder = self.workbench.folder / "served"
            folder.mkdir(exist_ok=True)
            path = folder / f"{label_id}.json"
            with replacing(path, durable=False) as temporary:
                temporary.write_text(json.dumps(label.to_dict()), encoding="utf-8")
            return str(path)
        kept = self.studies.results(label_id).get(label_tag)
        if kept is None:
            raise UnknownImage(label_id)
        return str(kept)

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """Return the workbench's entry of an image, with the notes of clients."""
        return {**copy.deepcopy(self._info.get(image_id, {})), **self.workbench.item(image_id)}

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """Return an image-level label, or the kind and file name of a result."""
        if label_tag == FINAL:
            label = self.studies.labels().get(label_id)
            if label is None:
                raise UnknownImage(label_id)
            return label.to_dict()
        return {"kind": label_tag, "file": Path(self.get_label_uri(label_id, label_tag)).name}

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Return the ids of labelled and skipped images."""
        return list(self.studies.labels())

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Return the ids of the other images."""
        done = self.studies.labels()
        return [i for i in self.studies.ids() if i not in done]

    def list_images(self) -> list[str]:
        """Return the ids of all images."""
        return self.studies.ids()

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """Refuse, because the server does not hand out the whole archive."""
        raise Refused("unsupported", "this server does not pack the studies into a file")

    def refresh(self) -> None:
        """Look for images that were added or removed."""
        self.studies.refresh()

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Add an uploaded radiograph to the studies folder, under a name that the server chooses.

        Raises:
            Refused: when the file is not a usable radiograph, or the studies are not in a folder.
        """
        if not isinstance(self.studies, FolderStudies):
            raise Refused("unsupported", "send images to the DICOMweb server itself")
        if self.workbench.read_only:
            raise Refused("read_only", "this server takes no images")
        try:
            self.workbench.check_upload(Path(image_filename))
        except RadiographError as error:
            raise Refused(error.code, error.message) from error
        return self.studies.add(Path(image_filename))

    def remove_image(self, image_id: str) -> None:
        """Refuse, because the server deletes no images."""
        raise Refused("unsupported", "images are removed from the studies themselves, not through this server")

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Store an image-level label; with another tag than "final", store the model's results for the image.

        Raises:
            UnknownImage: on an unknown id.
            Refused: as `Workbench.set_label` and `Workbench.keep_results`.
        """
        if label_tag != FINAL:
            self.workbench.keep_results(image_id)
            return image_id
        self.studies.file(image_id)  # report an unknown image before a bad label
        with open(label_filename, "rb") as file:
            content = file.read(LARGEST_LABEL + 1)
        try:
            values = json.loads(content) if len(content) <= LARGEST_LABEL else None
        except (ValueError, RecursionError):
            values = None
        allowed = {"image_label", "class", "skipped"}
        if not isinstance(values, dict) or not values or set(values) - allowed:
            raise Refused("bad_label", 'a label is a JSON object {"image_label": 0 or 1, "class": "..."}')
        wanted = Label.checked(values.get("image_label"), values.get("class"), values.get("skipped", False))
        self.workbench.set_label(image_id, wanted.label, wanted.image_class, wanted.skipped)
        return image_id

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Withdraw an image-level label."""
        if label_tag != FINAL:
            raise Refused("unsupported", "results of the model are replaced, not removed")
        if label_id not in self.studies.labels():
            raise UnknownImage(label_id)
        self.workbench.set_label(label_id, None)

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Keep notes of clients until the server stops.

        Raises:
            BadRequest: when the notes are not an object that can be sent back, or take too much room.
        """
        self.studies.name(image_id)
        notes = {**self._info.get(image_id, {}), **check_object(info, "info")}
        check_object(notes.get("strategy", {}), "strategy")  # MONAI Label adds to it
        if len(json.dumps(notes)) > LARGEST_NOTES:
            raise BadRequest(f"the notes on an image may take {LARGEST_NOTES} characters")
        self._info[image_id] = notes

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Refuse, because a label is changed by saving it again."""
        raise Refused("unsupported", "a label is changed by saving it again")

    def status(self) -> dict[str, Any]:
        """Return the numbers of images and labels."""
        status = self.workbench.status()
        return {
            "total": status["images"],
            "completed": sum(status["labels"].values()),
            "label_tags": {FINAL: status["labels"]},
        }

    def json(self) -> dict[str, Any]:
        """Return the entries of all images."""
        return {"objects": {entry["id"]: entry for entry in self.workbench.items()}}


def temporary_file(data: bytes, suffix: str) -> str:
    """Write a temporary file, which MONAI Label sends and removes; return its path."""
    descriptor, name = tempfile.mkstemp(suffix)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
    except BaseException:
        os.unlink(name)
        raise
    return name
