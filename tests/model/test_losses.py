"""Eq. 7 against the double sum over all pairs, and its gradient against finite differences."""

import math

import pytest
import torch

from monai_wscxr.model.losses import HingeLoss


def naive_loss(normal, abnormal, margin=1.0):
    """Compute Eq. 7 as published."""
    total = [max(0.0, n) + max(0.0, margin - a) for n in normal for a in abnormal]
    return math.fsum(total) / (len(normal) * len(abnormal))


def pack(normal, abnormal, dtype=torch.float64, order=None):
    scores = torch.tensor([*normal, *abnormal], dtype=dtype)
    target = torch.tensor([0.0] * len(normal) + [1.0] * len(abnormal))
    return (scores, target) if order is None else (scores[order], target[order])


@pytest.mark.parametrize("margin", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("scale", [1.0, 1e-8, 1e8])
@pytest.mark.parametrize(("n", "m"), [(7, 7), (1, 9), (12, 1), (1, 1)])
def test_equals_the_mean_over_all_pairs(n, m, scale, margin):
    g = torch.Generator().manual_seed(n + 10 * m)
    normal = (scale * torch.randn(n, generator=g)).tolist()
    abnormal = (scale * torch.randn(m, generator=g)).tolist()
    order = torch.randperm(n + m, generator=g)
    loss = HingeLoss(margin)(*pack(normal, abnormal, order=order))
    assert float(loss) == pytest.approx(naive_loss(normal, abnormal, margin), rel=1e-12)


def test_border_values_cost_nothing():
    assert float(HingeLoss()(*pack([0.0, -1.0], [1.0, 5.0]))) == 0.0
    assert float(HingeLoss()(*pack([0.25, 0.0], [1.0, 0.5]))) == pytest.approx(0.125 + 0.25)
    assert float(HingeLoss()(*pack([2.0] * 4, [2.0] * 3))) == 2.0


def test_gradient_equals_finite_differences():
    normal, abnormal = [0.7, -0.3, 1.9], [0.2, 1.4, -2.0, 0.9]
    scores, target = pack(normal, abnormal)
    scores.requires_grad_()
    HingeLoss()(scores, target).backward()
    step = 1e-6
    for i in range(7):
        up, down = [*normal, *abnormal], [*normal, *abnormal]
        up[i] += step
        down[i] -= step
        slope = (naive_loss(up[:3], up[3:]) - naive_loss(down[:3], down[3:])) / (2 * step)
        assert float(scores.grad[i]) == pytest.approx(slope, abs=1e-8)
    assert scores.grad.abs().sum() > 0.5


def test_float32_scores_of_a_training_step():
    g = torch.Generator().manual_seed(3)
    normal, abnormal = torch.randn(512, generator=g), torch.randn(512, generator=g)
    loss = HingeLoss()(*pack(normal.tolist(), abnormal.tolist(), torch.float32))
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(naive_loss(normal.tolist(), abnormal.tolist()), rel=1e-5)
