"""Preprocessing of radiographs for the network, as MONAI dictionary transforms: `preprocessing`'s steps under MONAI's names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import Compose, MapTransform
from numpy.typing import NDArray

from monai_wscxr.data.masks import read_mask, resize_mask
from monai_wscxr.data.preprocessing import (
    Preprocessing,
    check_reader_chain,
    checked_gates,
    normalise_channels,
    resize_radiograph,
    standardise_intensity,
)
from monai_wscxr.data.radiograph.read import read_radiograph


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
        self.allow = checked_gates(allow)
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
            out[key] = torch.from_numpy(resize_radiograph(_plain(out[key]), self.size))
        return out


class StandardiseIntensityd(MapTransform):
    """Shift and scale radiographs [1, H, W] to the same brightness and contrast, see `standardise_intensity`."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = torch.from_numpy(standardise_intensity(_plain(out[key])))
        return out


class NormaliseChannelsd(MapTransform):
    """Expand radiographs [1, H, W] to [C, H, W], subtract each channel's mean and divide by its standard deviation.

    C, the number of means, is 3, or 1 for backbones that take one channel.

    The result equals that of MONAI's `RepeatChanneld` and `NormalizeIntensityd`, in one step.
    """

    def __init__(self, keys: KeysCollection, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(keys)
        self.mean, self.std = tuple(mean), tuple(std)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = torch.from_numpy(normalise_channels(_plain(out[key]), self.mean, self.std))
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
    check_reader_chain(preprocessing)
    steps: list[Any] = [LoadRadiographd(keys, allow, keep_source), ResizeRadiographd(keys, preprocessing.image_size)]
    steps += after_resize
    if keep_radiograph:
        steps.append(_KeepRadiograph())
    if preprocessing.intensity == "standardised":
        steps.append(StandardiseIntensityd(keys))
    steps.append(NormaliseChannelsd(keys, preprocessing.mean, preprocessing.std))
    return Compose(steps)


class _KeepRadiograph:
    """Copy the resized radiograph to the key "radiograph"."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return {**data, "radiograph": data["image"]}


def _plain(image: Any) -> NDArray[np.float32]:
    """Return the values of MONAI's metadata tensors alone, so that nothing of a file's header is passed on."""
    return torch.as_tensor(image).as_subclass(torch.Tensor).numpy()
