"""Cross-validation of training options on the training part of a data set; its test part is never opened.

    monai-wscxr cross-validate DIR OUT --k 1,8 --draws 10

A draw holds out a quarter of the normal images by patient, chooses k abnormal images per class, trains as the bundle does
(same functions, without the engine) and scores the held-out normals and the abnormal images of other patients: as they are,
and perturbed in ways that say nothing about disease. All variants see the same draws, so differences are paired. A variant
is a change of options of `train.yaml`. Layers are joined at the coarsest grid.
"""

from __future__ import annotations

from monai_wscxr.experiments.cross_validation.draws import Draw, make_draw
from monai_wscxr.experiments.cross_validation.run import VARIANTS, CrossValidation, cross_validate
from monai_wscxr.experiments.cross_validation.training import DrawData, train

__all__ = ["VARIANTS", "CrossValidation", "Draw", "DrawData", "cross_validate", "make_draw", "train"]
