"""PatchCore: distance to a coreset of normal patches (Roth et al., Towards total recall, CVPR 2022)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.random_projection import SparseRandomProjection, johnson_lindenstrauss_min_dim
from torch import Tensor

from monai_wscxr.bank.feature_bank import FeatureBank
from monai_wscxr.errors import InputError
from monai_wscxr.experiments.baselines.common import Learned
from monai_wscxr.features.extraction import PatchExtractor
from monai_wscxr.ops import coreset, min_distance


def project(rows: Tensor, seed: int, eps: float = 0.9) -> Tensor:
    """Project rows to fewer dimensions by a sparse random projection.

    The number of dimensions follows from N by the Johnson-Lindenstrauss lemma with distortion `eps`, as in the authors'
    description and in other implementations. If it is not below C, the rows are returned unchanged.

    Args:
        rows: [N, C].
        seed: seed of the projection.
        eps: distortion, in (0, 1).
    """
    dimensions = int(johnson_lindenstrauss_min_dim(rows.shape[0], eps=eps))
    if dimensions >= rows.shape[1]:
        return rows
    projection = SparseRandomProjection(dimensions, random_state=seed, dense_output=True)
    return torch.from_numpy(projection.fit_transform(rows.cpu().numpy())).to(rows.dtype)


class PatchCore:
    """Anomaly detection by the distance to a coreset of normal patches.

    The score of an image is the distance of its farthest patch, re-weighted. Defaults are the published values; backbone and
    neighbourhood come from the run.

    Args:
        share: share of the normal bank that the coreset keeps, in (0, 1].
        neighbours: number of neighbours b for the re-weighting, >= 1; 1 turns it off.
        seed: seed of the projection and of the first row of the coreset.

    Attributes:
        bank: coreset [M, C] float32, after `fit`.
        learned: see `Method`.
    """

    def __init__(self, share: float = 0.1, neighbours: int = 9, seed: int = 0) -> None:
        if not 0 < share <= 1 or neighbours < 1:
            raise InputError(
                f"PatchCore: share must lie in (0, 1], neighbours must be >= 1; got {share} and {neighbours}"
            )
        self.share, self.neighbours, self.seed = share, neighbours, seed
        self.bank, self.learned = torch.empty(0, 0), Learned()

    def fit(self, normal: FeatureBank, extractor: PatchExtractor | None = None) -> None:
        """Choose the coreset of the normal bank by the greedy k-centre rule on projected rows."""
        count = max(1, int(self.share * len(normal)))
        start = int(torch.randint(len(normal), (1,), generator=torch.Generator().manual_seed(self.seed)))
        self.learned = Learned(f"coreset of {count:,} patches")
        self.bank = normal.rows[coreset(project(normal.rows, self.seed), count, start)]

    def scores(self, images: FeatureBank) -> list[Tensor]:
        """Compute the anomaly scores [n] of n whole images; one entry, because there are no epochs."""
        distance, index = min_distance(images.rows, self.bank)
        per_image = distance.reshape(len(images.files), -1)
        score, patch = per_image.max(dim=1)
        farthest = images.rows.reshape(*per_image.shape, -1)[torch.arange(len(score)), patch]
        nearest = index.reshape(per_image.shape)[torch.arange(len(score)), patch]
        return [score * self.weights(farthest, nearest)]

    def maps(self, images: FeatureBank) -> Tensor:
        """Return the distances [n, 1, h, w] of the patches of n whole images to the coreset."""
        return min_distance(images.rows, self.bank)[0].reshape(len(images.files), 1, *images.grid)

    def weights(self, patch: Tensor, nearest: Tensor) -> Tensor:
        """Compute the weight w of the publication's Eq. 7.

        It is small where the nearest normal patch m* lies close to its own neighbours.

        Args:
            patch: [n, C], the farthest patch of each image.
            nearest: [n] int64, row of the coreset with the m* of each patch.
        """
        b = min(self.neighbours, len(self.bank))
        if b == 1:
            return torch.ones(len(patch))
        support = torch.stack([self._neighbours(m, b) for m in nearest.tolist()])  # [n, b], m* itself first
        distance = (patch[:, None].double() - self.bank[support].double()).norm(dim=2)
        return (1 - F.softmax(distance, dim=1)[:, 0]).to(torch.float32)

    def _neighbours(self, row: int, b: int) -> Tensor:
        """Return the b rows [b] of the coreset nearest to a row, that row first."""
        squared = (self.bank - self.bank[row]).square().sum(dim=1)
        squared[row] = -1  # first even if the coreset contains equal rows
        return squared.topk(b, largest=False).indices
