"""Banks of patch features in memory, in files and in folders, and exact search in them."""

from monai_wscxr.system.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__)
