"""Give a stored model a chest check that refuses some images or all."""

import json
from pathlib import Path

import numpy as np

from monai_wscxr.model.artefact import load_model
from monai_wscxr.model.chest_check import ChestCheck
from monai_wscxr.model.description import ARTEFACT


def refuse_unlike(folder, image_features, limit):
    """Store a check that refuses images whose image features differ from the given ones [C] by a mean square over `limit`."""
    channels = load_model(folder).network.features.channels
    mean = np.zeros(channels) if image_features is None else np.asarray(image_features)
    check = ChestCheck(mean, np.ones(channels), np.zeros((1, channels)), limit, np.ones(1))
    path = Path(folder) / ARTEFACT
    description = json.loads(path.read_text())
    path.write_text(json.dumps({**description, "chest_check": check.to_dict()}))
