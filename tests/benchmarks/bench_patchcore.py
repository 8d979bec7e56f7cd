"""PatchCore beside anomalib's on the same features. Not collected by default; run

    MONAI_WSCXR_DATASET=DIR MONAI_WSCXR_BENCH_IMAGES=150 python -m pytest tests/benchmarks/bench_patchcore.py -s

DIR is a data set with a test part; its features come from the cache, or are extracted. Skips, visibly, without anomalib or DIR.
"""

import os
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigWorkflow

from monai_wscxr.evaluation.metrics import auroc
from monai_wscxr.experiments.baselines.common import normal_split
from monai_wscxr.experiments.baselines.patchcore import PatchCore

CONFIG = Path(__file__).parents[2] / "bundles" / "wscxr_chest_xray" / "configs" / "train.yaml"


def test_auroc_within_half_a_point():
    model = pytest.importorskip("anomalib.models.image.patchcore.torch_model", exc_type=ImportError)
    source = os.environ.get("MONAI_WSCXR_DATASET")
    if not source:
        pytest.skip("MONAI_WSCXR_DATASET names no data set")
    parser = ConfigWorkflow(
        config_file=str(CONFIG), workflow_type="train", logging_file=False, dataset_dir=source, output_dir="unused"
    ).parser
    extractor = parser.get_parsed_content("extractor")
    split = normal_split(source)
    images = int(
        os.environ.get("MONAI_WSCXR_BENCH_IMAGES", len(split.normal))
    )  # anomalib's coreset takes hours for all
    normal, test = extractor.bank(split.normal[:images]), extractor.bank(split.test)
    labels = [item["label"] for item in split.test]

    ours = PatchCore()
    ours.fit(normal)
    peer = model.PatchcoreModel.__new__(model.PatchcoreModel)  # its network is not needed: the features are given
    torch.nn.Module.__init__(peer)
    peer.num_neighbors, peer.embedding_store = 9, [normal.rows]
    peer.register_buffer("memory_bank", torch.empty(0))
    torch.manual_seed(0)
    peer.subsample_embedding(0.1)
    patch_scores, locations = peer.nearest_neighbors(test.rows, n_neighbors=1)
    shape = (len(labels), -1)
    theirs = peer.compute_anomaly_score(patch_scores.reshape(shape), locations.reshape(shape), test.rows)

    figures = auroc(labels, ours.scores(test)[0]), auroc(labels, theirs)
    print(f"\nAUROC on {len(labels)} test images, {len(normal.files)} in the bank:")
    print(f"PatchCore here {figures[0]:.4f}, anomalib {figures[1]:.4f}")
    assert abs(figures[0] - figures[1]) < 0.005
