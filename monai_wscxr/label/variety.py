"""Suspicious images that stand for others: greedy facility location over the images of an archive with the highest scores.

The most suspicious images resemble each other, and after the first of them the next teach a model little. Here every pick is
the image that brings the suspicious images, all together, nearest to an image that is labelled or picked (Nemhauser, Wolsey
and Fisher, Mathematical Programming 1978; the k-medoids problem). Images are compared by the cosine of their whitened image
features.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from monai_wscxr.label.ranking import ImageScore

SUSPICIOUS = 0.2
"""Share of an archive's images, those with the highest scores, that count as suspicious (docs/label.md)."""
_FEWEST, _MOST = 10, 1000  # such images; more would cost time and memory and be less suspicious
_PICKS = 50  # the images after these come by their score


@dataclass(frozen=True)
class Pick:
    """An image to label.

    Attributes:
        image_id: its id.
        stands_for: number of suspicious images, with itself, that resemble it more than any image labelled or picked before.
    """

    image_id: str
    stands_for: int


def varied_picks(scores: Mapping[str, ImageScore], seen: Collection[str]) -> list[Pick]:
    """Pick suspicious images one after the other.

    Labelling the first pick leaves the order of the others as it was, as it was computed with that pick in mind.

    Args:
        scores: scores of all images of the archive, labelled or not, by id.
        seen: ids of images that are labelled, skipped or cannot be labelled.

    Returns:
        At most 50 picks; fewer when no image is left that resembles a suspicious one more than those before.
    """
    ranked = sorted(scores, key=lambda i: (-scores[i].anomaly_score, i))
    suspicious = ranked[: min(max(round(SUSPICIOUS * len(ranked)), _FEWEST), _MOST)]
    if not suspicious:
        return []
    rows = _unit_rows(scores, suspicious)
    distance = 2 - 2 * rows @ rows.T  # [m, m], square distances of unit vectors
    nearest = np.full(len(rows), 4.0, np.float32)  # to an image that was seen or picked; 4 is the largest possible
    known = [i for i in seen if i in scores]
    for begin in range(0, len(known), _MOST):
        part = _unit_rows(scores, known[begin : begin + _MOST])
        nearest = np.minimum(nearest, (2 - 2 * rows @ part.T).min(1))
    open_ones = np.array([i not in seen for i in suspicious])
    picks: list[Pick] = []
    while len(picks) < _PICKS and open_ones.any():
        closer = np.maximum(nearest[:, None] - distance, 0)
        best = int(np.where(open_ones, closer.sum(0), -1).argmax())
        stands_for = int((closer[:, best] > 1e-6).sum())
        if not stands_for:
            break
        picks.append(Pick(suspicious[best], stands_for))
        nearest = np.minimum(nearest, distance[:, best])
        open_ones[best] = False
    return picks


def _unit_rows(scores: Mapping[str, ImageScore], ids: Collection[str]) -> NDArray[np.float32]:
    """Return the directions of images as rows [n, C]."""
    return np.stack([scores[i].direction for i in ids]).astype(np.float32)
