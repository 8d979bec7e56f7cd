"""Scores of every epoch of a training, for the published protocol, which chooses the best epoch on the test images."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeVar

from monai_wscxr.model.artefact import TrainedModel
from monai_wscxr.model.networks import EpochScores
from monai_wscxr.training.run_folder import epoch_discriminators

Scores = TypeVar("Scores")


def epoch_network(model: TrainedModel) -> EpochScores:
    """Build a network with one output channel per epoch and a last one for the trained model, see `EpochScores`."""
    discriminators = []
    for state in epoch_discriminators(model.folder):
        discriminator = copy.deepcopy(model.network.discriminator)
        discriminator.load_state_dict(state)
        discriminators.append(discriminator)
    device = next(model.network.parameters()).device
    network = EpochScores(model.network, [*discriminators, model.network.discriminator])
    return network.to(device).eval()


def candidate_epochs(scores: Sequence[Scores]) -> Sequence[Scores]:
    """Return the scores among which the published protocol chooses.

    Args:
        scores: scores of each epoch and, last, of the trained model, as `epoch_network` gives them. A single entry is the
            trained model of a run without stored epochs.

    Returns:
        The scores of the epochs; without stored epochs the scores of the trained model.
    """
    return scores[:-1] if len(scores) > 1 else scores
