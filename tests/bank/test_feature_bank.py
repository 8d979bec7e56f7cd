"""Rows of a bank keep their origins, also in a selection."""

import pytest
import torch

from monai_wscxr.bank.feature_bank import FeatureBank

FILES = ("a.png", "b.png", "c.png")


def whole_bank():
    g = torch.Generator().manual_seed(0)
    return FeatureBank.from_images(torch.randn(3, 2 * 4, 5, generator=g), FILES, (2, 4))


def test_every_row_knows_file_and_position():
    bank = whole_bank()
    assert len(bank) == 24
    rows = iter(range(24))
    for file in FILES:
        for y in range(2):
            for x in range(4):
                assert bank.origin(next(rows)) == (file, y, x)


def test_images_give_the_maps_back():
    features = torch.randn(3, 5, 2, 4)
    bank = FeatureBank.from_images(features.permute(0, 2, 3, 1).flatten(1, 2), FILES, (2, 4))
    assert torch.equal(bank.images, features)


def test_selection_keeps_order_repetition_and_origin():
    bank = whole_bank()
    index = torch.tensor([23, 0, 9, 9])
    chosen = bank.select(index)
    assert len(chosen) == 4
    for row, source in enumerate(index.tolist()):
        assert torch.equal(chosen.rows[row], bank.rows[source])
        assert chosen.origin(row) == bank.origin(source)
    with pytest.raises(ValueError, match="holds 4 chosen rows, not all 8 patches of 3 images"):
        _ = chosen.images


def test_to_keeps_everything_but_the_device():
    moved = whole_bank().to("meta")
    assert moved.rows.device.type == "meta"
    assert moved.origin(13) == whole_bank().origin(13)
    assert moved.grid == (2, 4)


@pytest.mark.parametrize(
    ("shape", "grid"), [((3, 8, 5), (2, 3)), ((2, 8, 5), (2, 4)), ((24, 5), (2, 4)), ((3, 7, 5), (2, 4))]
)
def test_what_does_not_fit_together_is_refused(shape, grid):
    with pytest.raises(ValueError, match="do not fit 3 images"):
        FeatureBank.from_images(torch.zeros(shape), FILES, grid)
