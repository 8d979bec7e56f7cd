"""A batch processed in parts by threads gives the result of the network for the whole batch."""

import pytest
import torch
from torch import nn

from monai_wscxr.features.parallel import ThreadParallel, one_thread


class Recorder(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, image):
        self.calls.append((len(image), torch.get_num_threads(), torch.is_inference_mode_enabled()))
        return image.mean(dim=(2, 3)) * 2


@pytest.mark.parametrize(("images", "sizes"), [(1, [1]), (4, [4]), (9, [1, 4, 4])])
def test_parts_make_the_whole_in_order(images, sizes):
    network = Recorder()
    batch = torch.randn(images, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    result = ThreadParallel(network, part=4, threads=2)(batch)
    torch.testing.assert_close(result, batch.mean(dim=(2, 3)) * 2)
    assert sorted(size for size, _, _ in network.calls) == sizes
    assert all(threads == 1 and inference for _, threads, inference in network.calls)
    assert torch.get_num_threads() == before


def test_a_single_image_uses_one_thread(make_features, monkeypatch):
    features = make_features()
    seen = []
    aggregate = features.aggregate
    monkeypatch.setattr(features, "aggregate", lambda phi: (seen.append(torch.get_num_threads()), aggregate(phi))[1])
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert features.grid(64) == (4, 4)
        assert (seen, torch.get_num_threads()) == ([1], 2)
        with pytest.raises(KeyError), one_thread():
            raise KeyError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_an_error_in_a_thread_comes_out():
    class Broken(nn.Module):
        def forward(self, image):
            raise ValueError("no such layer")

    with pytest.raises(ValueError, match="no such layer"):
        ThreadParallel(Broken())(torch.zeros(5, 3, 4, 4))


@pytest.mark.parametrize("arguments", [{"part": 0}, {"threads": 0}])
def test_numbers_below_one_are_refused(arguments):
    with pytest.raises(ValueError, match="at least 1"):
        ThreadParallel(nn.Identity(), **arguments)
