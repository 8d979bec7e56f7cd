"""Eq. 4 and 5 on banks: which patches are mined, in which order, and where they came from."""

import math

import pytest
import torch

from monai_wscxr.bank.feature_bank import FeatureBank
from monai_wscxr.errors import InputError
from monai_wscxr.model.mining import mine


def bank_of(rows, grid):
    """Create a bank of whole images from rows [n*h*w, C]."""
    h, w = grid
    images = rows.reshape(-1, h * w, rows.shape[1])
    return FeatureBank.from_images(images, [f"image_{i}.png" for i in range(len(images))], grid)


def naive_mining(normal, abnormal, k):
    """Compute Eq. 4 and 5 in float64 loops: distance and index of the k farthest, ties to the lowest index."""
    normal, abnormal = normal.double().tolist(), abnormal.double().tolist()
    nearest = [min(math.dist(a, n) for n in normal) for a in abnormal]
    order = sorted(range(len(nearest)), key=lambda i: (-nearest[i], i))[:k]
    return [nearest[i] for i in order], order


def cases():
    g = torch.Generator().manual_seed(0)
    normal, abnormal = torch.randn(36, 6, generator=g), torch.randn(24, 6, generator=g)
    near = normal[:24] + 1e-4 * torch.randn(24, 6, generator=g)
    return {
        "random": (normal, abnormal),
        "ties": tuple(torch.randint(0, 2, (n, 3), generator=g).float() for n in (36, 24)),
        "constant": (torch.full((36, 4), 2.5), torch.full((24, 4), 2.5)),
        "duplicates": (normal, abnormal[:3].repeat(8, 1)),
        "near copies of normal patches": (normal, near),
        "copies of normal patches": (normal, torch.cat([normal[:20], abnormal[:4]])),
        "huge": (1e15 * normal, 1e15 * abnormal),
        "tiny": (1e-15 * normal, 1e-15 * abnormal),
    }


@pytest.mark.parametrize(("retention", "k"), [(0.2, 4), (0.01, 1), (0.5, 12), (1.0, 24)])
@pytest.mark.parametrize("name", cases())
def test_mined_rows_distances_and_origins(name, retention, k):
    normal, abnormal = cases()[name]
    source = bank_of(abnormal, (3, 4))
    mined = mine(bank_of(normal, (3, 4)), source, retention)
    distance, order = naive_mining(normal, abnormal, k)
    assert mined.distance.tolist() == pytest.approx(distance, rel=1e-6, abs=0)
    assert len(mined.bank) == k
    for row, index in enumerate(order):
        assert torch.equal(mined.bank.rows[row], abnormal[index])
        image, patch = divmod(index, 12)
        assert mined.bank.origin(row) == (f"image_{image}.png", *divmod(patch, 4))
        assert mined.bank.origin(row) == source.origin(index)


def test_retention_one_keeps_every_patch_once():
    normal, abnormal = cases()["duplicates"]
    mined = mine(bank_of(normal, (3, 4)), bank_of(abnormal, (3, 4)), 1)
    origins = {mined.bank.origin(i) for i in range(24)}
    assert len(origins) == 24
    assert torch.equal(mined.bank.rows.sort(dim=0).values, abnormal.sort(dim=0).values)


@pytest.mark.parametrize("retention", [0.0, -0.1, 1.01, math.nan])
def test_retention_outside_its_range_is_refused(retention):
    normal, abnormal = cases()["random"]
    with pytest.raises(ValueError, match=r"retention rate r must lie in \(0, 1\]"):
        mine(bank_of(normal, (3, 4)), bank_of(abnormal, (3, 4)), retention)


def test_empty_and_damaged_banks_are_refused():
    normal, abnormal = (bank_of(rows, (3, 4)) for rows in cases()["random"])
    nothing = normal.select(torch.tensor([], dtype=torch.int64))
    with pytest.raises(ValueError, match="bank is empty"):
        mine(nothing, abnormal, 0.2)
    with pytest.raises(ValueError, match="no abnormal patches"):
        mine(normal, nothing, 0.2)
    abnormal.rows[5, 2] = math.nan
    with pytest.raises(ValueError, match="NaN or Inf in 1 of 24 rows"):
        mine(normal, abnormal, 0.2)


@pytest.mark.parametrize(("retention", "each"), [(0.2, 2), (0.01, 1), (0.5, 6), (1.0, 12)])
@pytest.mark.parametrize("name", cases())
def test_mining_within_every_image(name, retention, each):
    normal, abnormal = cases()[name]
    source = bank_of(abnormal, (3, 4))
    mined = mine(bank_of(normal, (3, 4)), source, retention, "image")
    expected = []
    for image in range(2):
        distance, order = naive_mining(normal, abnormal[12 * image : 12 * image + 12], each)
        expected += [(-d, 12 * image + index) for d, index in zip(distance, order, strict=True)]
    expected.sort()
    assert mined.distance.tolist() == pytest.approx([-d for d, _ in expected], rel=1e-6, abs=0)
    found = [mined.bank.origin(row) for row in range(len(mined.bank))]
    assert sorted(found) == sorted(source.origin(index) for _, index in expected)
    assert torch.equal(mined.bank.rows.sort(0).values, abnormal[[index for _, index in expected]].sort(0).values)
    assert (mined.distance.diff() <= 0).all()


def test_scopes_that_do_not_exist_and_banks_without_whole_images():
    normal, abnormal = (bank_of(rows, (3, 4)) for rows in cases()["random"])
    with pytest.raises(InputError, match="mining_scope must be all"):
        mine(normal, abnormal, 0.2, "class")
    with pytest.raises(ValueError, match="not all 12 patches"):
        mine(normal, abnormal.select(torch.arange(5)), 0.2, "image")
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\]"):
        mine(normal, abnormal, math.nan, "image")
