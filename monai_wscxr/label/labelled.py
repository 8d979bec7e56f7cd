"""The labelled images of an archive: which of them train, and which labels contradict each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from monai_wscxr.data.datalist import Item
from monai_wscxr.label.archive.studies import Label, Refused, Studies


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

    def items(self, label: int) -> list[Item]:
        """Return datalist items of the images with this label; the known normal images are among those with label 0."""
        items: list[Item] = [
            {
                "image": str(self.studies.file(i)),
                "label": label,
                "class": one.image_class or "normal",
                "patient": self.studies.patient(i),
            }
            for i, one in self.labels(label).items()
        ]
        if label == 0:  # an image of the archive may be a known normal image as well
            own = {Path(str(item["image"])).resolve() for item in items}
            items += [item for item in self.normals if Path(item["image"]).resolve() not in own]
        return items

    def check_copies(self, image_id: str, file: str, label: int) -> None:
        """Refuse a label that contradicts the label of an exact copy of the image.

        Raises:
            Refused: with reason "contradiction".
        """
        digest = self.digest(file)
        others: list[tuple[str, str, int | None]] = [
            (str(self.studies.file(i)), self.studies.name(i), one.label)
            for i, one in self.labels().items()
            if i != image_id
        ]
        others += [(item["image"], "a known normal image", 0) for item in self.normals]
        for other, name, given in others:
            if given != label and self.digest(other) == digest:
                words = ("normal", "abnormal")
                raise Refused(
                    "contradiction",
                    f"this image is an exact copy of {name}, which is labelled {words[given or 0]}, so it cannot be "
                    f"{words[label]}; correct the other label first",
                )


def changed_labels(now: Mapping[str, Label], before: Mapping[str, Label]) -> int:
    """Count the images whose label was given, replaced or withdrawn."""
    return sum(now.get(i) != before.get(i) for i in now.keys() | before.keys())
