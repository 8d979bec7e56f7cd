"""Inference on a CPU: several small parts of a batch side by side instead of many threads inside each operation."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

_PIXELS_PER_PART = 2**17
"""Activations of larger parts do not fit in memory that the allocator reuses: it fetches and returns them, page by page, for
every layer, which took a third of the time at 320 pixels and four images per part."""


class ThreadParallel(nn.Module):
    """Run a frozen network on parts of a CPU batch in threads, each of which computes alone.

    Threads inside an operation wait for each other at its end. With small networks that waiting costs as much as the
    work, and on a machine that does something else as well up to ten times as much. Parts that never meet do not wait.
    On other devices the network is called as it is.

    Args:
        network: image [B, ...] to a tensor [B, ...]; used for inference only.
        part: images per part; None takes as many as have 2**17 pixels together: one of 320, two of 256 pixels a side.
        threads: parts at a time; None takes torch's number of threads.
    """

    def __init__(self, network: nn.Module, part: int | None = None, threads: int | None = None) -> None:
        super().__init__()
        if (part is not None and part < 1) or (threads is not None and threads < 1):
            raise ValueError(f"part and threads must be at least 1, got {part} and {threads}")
        self.network, self.part = network, part
        self.threads = torch.get_num_threads() if threads is None else threads

    def forward(self, image: Tensor) -> Tensor:
        """The network's result for the whole batch."""
        if image.device.type != "cpu":
            return self.network(image)
        part = self.part or max(1, _PIXELS_PER_PART // (image.shape[-2] * image.shape[-1]))
        with ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return torch.cat(list(pool.map(self._infer, image.split(part))))

    @torch.inference_mode()
    def _infer(self, image: Tensor) -> Tensor:
        return self.network(image.contiguous(memory_format=torch.channels_last))
