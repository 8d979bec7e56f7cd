"""Reading the weights files of backbones, and translating the names of other libraries into those of timm."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from monai_wscxr.errors import InputError

# Dinov2Model of the library transformers (RAD-DINO) -> the publication's code, whose names timm's own filter understands
_TRANSFORMERS_NAMES = (
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.(cls_token|mask_token|register_tokens)$", r"\1"),
    (r"^encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (r"^encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1$", r"blocks.\1.ls\2.gamma"),
    (r"^encoder\.layer\.(\d+)\.mlp\.weights_in\.", r"blocks.\1.mlp.w12."),
    (r"^encoder\.layer\.(\d+)\.mlp\.weights_out\.", r"blocks.\1.mlp.w3."),
    (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"^layernorm\.", "norm."),
)


def load_into(net: nn.Module, state: dict[str, Tensor], path: str, name: str) -> None:
    """Load the tensors of a state that belong to the network; all of them must be there.

    Raises:
        InputError: when a tensor is missing or has another shape.
    """
    own = net.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    wrong = [key for key in own if key in state and own[key].shape != state[key].shape]
    if missing or wrong:
        raise InputError(
            f"{path} does not fit {name}: {len(missing)} of {len(own)} tensors are missing and {len(wrong)} have another "
            f"shape (first: {(missing + wrong)[0]}); give the weights file of the same model"
        )
    net.load_state_dict({key: state[key] for key in own if key in state}, strict=False)


def read_state(path: str) -> dict[str, Tensor]:
    """Read the state dictionary of a weights file or of a checkpoint that contains one.

    Raises:
        InputError: when the file cannot be read without running code from it, or holds something else.
    """
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"{path} cannot be read as a weights file ({type(error).__name__}); "
            "save the model's state_dict() with torch.save or safetensors"
        ) from error
    for key in ("state_dict", "model", "model_state"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} holds no state_dict; save the model's state_dict() to it")
    return {key.removeprefix("module."): value for key, value in state.items()}


def from_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a `Dinov2Model` of the library transformers as in DINOv2's own code; leave others alone.

    Query, key and value become one tensor.

    Args:
        state: state dictionary, with or without the prefix that a model with a head has.

    Raises:
        InputError: when a query has no key or value.
    """
    marker = "embeddings.patch_embeddings.projection.weight"
    found = next((key for key in state if key == marker or key.endswith("." + marker)), None)
    if found is None or not any("attention.attention.query" in key for key in state):
        return state
    prefix = found.removesuffix(marker)
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    renamed: dict[str, Tensor] = {}
    for key, value in own.items():
        part = re.fullmatch(r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)", key)
        if part is None:
            name = key
            for pattern, replacement in _TRANSFORMERS_NAMES:
                name, count = re.subn(pattern, replacement, name)
                if count:
                    break
            renamed[name] = value
        elif part[2] == "query":
            three = [own.get(key.replace(".query.", f".{which}.")) for which in ("query", "key", "value")]
            if any(tensor is None for tensor in three):
                raise InputError(f"the weights file has {key} without its key or value; download it again")
            renamed[f"blocks.{part[1]}.attn.qkv.{part[3]}"] = torch.cat([t for t in three if t is not None])
    renamed.setdefault("mask_token", torch.zeros(1, 1))  # tells timm's filter which format it is
    return renamed


@contextlib.contextmanager
def download_explained(name: str) -> Iterator[None]:
    """Turn an error of a download into one sentence with three ways out."""
    try:
        yield
    except Exception as error:
        raise InputError(
            f"the ImageNet weights of {name} are not on this machine and could not be downloaded "
            f"({type(error).__name__}): connect to the internet once, or give a local file with --weights FILE, "
            "or use --backbone efficientnet_lite0, whose weights are installed with this package"
        ) from error
