"""The one loader of radiographs: PNG, JPEG, TIFF, BMP, NIfTI or DICOM to grey values in [0, 1], or the reason why not."""

from monai_wscxr.system.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__)
