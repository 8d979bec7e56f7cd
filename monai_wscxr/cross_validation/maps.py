"""What every variant starts from: backbone maps of the training images, as they are and perturbed."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.transforms import Compose
from torch import Tensor

from monai_wscxr.backbones import create_backbone
from monai_wscxr.data.perturbation import PERTURBATIONS, SHIFTS
from monai_wscxr.extraction import PatchExtractor
from monai_wscxr.features import PatchFeatures
from monai_wscxr.transforms import LoadRadiographd, Preprocessing, ResizeRadiographd, radiograph_transforms

logger = logging.getLogger("monai_wscxr")

CHANGES = {**PERTURBATIONS, **SHIFTS}


class Maps:
    """Backbone maps of all stages at the coarsest grid, as they are and perturbed; layers and p are chosen later.

    Args:
        items: training items.
        options: image_size, intensity, backbone and weights of `train.yaml`.
        folder: perturbed maps are kept here.
        perturbed_normals: normal images that are perturbed, besides every abnormal one.
    """

    def __init__(self, items: Sequence[dict], options: Mapping[str, Any], folder: Path, perturbed_normals: int) -> None:
        stages = ["1", "2", "3", "4"] if options["backbone"] == "efficientnet_lite0" else options["layers"]
        backbone = create_backbone(options["backbone"], stages, options["weights"])
        features = PatchFeatures(backbone, 1, None, "coarsest")
        size, intensity = options["image_size"], options["intensity"]
        preprocessing = Preprocessing(size, backbone.mean, backbone.std, intensity=intensity)
        extractor = PatchExtractor(features, preprocessing, cache=options["cache"], max_bad_share=0.0)
        self.channels = dict(zip(backbone.layers, backbone.channels, strict=True))
        self.grid = extractor.grid
        self.images = extractor.bank(items).images
        normal = [i for i, item in enumerate(items) if item["label"] == 0]
        chosen = random.Random(5).sample(normal, min(perturbed_normals, len(normal)))
        self.subset = sorted(chosen) + [i for i, item in enumerate(items) if item["label"] == 1]
        kept = folder / f"perturbed_{options['backbone'].replace('/', '_')}_{size}_{intensity}.pt"
        if kept.is_file():
            self.perturbed = torch.load(kept, weights_only=True)
            return
        self.perturbed = {name: self._perturb(items, extractor, name) for name in CHANGES}
        torch.save(self.perturbed, kept)

    def _perturb(self, items: Sequence[dict], extractor: PatchExtractor, name: str) -> Tensor:
        preprocessing = extractor.preprocessing
        read = Compose([LoadRadiographd(("image",)), ResizeRadiographd(("image",), preprocessing.image_size)])
        rest = Compose(list(radiograph_transforms(preprocessing).transforms[2:]))
        rng = random.Random(3)
        rows = []
        for start in range(0, len(self.subset), 16):
            batch = []
            for i in self.subset[start : start + 16]:
                image = CHANGES[name](read({"image": items[i]["image"]})["image"].float(), rng)
                batch.append(rest({"image": image})["image"])
            with torch.inference_mode():
                rows.append(extractor.network(torch.stack(batch)))
        logger.info("%s: %d images", name, len(self.subset))
        return torch.cat(rows).clone()

    def choose(self, maps: Tensor, layers: Sequence[str], p: int) -> Tensor:
        """Patch features of Eq. 1 to 3, [n, C, h, w], from maps of all stages."""
        first = np.cumsum([0, *self.channels.values()])
        names = list(self.channels)
        part = torch.cat([maps[:, first[names.index(x)] : first[names.index(x) + 1]] for x in layers], 1)
        return F.avg_pool2d(part, p, stride=1, padding=p // 2, count_include_pad=True) if p > 1 else part
