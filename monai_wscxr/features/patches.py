"""Patch features (Eq. 1 to 3): multi-layer maps, aligned in space and channels, aggregated over a neighbourhood."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_wscxr.errors import InputError
from monai_wscxr.features.backbones import Backbone


class PatchFeatures(nn.Module):
    """Images [B, 3, H, W] to patch features [B, C, h, w].

    The maps of the chosen layers are brought to one resolution, each is reduced to `aligned_channels` by adaptive
    average pooling over channels where that is asked for, and they are concatenated: phi(x). Each position then becomes
    the mean over its p x p neighbourhood (Eq. 1 and 2); positions beyond the border count as zeros, as in the authors'
    code.

    Args:
        backbone: the frozen network.
        neighbourhood: p, odd, >= 1; the published value is 5.
        aligned_channels: channels per layer after alignment, or None to keep them all.
        align_to: the common resolution. "finest": that of the finest map, others by bilinear interpolation, as in the
            paper. "coarsest": that of the coarsest map, others by averaging over areas; fewer patches, and with two
            layers of EfficientNet-Lite0 more accurate (docs/results.md).

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
        """Patch features [B, C, h, w] of normalised images [B, 3, H, W]."""
        return self.aggregate(self.align(self.backbone(image)))

    def align(self, maps: list[Tensor]) -> Tensor:
        """phi(x): layer maps [B, C_j, H_j, W_j] to one map [B, C, h, w] at the common resolution."""
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
                m = F.interpolate(m, size=[height, width], mode="area")
            if self.aligned_channels > 0:
                by_position = m.permute(0, 2, 3, 1).flatten(1, 2)  # [B, h*w, C_j]
                pooled = F.adaptive_avg_pool1d(by_position, self.aligned_channels)
                m = pooled.unflatten(1, [height, width]).permute(0, 3, 1, 2)
            aligned.append(m)
        return torch.cat(aligned, dim=1)

    def aggregate(self, phi: Tensor) -> Tensor:
        """Z^p (Eq. 1): mean over the p x p neighbourhood of every position, zeros beyond the border."""
        p = self.neighbourhood
        if p == 1:
            return phi
        return F.avg_pool2d(phi, p, stride=1, padding=p // 2, count_include_pad=True)

    @torch.jit.unused
    def grid(self, image_size: int) -> tuple[int, int]:
        """Patch rows and columns (h, w) of a square image of this size."""
        weight = next(self.parameters())
        with torch.inference_mode():
            phi = self(torch.zeros(1, 3, image_size, image_size, device=weight.device, dtype=weight.dtype))
        return int(phi.shape[2]), int(phi.shape[3])


def to_rows(features: Tensor) -> Tensor:
    """M(x) (Eq. 3): patch features [B, C, h, w] as rows [B*h*w, C] in the order b, y, x."""
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])
