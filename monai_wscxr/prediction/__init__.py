"""One prediction run: a trained model applied to files, folders and DICOM studies; resumable, isolated, complete."""

from monai_wscxr.system.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__)
