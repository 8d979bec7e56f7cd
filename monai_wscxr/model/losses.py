"""The hinge loss of Eq. 7."""

from __future__ import annotations

from torch import Tensor, nn


class HingeLoss(nn.Module):
    """mean max(0, D(m_n)) + mean max(0, margin - D(m_a)).

    Eq. 7 averages max(0, D(m_n)) + max(0, 1 - D(m_a)) over all pairs; the sum separates, so the pair average is the sum
    of the two averages.

    Args:
        margin: score from which an abnormal patch costs nothing; 1 in Eq. 7.
    """

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        """Loss of patch scores [N] with target [N] (0 normal, 1 abnormal), at least one of each."""
        abnormal = target > 0.5
        return scores[~abnormal].clamp_min(0).mean() + (self.margin - scores[abnormal]).clamp_min(0).mean()
