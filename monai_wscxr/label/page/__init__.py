"""The labelling page and its JSON interface. It needs FastAPI (`monai-wscxr[label]`)."""

from monai_wscxr.label.page.router import router

__all__ = ["router"]
