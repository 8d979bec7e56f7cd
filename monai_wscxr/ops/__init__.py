"""Operators on tensors: exact nearest-row search, mining, mixing and the k-centre coreset."""

from monai_wscxr.ops._library import (
    CUDA_EXTENSION,
    CUDA_EXTENSION_STATE,
    EXTENSION,
    EXTENSION_STATE,
    OPERATORS,
    Backend,
    backend,
)
from monai_wscxr.ops.coreset import coreset
from monai_wscxr.ops.min_distance import min_distance
from monai_wscxr.ops.mine_top_r import mine_top_k, mine_top_r, mined_count
from monai_wscxr.ops.mixup import mixup
from monai_wscxr.ops.packed_bank import PackedBank

__all__ = [
    "CUDA_EXTENSION",
    "CUDA_EXTENSION_STATE",
    "EXTENSION",
    "EXTENSION_STATE",
    "OPERATORS",
    "Backend",
    "PackedBank",
    "backend",
    "coreset",
    "min_distance",
    "mine_top_k",
    "mine_top_r",
    "mined_count",
    "mixup",
]
