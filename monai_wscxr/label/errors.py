"""Errors of the labelling server."""

from __future__ import annotations


class UnknownImageError(KeyError):
    """No image of this collection has the id that was asked for."""
