"""Adaptation of trained models to other sites, from their normal images or from images without labels."""

from monai_wscxr.system.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__)
