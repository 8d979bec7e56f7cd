"""The labelled images of an archive: which of them train, and which labels contradict each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from monai_wscxr.data.datalist import Item
from monai_wscxr.label.archive.studies import Label, Refused, Studies, UnknownImage


class LabelledImages:
    """Images of an archive labelled normal or abnormal, together with normal images known from elsewhere.

    Args:
        studies: the archive and its labels.
        normals: datalist items of known normal images.
        digest: returns the content digest of a file.
    """

    def __init__(self, studies: Studies, normals: Sequence[Item], digest: Callable[[str], str]) -> None:
        self.studies, self.normals, self.digest = studies, list(normals), digest

    def labels(self, label: int | None = None) -> dict[str, Label]:
        """Return the labels by image id, without skipped images; only those equal to `label` unless it is None."""
        given = self.studies.labels().items()
        return {i: one for i, one in given if one.label is not None and label in (None, one.label)}

    def items(self, label: int, given: Mapping[str, Label] | None = None) -> list[Item]:
        """Return datalist items of the images with a label, without images whose file has vanished.

        Args:
            label: 0 or 1; the known normal images are among those with label 0.
            given: labels by image id, as `labels` returned them; None takes those of this moment.
        """
        labels = self.labels() if given is None else given
        items: list[Item] = []
        for image_id, one in labels.items():
            if one.label != label:
                continue
            try:
                file, patient = str(self.studies.file(image_id)), self.studies.patient(image_id)
            except UnknownImage:  # deleted since the latest search
                continue
            items.append({"image": file, "label": label, "class": one.image_class or "normal", "patient": patient})
        if label == 0:  # an image of the archive may be a known normal image as well
            own = {Path(str(item["image"])).resolve() for item in items}
            known = [item for item in self.normals if Path(item["image"]).is_file()]
            items += [item for item in known if Path(item["image"]).resolve() not in own]
        return items

    def check_copies(self, image_id: str, file: str, label: int) -> None:
        """Refuse a label that contradicts the label of an exact copy of the image.

        Raises:
            Refused: with reason "contradiction".
        """
        digest = self.digest(file)
        for other, name, given in self._others(image_id):
            if given != label and self._digest(other) == digest:
                words = ("normal", "abnormal")
                raise Refused(
                    "contradiction",
                    f"this image is an exact copy of {name}, which is labelled {words[given or 0]}, so it cannot be "
                    f"{words[label]}; correct the other label first",
                )

    def _others(self, image_id: str) -> Iterator[tuple[str, str, int | None]]:
        """Yield file, name and label of the other labelled images and the known normal images."""
        for other, one in self.labels().items():
            if other != image_id:
                try:
                    yield str(self.studies.file(other)), self.studies.name(other), one.label
                except UnknownImage:  # deleted since the latest search
                    continue
        for item in self.normals:
            yield item["image"], "a known normal image", 0

    def _digest(self, file: str) -> str | None:
        """Return the content digest of a file, or None when it cannot be read."""
        try:
            return self.digest(file)
        except OSError:
            return None


def changed_labels(now: Mapping[str, Label], before: Mapping[str, Label]) -> int:
    """Count the images whose label was given, replaced or withdrawn."""
    return sum(now.get(i) != before.get(i) for i in now.keys() | before.keys())
