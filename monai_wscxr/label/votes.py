"""Labels as votes: what a training takes of them, and which contradict each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from monai_wscxr.label.archive.studies import Label, Refused, Studies
from monai_wscxr.label.training import Item


class Votes:
    """The labels of an archive that say normal or abnormal, together with normal images known from elsewhere.

    Args:
        studies: the archive and its labels.
        normals: known normal images.
        digest: of a file's bytes.
    """

    def __init__(self, studies: Studies, normals: Sequence[Item], digest: Callable[[str], str]) -> None:
        self.studies, self.normals, self.digest = studies, list(normals), digest

    def given(self, label: int | None = None) -> dict[str, Label]:
        """Labels that are no skips, of one kind or both, by image id."""
        return {i: v for i, v in self.studies.labels().items() if v.label is not None and label in (None, v.label)}

    def items(self, label: int) -> list[Item]:
        """Datalist items of the images with this label; known normals are among those labelled 0."""
        items = [
            {
                "image": str(self.studies.file(i)),
                "label": label,
                "class": vote.image_class or "normal",
                "patient": self.studies.patient(i),
            }
            for i, vote in self.given(label).items()
        ]
        if label == 0:  # an image of the archive may be a known normal as well
            own = {Path(str(item["image"])).resolve() for item in items}
            items += [item for item in self.normals if Path(item["image"]).resolve() not in own]
        return items

    def check_copies(self, image_id: str, file: str, label: int) -> None:
        """Refuse a label that an exact copy of the image contradicts.

        Raises:
            Refused: with reason "contradiction".
        """
        digest = self.digest(file)
        others: list[tuple[str, str, int | None]] = [
            (str(self.studies.file(i)), self.studies.name(i), v.label) for i, v in self.given().items() if i != image_id
        ]
        others += [(item["image"], "a known normal image", 0) for item in self.normals]
        for other, name, given in others:
            if given != label and self.digest(other) == digest:
                words = ("normal", "abnormal")
                raise Refused(
                    "contradiction",
                    f"this image is an exact copy of {name}, which is labelled {words[given or 0]}, so it cannot be "
                    f"{words[label]}; correct the other one first",
                )


def changed(now: Mapping[str, Label], before: Mapping[str, Label]) -> int:
    """Images whose label was given, replaced or taken back."""
    return sum(now.get(i) != before.get(i) for i in now.keys() | before.keys())
