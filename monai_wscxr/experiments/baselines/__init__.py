"""The compared methods, one file each, on the same features as WSCXR."""

from monai_wscxr.system.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__)
