"""The one loader of radiographs: PNG, JPEG, NIfTI or DICOM to grey values in [0, 1] with dark air, or the reason why not."""

from monai_wscxr.system.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__)
