"""Things asked of the operating system: files written whole or not at all, locks, signals, memory, processes, progress."""

from monai_wscxr.system.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__)
