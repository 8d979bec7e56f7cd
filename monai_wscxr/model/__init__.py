"""The method: mining, mixing, discriminator and loss, whitening, calibration, and the trained model."""

from monai_wscxr.system.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__)
