"""What a person receives: pictures, tables, HTML reports and DICOM objects of given results."""

from monai_wscxr.system.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__)
