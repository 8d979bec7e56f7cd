"""The steps from a radiograph's file to the network's input.

`RadiographLoader` takes them with NumPy alone, because the import of torch or MONAI would cost a command more than its work;
`transforms` offers the same steps as MONAI dictionary transforms, with the same values.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monai_wscxr.data.radiograph.gates import check_allowed
from monai_wscxr.data.radiograph.read import READER_CHAIN, read_radiograph
from monai_wscxr.data.resizing import resize
from monai_wscxr.errors import InputError

Image = NDArray[np.float32]
INTENSITIES = ("standardised", "as_read")


@dataclass(frozen=True)
class Preprocessing:
    """Settings of all steps between a file and the network; part of a trained model.

    Attributes:
        image_size: side in pixels to which radiographs are resized without keeping their aspect ratio, as published; 32 to
            4096.
        mean, std: per-channel mean and standard deviation that the backbone's weights expect, for images in [0, 1]; three
            values, or one for a backbone that takes one channel.
        reader_chain: version of the loader (`READER_CHAIN`); a model trained with another version is refused.
        intensity: "standardised" gives every radiograph the same brightness and contrast (`StandardiseIntensityd`), so that
            exposure and windowing hardly change a score; "as_read" keeps the loader's values, as published.
    """

    image_size: int = 256
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    reader_chain: str = READER_CHAIN
    intensity: str = "as_read"

    def __post_init__(self) -> None:
        if not isinstance(self.image_size, int) or not 32 <= self.image_size <= 4096:
            raise InputError(
                f"image_size must be a whole number from 32 to 4096 (published: 256), got {self.image_size}"
            )
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise InputError(
                f"mean and std must have one value per channel, three or one each, got {len(self.mean)} and {len(self.std)}"
            )
        if self.intensity not in INTENSITIES:
            raise InputError(f"intensity must be one of {', '.join(INTENSITIES)}, got {self.intensity!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Make the settings from the values of `to_dict`."""
        plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**plain)


class RadiographLoader:
    """Load the radiographs of datalist items: file path to network input, float32 [C, size, size].

    C, the number of means of the preprocessing, is 3, or 1 for backbones that take one channel. Loaders can be pickled.

    Args:
        preprocessing: of the model.
        keep_radiograph: keep the resized radiograph [1, size, size] in [0, 1] under "radiograph", for display.
        allow: gates of the loader that are not applied (see `radiograph.gates`).
        keep_source: keep the `Radiograph` as it was read under "source".
        normalise: False leaves out the last step, `normalise_channels`, so that an image [1, size, size] is smaller to send.
        after_resize: functions of the item whose "image" is the resized radiograph [1, size, size] in [0, 1], called before its
            intensity is standardised.

    Raises:
        InputError: when the model was trained with another version of the loader, or a gate is unknown.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        keep_radiograph: bool = False,
        allow: Collection[str] = (),
        keep_source: bool = False,
        after_resize: Sequence[Callable[[dict[str, Any]], dict[str, Any]]] = (),
        normalise: bool = True,
    ) -> None:
        check_reader_chain(preprocessing)
        self.preprocessing = preprocessing
        self.keep_radiograph, self.keep_source, self.normalise = keep_radiograph, keep_source, normalise
        self.allow, self.after_resize = checked_gates(allow), tuple(after_resize)

    def __call__(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """Return the item with its "image", a path, replaced by the network input.

        Raises:
            RadiographError: when the file cannot be used; its `code` is the reason.
        """
        source = read_radiograph(item["image"], allow=self.allow)
        image = resize_radiograph(source.image[None], self.preprocessing.image_size)
        out = {**item, "image": image}
        if self.keep_source:
            out["source"] = source
        for step in self.after_resize:
            out = step(out)
        if self.keep_radiograph:
            out["radiograph"] = out["image"]
        if self.preprocessing.intensity == "standardised":
            out["image"] = standardise_intensity(out["image"])
        if self.normalise:
            out["image"] = normalise_channels(out["image"], self.preprocessing.mean, self.preprocessing.std)
        return out


def resize_radiograph(image: Image, size: int) -> Image:
    """Resize a radiograph [1, H, W] to [1, size, size]: bilinear, anti-aliased when shrinking."""
    return resize(np.asarray(image[0], np.float32), size, size)[None]


def standardise_intensity(image: Image) -> Image:
    """Shift and scale a radiograph [1, H, W] to mean 1/2 and standard deviation 0.22 in its centre, and clip to [0, 1].

    The centre excludes an eighth of the image on every side, where collimation, letters and air are. 0.22 is about the standard
    deviation of a radiograph that fills [0, 1], so clipping changes few pixels. A constant centre becomes 1/2.
    """
    height, width = image.shape[-2:]
    centre = image[..., height // 8 : height - height // 8, width // 8 : width - width // 8]
    mean, spread = centre.mean(dtype=np.float64), max(float(centre.std(dtype=np.float64, ddof=1)), 1e-3)
    return np.clip(np.float32(0.5) + (image - np.float32(mean)) * np.float32(0.22 / spread), 0, 1)


def normalise_channels(image: Image, mean: Sequence[float], std: Sequence[float]) -> Image:
    """Expand a radiograph [1, H, W] to [C, H, W], subtract the mean of each of the C channels and divide by its std."""
    return (image - _per_channel(mean)) / _per_channel(std)


def check_reader_chain(preprocessing: Preprocessing) -> None:
    """Refuse the preprocessing of a model that was trained with another version of the loader.

    Raises:
        InputError: then.
    """
    if preprocessing.reader_chain != READER_CHAIN:
        raise InputError(
            f"this model was trained with radiographs read by chain {preprocessing.reader_chain}, but this installation "
            f"reads with chain {READER_CHAIN}, so its scores would not be comparable. Retrain, or install the version that "
            "trained the model (see artefact.json)"
        )


def checked_gates(allow: Collection[str]) -> frozenset[str]:
    """Return the names of gates that are not applied, as `check_allowed`.

    Raises:
        InputError: on a name that is no gate.
    """
    try:
        return check_allowed(allow)
    except ValueError as error:
        raise InputError(f"allow: {error}") from error


def _per_channel(values: Sequence[float]) -> Image:
    return np.array(values, np.float32)[:, None, None]
