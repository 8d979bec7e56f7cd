"""Figures of merit of a trained model on labelled test images, through MONAI's evaluator."""

from monai_wscxr.system.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__)
