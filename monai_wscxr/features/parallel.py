"""Inference on a CPU: several small parts of a batch side by side instead of many threads inside each operation."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from monai_wscxr.system.heap import reused


class ThreadParallel(nn.Module):
    """Run a frozen network on parts of a CPU batch in threads, each of which computes alone.

    Threads inside an operation wait for each other at its end. With small networks that waiting costs as much as the
    work, and on a machine that does something else as well up to ten times as much. Parts that never meet do not wait.
    On other devices the network is called as it is.

    Args:
        network: image [B, ...] to a tensor [B, ...]; used for inference only.
        part: images per part; 1 keeps most activations in the processor's cache, and makes a result independent of the
            other images of its batch.
        threads: parts at a time; None takes torch's number of threads.
    """

    def __init__(self, network: nn.Module, part: int = 1, threads: int | None = None) -> None:
        super().__init__()
        if part < 1 or (threads is not None and threads < 1):
            raise ValueError(f"part and threads must be at least 1, got {part} and {threads}")
        self.network, self.part = network, part
        self.threads = torch.get_num_threads() if threads is None else threads

    def forward(self, image: Tensor) -> Tensor:
        """The network's result for the whole batch."""
        if image.device.type != "cpu":
            return self.network(image)
        with reused(), ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return torch.cat(list(pool.map(self._infer, image.split(self.part))))

    @torch.inference_mode()
    def _infer(self, image: Tensor) -> Tensor:
        return self.network(image.contiguous(memory_format=torch.channels_last))
