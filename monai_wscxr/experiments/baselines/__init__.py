"""The compared methods, one module each, on the same features as WSCXR."""

from monai_wscxr.system.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__)
