"""Options of several commands: the backbone and its patch features."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from monai_wscxr.features.extraction import PatchExtractor


def add_runtime_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that chooses what executes the backbone."""
    parser.add_argument(
        "--runtime",
        default="auto",
        choices=("auto", "torch", "openvino", "onnxruntime"),
        help="library that executes the backbone; auto: the fastest that agrees with torch (default: %(default)s)",
    )


def add_backbone_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe a backbone and its patch features; their defaults are those of `train.yaml`."""
    parser.add_argument(
        "--backbone",
        default="efficientnet_lite0",
        metavar="NAME",
        help="torchvision or timm model (default: %(default)s)",
    )
    parser.add_argument(
        "--weights",
        default="default",
        metavar="FILE",
        help="weights file, 'none' for random weights, or 'default' for the published ImageNet weights (default: %(default)s)",
    )
    parser.add_argument("--layers", metavar="A,B,...", help="layers of the backbone (default: those of its name)")
    parser.add_argument(
        "--neighbourhood",
        type=int,
        default=3,
        metavar="P",
        help="side of the neighbourhood, odd (default: %(default)s)",
    )
    parser.add_argument(
        "--align_to",
        default="coarsest",
        choices=("coarsest", "finest"),
        help="layer whose resolution the patch features have (default: %(default)s)",
    )
    parser.add_argument(
        "--image_size",
        type=int,
        default=320,
        metavar="N",
        help="side of the network's input in pixels (default: %(default)s)",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    add_runtime_option(parser)


def extractor_of(options: argparse.Namespace, precision: str = "float32") -> PatchExtractor:
    """Create the extractor that the backbone options describe; it caches nothing.

    Args:
        options: parsed options of `add_backbone_options`; `max_bad_share` and `workers` are used if there are any.
        precision: see `PatchExtractor`.
    """
    from monai_wscxr.data.preprocessing import Preprocessing
    from monai_wscxr.features.backbones import create_backbone
    from monai_wscxr.features.extraction import PatchExtractor
    from monai_wscxr.features.patches import PatchFeatures

    layers = options.layers.split(",") if options.layers else None
    backbone = create_backbone(options.backbone, layers, options.weights)
    features = PatchFeatures(backbone, options.neighbourhood, None, options.align_to)
    preprocessing = Preprocessing(options.image_size, backbone.mean, backbone.std, intensity="standardised")
    return PatchExtractor(
        features,
        preprocessing,
        options.device,
        cache=False,
        max_bad_share=getattr(options, "max_bad_share", 0.05),
        precision=precision,
        read_workers=getattr(options, "workers", 0),
        runtime=options.runtime,
    )
