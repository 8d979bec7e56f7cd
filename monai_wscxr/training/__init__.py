"""One training run of the bundle: its options and folder, its banks, the handlers of MONAI's trainer."""

from monai_wscxr.system.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__)
