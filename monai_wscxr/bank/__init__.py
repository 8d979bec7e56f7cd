"""Banks of patch features: rows in memory, in files or in folders, and exact search in them."""

from monai_wscxr.system.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__)
