"""Reading `model.pt`: bounded in size, tensors only, and compared with the artefact before a network is built."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from monai_wscxr.errors import InputError
from monai_wscxr.model.networks import Discriminator
from monai_wscxr.model.whitening import NormalWhitening
from monai_wscxr.system.regular_files import open_regular

_LARGEST_FILE = 16 << 30  # bytes
_LARGEST_PICKLE = 64 << 20  # bytes of names and shapes
_MOST_ENTRIES = 100_000
_HEADS = ("discriminator.", "whitening.")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file that `torch.save` wrote, without running any code from it.

    Raises:
        OSError: when the file cannot be read or is not a regular file.
        ValueError: when it is too large, compressed, or holds anything but finite tensors in memory.
        Exception: what torch raises for a damaged file.
    """
    with open_regular(path) as file:
        _check_archive(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise ValueError("it holds no tensors by name")
    for key, value in state.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type != "cpu":
            raise ValueError(f"{key:.80} is no dense tensor")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(f"{key:.80} has {value.numel()} numbers, but the file holds fewer")
        if value.dtype.is_floating_point and not bool(torch.isfinite(value).all()):
            raise ValueError(f"{key:.80} holds NaN or Inf")
    return dict(state)


def _check_archive(file: BinaryIO) -> None:
    """Check that a file is an archive of `torch.save` that does not grow when it is read."""
    size = file.seek(0, 2)
    if size > _LARGEST_FILE:
        raise ValueError(f"it has {size / 1e9:.1f} GB, more than any model")
    file.seek(0)
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    if len(entries) > _MOST_ENTRIES or sum(entry.file_size for entry in entries) > size:
        raise ValueError("it would be larger in memory than on the disk")
    if any(entry.file_size > _LARGEST_PICKLE for entry in entries if entry.filename.endswith(".pkl")):
        raise ValueError("its list of tensors is too long")
    file.seek(0)


def check_heads(folder: str, description: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Check that discriminator and whitening of an artefact have the shapes of the stored tensors.

    They are built without memory here. A file with sizes that nobody trained is therefore refused at once, and not after
    their memory has been allocated.

    Args:
        folder: what to name in the message.
        description: content of `artefact.json`, checked already.
        state: tensors of `model.pt`.

    Raises:
        InputError: when they differ.
    """
    first = state.get("discriminator.layers.0.weight", torch.empty(0))
    with torch.device("meta"):
        channels = max(int(first.shape[-1]), 1) if first.ndim == 2 else 1
        heads = torch.nn.ModuleDict(
            {
                "discriminator": Discriminator(channels, **description["discriminator"]),
                "whitening": NormalWhitening(channels, **description["whitening"]),
            }
        )
    check_fit(folder, heads.state_dict(), {key: value for key, value in state.items() if key.startswith(_HEADS)})


def check_fit(folder: str, own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Check that the stored tensors `state` have the names, shapes and types of the network's `own`.

    Raises:
        InputError: when they differ.
    """
    unlike = [
        key
        for key in {**own, **state}
        if key not in own
        or key not in state
        or own[key].shape != state[key].shape
        or own[key].dtype != state[key].dtype
    ]
    if unlike:
        raise InputError(
            f"{folder} does not fit the network that artefact.json describes: {len(unlike)} tensors are missing, unknown or "
            f"of another shape (first: {unlike[0]:.80}); the two files come from different runs"
        )
