"""The web page that annotators work in, and the JSON interface behind it. Needs FastAPI, which MONAI Label brings."""

from monai_wscxr.label.page.router import router

__all__ = ["router"]
