"""Prediction runs: apply a trained model to files, folders and DICOM studies, in a way that survives crashes and can resume."""

from monai_wscxr.system.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__)
