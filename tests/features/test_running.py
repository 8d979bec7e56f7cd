"""A frozen network over a stream of images: order, batches, reading ahead, and results that are not finite."""

import threading

import pytest
import torch
from torch import nn

from monai_wscxr.errors import InputError
from monai_wscxr.features.running import NetworkRunner, batched


def items(count, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [{"file": f"{n}.png", "image": torch.randn(3, 16, 16, generator=g), "number": n} for n in range(count)]


class Recorder(nn.Module):
    """Returns the mean colour, and records how it was called."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, image):
        self.calls.append(
            (len(image), torch.is_inference_mode_enabled(), torch.get_num_threads(), threading.get_ident())
        )
        return image.mean(dim=(2, 3))


def test_items_come_back_in_order_with_their_results():
    given = items(9)
    found = list(NetworkRunner(Recorder()).run(iter(given)))
    assert [item for item, _ in found] == given
    for item, result in found:
        torch.testing.assert_close(result, item["image"].mean(dim=(1, 2)))
        assert not result.is_inference()


def test_on_a_cpu_images_pass_one_by_one_in_single_threaded_threads():
    network, before = Recorder(), torch.get_num_threads()
    list(NetworkRunner(network, batch_size=4).run(items(9)))
    assert [call[:3] for call in network.calls] == [(1, True, 1)] * 9
    assert threading.get_ident() not in {call[3] for call in network.calls}
    assert torch.get_num_threads() == before


class Batched(NetworkRunner):
    """Treats a CPU as it treats a GPU."""

    on_cpu = False


def test_on_a_gpu_images_pass_in_batches():
    network = Recorder()
    found = list(Batched(network, batch_size=4).run(items(9)))
    assert [call[0] for call in network.calls] == [4, 4, 1]
    assert [item["number"] for item, _ in found] == list(range(9))
    for item, result in found:
        torch.testing.assert_close(result, item["image"].mean(dim=(1, 2)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none")
def test_results_of_a_gpu_come_back_to_the_cpu():
    network = Recorder()
    found = list(NetworkRunner(network, "cuda", batch_size=4).run(items(9)))
    assert [call[0] for call in network.calls] == [4, 4, 1]
    for item, result in found:
        assert result.device.type == "cpu"
        torch.testing.assert_close(result, item["image"].mean(dim=(1, 2)))


def test_the_next_images_are_loaded_while_earlier_ones_pass_and_no_more():
    loaded = []

    def load():
        for item in items(100):
            loaded.append(item["number"])
            yield item

    results = NetworkRunner(Recorder()).run(load())
    next(results)
    assert 1 < len(loaded) <= 2 * torch.get_num_threads() + 1
    results.close()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_result_that_is_not_finite_names_network_and_file(value):
    def network(image):
        return torch.where(image.mean() > 0, image, value)

    given = [{"file": f"{n}.png", "image": torch.full((3, 4, 4), float(n == 0))} for n in range(3)]
    runner = NetworkRunner(network, name="densenet121")
    results = runner.run(given)
    assert next(results)[0]["file"] == "0.png"
    with pytest.raises(InputError, match=r"^densenet121 gives NaN or Inf for 1\.png; the weights are damaged"):
        next(results)
    with pytest.raises(InputError, match=r"NaN or Inf for 1\.png or one of the 1 images in its batch"):
        runner.forward(given[1:])


@pytest.mark.parametrize("size", [0, -2])
def test_batches_below_one_image_are_refused(size):
    with pytest.raises(InputError, match=f"batch_size must be at least 1, got {size}"):
        NetworkRunner(Recorder(), batch_size=size)


def test_batched_keeps_the_rest():
    assert list(batched(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(batched([], 3)) == []
