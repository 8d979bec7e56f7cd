"""Options that several commands share: the feature network and its features."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from monai_wscxr.features.extraction import PatchExtractor


def add_backbone_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe a feature network."""
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--weights", default="default", help="file of weights, or 'none' for random ones")
    parser.add_argument("--layers", help="comma-separated; default: those of the backbone")
    parser.add_argument("--neighbourhood", type=int, default=5)
    parser.add_argument("--align_to", default="coarsest", choices=("coarsest", "finest"))
    parser.add_argument(
        "--image_size", type=int, default=320, metavar="N", help="pixels per side of the network's input"
    )
    parser.add_argument("--device", default="cpu")


def extractor_of(options: argparse.Namespace, cache: bool = False, precision: str = "float32") -> PatchExtractor:
    """Create the extractor that the backbone options describe."""
    from monai_wscxr.data.transforms import Preprocessing
    from monai_wscxr.features.backbones import create_backbone
    from monai_wscxr.features.extraction import PatchExtractor
    from monai_wscxr.features.patches import PatchFeatures

    layers = options.layers.split(",") if options.layers else None
    backbone = create_backbone(options.backbone, layers, options.weights)
    features = PatchFeatures(backbone, options.neighbourhood, None, options.align_to)
    preprocessing = Preprocessing(options.image_size, backbone.mean, backbone.std, intensity="standardised")
    share = getattr(options, "max_bad_share", 0.05)
    return PatchExtractor(
        features, preprocessing, options.device, None if cache else False, max_bad_share=share, precision=precision
    )
