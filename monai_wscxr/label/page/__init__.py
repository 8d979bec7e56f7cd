"""The labelling page and its JSON interface. It needs FastAPI, which MONAI Label installs."""

from monai_wscxr.label.page.router import router

__all__ = ["router"]
