"""The hinge loss of Eq. 7."""

from __future__ import annotations

from torch import Tensor, nn


class HingeLoss(nn.Module):
    """Hinge loss: mean of max(0, D(m_n)) plus mean of max(0, margin - D(m_a)).

    Eq. 7 averages max(0, D(m_n)) + max(0, 1 - D(m_a)) over all pairs of patches, which equals the sum of the two means.

    Args:
        margin: score above which an abnormal patch has no loss; 1 in Eq. 7.
    """

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        """Return the loss of patch scores [N] with targets [N] (0 normal, 1 abnormal), at least one of each."""
        abnormal = target > 0.5
        return scores[~abnormal].clamp_min(0).mean() + (self.margin - scores[abnormal]).clamp_min(0).mean()
