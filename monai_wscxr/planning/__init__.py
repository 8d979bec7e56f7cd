"""What a training will cost on this machine, and whether a backbone can run in lower precision."""

from monai_wscxr.system.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__)
