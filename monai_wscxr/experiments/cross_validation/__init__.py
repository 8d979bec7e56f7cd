"""Cross-validation of training options on the training part of a data set; its test part is never opened.

    monai-wscxr cross-validate DIR OUT --k 1,8 --draws 10

Each random split (repeated random sub-sampling) holds out a quarter of the normal images by patient and chooses k abnormal
images per class. Training uses the functions of the bundle without its engine. The held-out normals and the abnormal images
of other patients are scored, both unchanged and with perturbations that have nothing to do with disease. All variants use the
same splits, so their differences are paired. A variant is a change of options of `train.yaml`. Layers are joined at the
coarsest resolution.
"""

from monai_wscxr.system.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__)
