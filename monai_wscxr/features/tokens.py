"""Tokens of vision transformers as feature maps, and maps with channels last as maps with channels first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn


class TokenMaps(nn.Module):
    """The patch tokens behind blocks of a `VisionTransformer` as maps, for images of every multiple of the patch.

    Class and register tokens are dropped; the final normalisation is applied behind every block, as by
    `forward_intermediates(norm=True)` of timm and by DINOv2's own code. timm's method cannot be scripted, so its steps are
    repeated here.

    Args:
        net: timm model with `dynamic_img_size`, without its head.
        indices: numbers of the blocks, in the order of the maps.
    """

    def __init__(self, net: nn.Module, indices: Sequence[int]) -> None:
        super().__init__()
        model: Any = net
        self.patch_embed = model.patch_embed
        self.norm_pre, self.blocks, self.norm = model.norm_pre, model.blocks, model.norm
        prefix = [token for token in (model.cls_token, model.reg_token) if token is not None]
        self.prefix_tokens = nn.Parameter(torch.cat(prefix, 1).detach()) if prefix else None
        self.pos_embed = model.pos_embed
        self.no_embed_class = bool(model.no_embed_class)
        self.prefixes = int(model.num_prefix_tokens)
        self.old_rows, self.old_columns = (int(n) for n in model.patch_embed.grid_size)
        self.indices = list(indices)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the maps [B, C, h, w] of normalised images [B, 3, H, W]."""
        x = self.patch_embed(image)  # [B, h, w, C]
        batch, rows, columns = x.shape[0], x.shape[1], x.shape[2]
        x = x.flatten(1, 2)
        position = self.pos_embed
        prefix = self.prefix_tokens
        if position is not None:
            count = 0 if self.no_embed_class else self.prefixes
            position = resample_abs_pos_embed(position, [rows, columns], [self.old_rows, self.old_columns], count)
        if position is not None and self.no_embed_class:
            x = x + position
        if prefix is not None:
            x = torch.cat([prefix.expand(batch, -1, -1), x], dim=1)
        if position is not None and not self.no_embed_class:
            x = x + position
        x = self.norm_pre(x)
        behind: list[Tensor] = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            # blocks that nobody asked for leave an empty place
            behind.append(self.norm(x) if number in self.indices else torch.empty(0))
        return [
            behind[i][:, self.prefixes :].transpose(1, 2).unflatten(2, [rows, columns]).contiguous()
            for i in self.indices
        ]


class RotaryTokenMaps(nn.Module):
    """The same for timm's class `Eva`, such as DINOv3, whose own method can be scripted.

    Args:
        net: timm model with `dynamic_img_size`, without its head.
        indices: numbers of the blocks, in the order of the maps.
    """

    def __init__(self, net: nn.Module, indices: Sequence[int]) -> None:
        super().__init__()
        ascending = sorted(set(indices))
        self.body = FeatureGetterNet(net, tuple(ascending), norm=True)
        self.order = [ascending.index(i) for i in indices]

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the maps [B, C, h, w] of normalised images [B, 3, H, W]."""
        maps = self.body(image)
        if torch.jit.is_scripting():  # timm's method returns a union, which TorchScript must see narrowed
            assert torch.jit.isinstance(maps, list[Tensor])
        return [maps[i] for i in self.order]


class ChannelsFirst(nn.Module):
    """A network whose maps [B, h, w, C] become [B, C, h, w], as for Swin transformers."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the maps [B, C, h, w] of normalised images [B, 3, H, W]."""
        maps: list[Tensor] = self.body(image)
        return [m.permute(0, 3, 1, 2).contiguous() for m in maps]
