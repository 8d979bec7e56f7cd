"""Patch features of radiographs from a frozen network (Eq. 1 to 3), extracted once and cached."""

from monai_wscxr.system.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__)
