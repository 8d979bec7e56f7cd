"""Inference on a CPU: parts of a batch run in parallel threads, each with single-threaded operations."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from monai_wscxr.system.heap import reused


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch operations of the calling thread use one thread in this context.

    For a single small image: on a busy machine two threads that wait for each other take ten times as long.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class ThreadParallel(nn.Module):
    """Run a frozen network on parts of a CPU batch in parallel threads.

    Threads inside an operation wait for each other at its end. With small networks they wait as long as they work, and up to
    ten times as long on a busy machine. Threads that process separate parts do not wait. On other devices the network is called
    on the whole batch.

    Args:
        network: images [B, ...] to a tensor [B, ...] or a tuple of such tensors; used for inference only.
        part: images per part, >= 1. With 1, most activations fit into the processor's cache, and a result does not depend
            on the other images of its batch.
        threads: parts in flight, >= 1; None takes torch's number of threads.

    Raises:
        ValueError: when a number is below 1.
    """

    def __init__(self, network: nn.Module, part: int = 1, threads: int | None = None) -> None:
        super().__init__()
        if part < 1 or (threads is not None and threads < 1):
            raise ValueError(f"part and threads must be at least 1, got {part} and {threads}")
        self.network, self.part = network, part
        self.threads = torch.get_num_threads() if threads is None else threads

    def forward(self, image: Tensor) -> Any:
        """Return the network's result for the whole batch."""
        if image.device.type != "cpu":
            return self.network(image)
        with reused(), ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            parts = list(pool.map(self._infer, image.split(self.part)))
        if isinstance(parts[0], tuple):
            return tuple(torch.cat(results) for results in zip(*parts, strict=True))
        return torch.cat(parts)

    @torch.inference_mode()
    def _infer(self, image: Tensor) -> Any:
        return self.network(image)
