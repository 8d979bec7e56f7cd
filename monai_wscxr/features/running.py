"""Run a frozen network over a stream of loaded images: in batches on a GPU, one image per thread on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor

from monai_wscxr.errors import InputError
from monai_wscxr.system.heap import reused
from monai_wscxr.system.progress import ahead

T = TypeVar("T")


class NetworkRunner:
    """Run a frozen network over loaded images and return the results in order.

    On a CPU every image passes the network alone, with as many images in flight as torch has threads, so a result does not
    depend on the other images. On a GPU images pass in batches, and the next batch is loaded meanwhile.

    Args:
        network: images [B, 3, H, W] float32 on `device` to a tensor [B, ...]; called in inference mode.
        device: device of the network.
        batch_size: images per batch on a GPU, at least 1.
        name: name of the network in messages.

    Raises:
        InputError: when the batch size is below 1.
    """

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        device: str | torch.device = "cpu",
        batch_size: int = 16,
        name: str = "the network",
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}")
        self.network, self.device, self.batch_size, self.name = network, torch.device(device), batch_size, name

    @property
    def on_cpu(self) -> bool:
        """Whether images pass one by one in threads."""
        return self.device.type == "cpu"

    @property
    def read_ahead(self) -> int:
        """Number of images to decode ahead, so that the network need not wait for them."""
        return 2 * (torch.get_num_threads() if self.on_cpu else self.batch_size)

    def run(self, loaded: Iterable[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], Tensor]]:
        """Yield every loaded item with its result, in order, while later items pass the network.

        Args:
            loaded: items; `image` is the tensor [3, H, W], `file` the path for messages.

        Yields:
            The item, and the network's result for it on the CPU, without the batch dimension.

        Raises:
            InputError: when a result holds NaN or Inf.
        """
        threads = torch.get_num_threads()
        workers, depth = (threads, 2 * threads) if self.on_cpu else (1, 2)
        batches = batched(loaded, 1 if self.on_cpu else self.batch_size)
        with reused():
            for results in ahead(self.forward, batches, workers, depth):
                yield from results

    def forward(self, batch: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], Tensor]]:
        """Run the network on one batch of items, and check that the results are finite; see `run`."""
        image = torch.stack([torch.as_tensor(item["image"]) for item in batch]).to(self.device)
        with torch.inference_mode():
            result = self.network(image).cpu()
        if not bool(torch.isfinite(result).all()):
            others = f" or one of the {len(batch) - 1} images in its batch" if len(batch) > 1 else ""
            raise InputError(
                f"{self.name} gives NaN or Inf for {batch[0]['file']}{others}; "
                "the weights are damaged or belong to another network"
            )
        # autograd refuses tensors made in inference mode; a copy made outside of it is an ordinary tensor
        return list(zip(batch, result.clone(), strict=True))


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of `size` consecutive items; the last one may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
