"""Patch features (Eq. 1 to 3): multi-layer maps, aligned in space and channels, aggregated over a neighbourhood."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_wscxr.errors import InputError
from monai_wscxr.features.backbones import Backbone
from monai_wscxr.features.parallel import one_thread


class PatchFeatures(nn.Module):
    """Patch features [B, C, h, w] of images [B, 3, H, W].

    The maps of the chosen layers are brought to one resolution, reduced to `aligned_channels` channels each if that is given
    (adaptive average pooling over channels), and concatenated to phi(x). Each position then becomes the mean over its p x p
    neighbourhood (Eq. 1 and 2); positions beyond the border count as zeros, as in the authors' code.

    Args:
        backbone: frozen network.
        neighbourhood: p, odd, >= 1; published: 5.
        aligned_channels: channels per layer after alignment, >= 1; None keeps all channels.
        align_to: common resolution. "finest", as published: maps are upsampled bilinearly to the finest one. "coarsest":
            maps are averaged over areas down to the coarsest one, which gives fewer patches and, with two layers of
            EfficientNet-Lite0, a higher accuracy (docs/results.md).

    Attributes:
        channels: C.

    Raises:
        InputError: on an even or non-positive neighbourhood, another `align_to`, or aligned_channels < 1.
    """

    def __init__(
        self,
        backbone: Backbone,
        neighbourhood: int = 5,
        aligned_channels: int | None = None,
        align_to: str = "finest",
    ) -> None:
        super().__init__()
        if align_to not in ("finest", "coarsest"):
            raise InputError(f"align_to must be 'finest' (as in the paper) or 'coarsest', got {align_to!r}")
        if neighbourhood < 1 or neighbourhood % 2 == 0:
            raise InputError(f"the neighbourhood p must be odd and at least 1 (published: 5), got {neighbourhood}")
        if aligned_channels is not None and aligned_channels < 1:
            raise InputError(f"aligned_channels must be at least 1 or left out, got {aligned_channels}")
        self.backbone = backbone
        self.neighbourhood = neighbourhood
        self.align_to = align_to
        self.aligned_channels = 0 if aligned_channels is None else aligned_channels
        self.channels: int = (
            sum(backbone.channels) if aligned_channels is None else aligned_channels * len(backbone.channels)
        )

    def forward(self, image: Tensor) -> Tensor:
        """Return the patch features [B, C, h, w] of normalised images [B, 3, H, W]."""
        return self.aggregate(self.align(self.backbone(image)))

    def align(self, maps: list[Tensor]) -> Tensor:
        """Return phi(x): layer maps [B, C_j, H_j, W_j] as one map [B, C, h, w] at the common resolution."""
        finest = self.align_to == "finest"
        height, width = maps[0].shape[2], maps[0].shape[3]
        for m in maps:
            if (m.shape[2] > height) == finest and m.shape[2] != height:
                height, width = m.shape[2], m.shape[3]
        aligned: list[Tensor] = []
        for m in maps:
            if m.shape[2] < height or m.shape[3] < width:
                m = F.interpolate(m, size=[height, width], mode="bilinear", align_corners=False)
            elif m.shape[2] > height or m.shape[3] > width:
                rows, columns = m.shape[2] // height, m.shape[3] // width
                if m.shape[2] == rows * height and m.shape[3] == columns * width:
                    m = F.avg_pool2d(m, [rows, columns])  # the same as the next line, and quick in every runtime
                else:
                    m = F.interpolate(m, size=[height, width], mode="area")
            if self.aligned_channels > 0:
                by_position = m.permute(0, 2, 3, 1).flatten(1, 2)  # [B, h*w, C_j]
                pooled = F.adaptive_avg_pool1d(by_position, self.aligned_channels)
                m = pooled.unflatten(1, [height, width]).permute(0, 3, 1, 2)
            aligned.append(m)
        return torch.cat(aligned, dim=1)

    def aggregate(self, phi: Tensor) -> Tensor:
        """Return Z^p (Eq. 1): the mean over the p x p neighbourhood of every position, with zeros beyond the border."""
        p = self.neighbourhood
        if p == 1:
            return phi
        return F.avg_pool2d(phi, p, stride=1, padding=p // 2, count_include_pad=True)

    @torch.jit.unused
    def grid(self, image_size: int) -> tuple[int, int]:
        """Return the patch rows and columns (h, w) of a square image of this size in pixels.

        Raises:
            InputError: when the backbone does not take images of this size.
        """
        self.backbone.check_size(image_size)
        weight = next(self.parameters())
        with torch.inference_mode(), one_thread():
            channels = self.backbone.image_channels
            phi = self(torch.zeros(1, channels, image_size, image_size, device=weight.device, dtype=weight.dtype))
        return int(phi.shape[2]), int(phi.shape[3])


def to_rows(features: Tensor) -> Tensor:
    """Return M(x) (Eq. 3): patch features [B, C, h, w] as rows [B*h*w, C] in the order b, y, x."""
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])
