"""MONAI/ignite handlers of the training workflow, in the order in which they act."""

from monai_wscxr.handlers.epochs import DistanceHandler, EpochLogHandler, EpochStateHandler, ThreadsHandler
from monai_wscxr.handlers.mining import ImageFeatures, MiningHandler
from monai_wscxr.handlers.result import ArtefactHandler, ScoresAndLabels

__all__ = [
    "ArtefactHandler",
    "DistanceHandler",
    "EpochLogHandler",
    "EpochStateHandler",
    "ImageFeatures",
    "MiningHandler",
    "ScoresAndLabels",
    "ThreadsHandler",
]
