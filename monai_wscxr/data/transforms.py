"""Preprocessing of radiographs for the network, as MONAI dictionary transforms."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import Compose, MapTransform
from torchvision.transforms.v2 import functional as TF

from monai_wscxr.data.masks import read_mask, resize_mask
from monai_wscxr.data.radiograph.gates import check_allowed
from monai_wscxr.data.radiograph.read import READER_CHAIN, read_radiograph
from monai_wscxr.errors import InputError

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


class LoadRadiographd(MapTransform):
    """Replace file paths by radiographs, float32 [1, H, W] in [0, 1] with dark air.

    Args:
        keys: keys of paths.
        allow: gates of the loader that are not applied (see `radiograph.gates`).
        keep_source: keep the `Radiograph` as it was read under "source".

    Raises:
        RadiographError: when a file cannot be used; its `code` is the reason.
    """

    def __init__(self, keys: KeysCollection, allow: Collection[str] = (), keep_source: bool = False) -> None:
        super().__init__(keys)
        try:
            self.allow = check_allowed(allow)
        except ValueError as error:
            raise InputError(f"allow: {error}") from error
        self.keep_source = keep_source

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            source = read_radiograph(out[key], allow=self.allow)
            out[key] = torch.from_numpy(source.image)[None]
            if self.keep_source:
                out["source"] = source
        return out


class LoadMaskd(MapTransform):
    """Replace mask paths by lesion masks, bool [1, size, size], True inside lesions; see `masks` for what a mask may be.

    Args:
        keys: keys of paths.
        size: side in pixels; masks are resized by nearest neighbour, and small lesions never vanish.
        allow_missing_keys: skip missing keys.

    Raises:
        DatalistError: when a mask cannot be used.
    """

    def __init__(self, keys: KeysCollection, size: int, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.size = size

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = torch.from_numpy(resize_mask(read_mask(out[key]), self.size))[None]
        return out


class ResizeRadiographd(MapTransform):
    """Resize radiographs [1, H, W] to [1, size, size]: bilinear, anti-aliased when shrinking."""

    def __init__(self, keys: KeysCollection, size: int, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.size = size

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = TF.resize(out[key], [self.size, self.size], antialias=True)
        return out


class StandardiseIntensityd(MapTransform):
    """Shift and scale radiographs [1, H, W] to mean 1/2 and standard deviation 0.22 in their centre, and clip to [0, 1].

    The centre excludes an eighth of the image on every side, where collimation, letters and air are. 0.22 is about the standard
    deviation of a radiograph that fills [0, 1], so clipping changes few pixels. A constant centre becomes 1/2.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            image = torch.as_tensor(out[key]).as_subclass(torch.Tensor)
            height, width = image.shape[-2:]
            centre = image[..., height // 8 : height - height // 8, width // 8 : width - width // 8]
            spread = centre.std().clamp(min=1e-3)
            out[key] = (0.5 + (image - centre.mean()) * (0.22 / spread)).clamp(0, 1)
        return out


class NormaliseChannelsd(MapTransform):
    """Expand radiographs [1, H, W] to [C, H, W], subtract each channel's mean and divide by its standard deviation.

    C, the number of means, is 3, or 1 for backbones that take one channel.

    The result equals that of MONAI's `RepeatChanneld` and `NormalizeIntensityd`, in one step.
    """

    def __init__(self, keys: KeysCollection, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(keys)
        self.mean = torch.tensor(mean, dtype=torch.float32)[:, None, None]
        self.std = torch.tensor(std, dtype=torch.float32)[:, None, None]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = (torch.as_tensor(out[key]) - self.mean).div_(self.std)
        return out


def radiograph_transforms(
    preprocessing: Preprocessing,
    keys: Sequence[str] = ("image",),
    keep_radiograph: bool = False,
    allow: Collection[str] = (),
    keep_source: bool = False,
    after_resize: Sequence[Callable[[dict[str, Any]], dict[str, Any]]] = (),
) -> Compose:
    """Compose the transforms from a file path to the network input, float32 [3, size, size], or [1, size, size] with one mean.

    Args:
        preprocessing: of the model.
        keys: keys of paths.
        keep_radiograph: keep the resized radiograph [1, size, size] in [0, 1] under "radiograph", for display.
        allow: gates of the loader that are not applied (see `radiograph.gates`).
        keep_source: keep the `Radiograph` as it was read under "source".
        after_resize: transforms of the resized radiograph [1, size, size] in [0, 1], before its intensity is standardised.

    Raises:
        InputError: when the model was trained with another version of the loader.
    """
    if preprocessing.reader_chain != READER_CHAIN:
        raise InputError(
            f"this model was trained with radiographs read by chain {preprocessing.reader_chain}, but this installation "
            f"reads with chain {READER_CHAIN}, so its scores would not be comparable. Retrain, or install the version that "
            "trained the model (see artefact.json)"
        )
    steps: list[Any] = [LoadRadiographd(keys, allow, keep_source), ResizeRadiographd(keys, preprocessing.image_size)]
    steps += after_resize
    if keep_radiograph:
        steps.append(_KeepRadiograph())
    if preprocessing.intensity == "standardised":
        steps.append(StandardiseIntensityd(keys))
    steps += [
        NormaliseChannelsd(keys, preprocessing.mean, preprocessing.std),
        _PlainTensord(keys),
    ]
    return Compose(steps)


class _KeepRadiograph:
    """Copy the resized radiograph to the key "radiograph"."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return {**data, "radiograph": data["image"]}


class _PlainTensord(MapTransform):
    """Convert MONAI's metadata tensors to plain tensors, so that nothing of a file's header is passed on."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return {k: torch.as_tensor(v).as_subclass(torch.Tensor) if k in self.keys else v for k, v in data.items()}
