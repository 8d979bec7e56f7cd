"""The folder for everything that can be computed again."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_root() -> Path:
    """Return `$MONAI_WSCXR_CACHE`, or else the platform's user cache folder."""
    chosen = os.environ.get("MONAI_WSCXR_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("monai_wscxr"))
