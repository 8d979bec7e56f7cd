"""From files to tensors: data lists, the split of a run, radiographs in every format, transforms, synthetic radiographs."""

from monai_wscxr.system.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__)
