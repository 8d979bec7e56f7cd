"""Training on normal images alone (k = 0): the score of a patch is its distance to the normals.

Nothing is learned but the statistics of the normal bank, so there is no epoch. The model is one as any other: the discriminator
that adds nothing to the distance, calibrated on held-out normals.
"""

from __future__ import annotations

import torch
from torch import nn

from monai_wscxr.data.split import TrainingSplit
from monai_wscxr.errors import InputError
from monai_wscxr.model.networks import Discriminator


def check_normals_only(split: TrainingSplit, whiten: bool) -> None:
    """Check that a training on normal images alone whitens its features.

    Raises:
        InputError: otherwise: the length of features that are not whitened is no distance to the normals.
    """
    if split.normals_only and not whiten:
        raise InputError(
            "a training on normal images alone measures the distance to them after whitening: leave --whiten on, or give "
            "abnormal images and --k 1 or more"
        )


def score_distance_alone(discriminator: Discriminator) -> None:
    """Make a patch's score its squared Mahalanobis distance to the normals, divided by the number of channels.

    The last layer becomes zero, the distance gets the weight 1, and regions and opacities have none.
    """
    last = discriminator.layers[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.zero_()
        if last.bias is not None:
            last.bias.zero_()
    discriminator.distance_weight.fill_(1.0)
    discriminator.regions.weight.zero_()
    discriminator.opacity.zero_()
    discriminator.opacity_map.zero_()
