"""Datalists from published collections of chest radiographs: one module per collection, no patient in training and test."""

from monai_wscxr.system.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__)
