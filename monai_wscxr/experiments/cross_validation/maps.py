"""Backbone maps of the training images: unchanged, perturbed and copied with alterations."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from monai_wscxr.data.datalist import Item
from monai_wscxr.data.perturbation import PERTURBATIONS, SHIFTS, Perturbation
from monai_wscxr.data.preprocessing import Preprocessing
from monai_wscxr.features.backbones import create_backbone
from monai_wscxr.features.copies import ALTERED, OPACITIES, Alteration, copy_features
from monai_wscxr.features.extraction import PatchExtractor
from monai_wscxr.features.patches import PatchFeatures

CHANGES = {**PERTURBATIONS, **SHIFTS}


class BackboneMaps:
    """Maps of all stages of the backbone at the coarsest resolution, read from the cache where they are known.

    Layers and neighbourhood are chosen afterwards, by `choose`.

    Args:
        items: training items.
        options: options of `train.yaml`: image_size, intensity, backbone, layers, weights and cache.
        perturbed_normals: number of normal images that are perturbed and copied, besides all abnormal ones.
        copies: number of altered copies per image.
        opacities: number of copies with a synthetic opacity per image.

    Attributes:
        images: maps [n, C, h, w] of all items.
        subset: indices of the m perturbed and copied items.
        perturbed: maps [m, C, h, w] by name of the perturbation.
        copies: maps [m, C, h, w] of each altered copy.
        opacities: maps [m, C, h, w] of each copy with an opacity.
    """

    def __init__(
        self,
        items: Sequence[Item],
        options: Mapping[str, Any],
        perturbed_normals: int,
        copies: int = 0,
        opacities: int = 0,
    ) -> None:
        stages = ["1", "2", "3", "4"] if options["backbone"] == "efficientnet_lite0" else options["layers"]
        backbone = create_backbone(options["backbone"], stages, options["weights"])
        preprocessing = Preprocessing(
            options["image_size"], backbone.mean, backbone.std, intensity=options["intensity"]
        )
        self.extractor = PatchExtractor(
            PatchFeatures(backbone, 1, None, "coarsest"),
            preprocessing,
            cache=options["cache"],
            max_bad_share=0.0,
            runtime=options["runtime"],
        )
        self.channels = dict(zip(backbone.layers, backbone.channels, strict=True))
        self.images = self.extractor.bank(items).images
        normal = [i for i, item in enumerate(items) if item["label"] == 0]
        chosen = random.Random(5).sample(normal, min(perturbed_normals, len(normal)))
        self.subset = sorted(chosen) + [i for i, item in enumerate(items) if item["label"] == 1]
        files = [str(items[i]["image"]) for i in self.subset]
        self.perturbed = {name: self._altered(files, _alteration(name, CHANGES[name]), 1)[0] for name in CHANGES}
        self.copies = self._altered(files, ALTERED, copies) if copies else []
        self.opacities = self._altered(files, OPACITIES, opacities) if opacities else []

    def _altered(self, files: Sequence[str], alteration: Alteration, copies: int) -> list[Tensor]:
        """Return the maps [m, C, h, w] of each altered copy of the files."""
        found = copy_features(self.extractor, files, alteration, copies)
        maps = found.unflatten(1, self.extractor.grid).permute(0, 3, 1, 2)
        return [maps[copy::copies] for copy in range(copies)]

    def choose(self, maps: Tensor, layers: Sequence[str], p: int) -> Tensor:
        """Compute patch features (Eq. 1 to 3).

        Args:
            maps: maps of all stages, [n, C, h, w].
            layers: stages to use, in order.
            p: neighbourhood, odd.

        Returns:
            Patch features [n, C', h, w].
        """
        first = np.cumsum([0, *self.channels.values()])
        names = list(self.channels)
        part = torch.cat([maps[:, first[names.index(x)] : first[names.index(x) + 1]] for x in layers], 1)
        return F.avg_pool2d(part, p, stride=1, padding=p // 2, count_include_pad=True) if p > 1 else part


def _alteration(name: str, function: Perturbation) -> Alteration:
    """Turn a perturbation into an alteration of images by seed."""
    return Alteration(name, 1, lambda image, seed: function(image, random.Random(seed)))
