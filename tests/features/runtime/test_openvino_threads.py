"""The first inference with OpenVINO, which must not be made by two threads at once."""

import threading

import pytest
import torch
from torch import nn

from monai_wscxr.features.runtime.openvino_runtime import OpenVINORuntime

pytest.importorskip("openvino")


def test_a_runtime_has_made_an_inference_before_threads_get_it():
    """Without it about one process in ten stopped for good, in OpenVINO's conversion of types."""
    network = nn.Conv2d(3, 4, 3).eval()
    image = torch.rand(1, 3, 32, 32)
    runtime = OpenVINORuntime(OpenVINORuntime.convert(network, image), threads=2)
    assert len(runtime._session._idle) == 1  # a request is created by the first inference and kept
    found = []
    threads = [threading.Thread(target=lambda: found.append(runtime(image))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    with torch.inference_mode():
        expected = network(image)
    assert len(found) == 8
    assert all(torch.allclose(one, expected, atol=1e-5) for one in found)
