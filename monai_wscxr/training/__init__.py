"""MONAI/ignite handlers of the training workflow, in the order in which they act."""

from monai_wscxr.training.artefact_handler import ArtefactHandler
from monai_wscxr.training.epoch_handlers import DistanceHandler, EpochLogHandler, EpochStateHandler, ThreadsHandler
from monai_wscxr.training.mining_handler import MiningHandler
from monai_wscxr.training.validation import ImageFeatures, ScoresAndLabels

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
