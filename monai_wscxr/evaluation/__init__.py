"""Metrics of a trained model on labelled test images, and inference on unlabelled ones, with MONAI's evaluator."""

from monai_wscxr.system.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__)
